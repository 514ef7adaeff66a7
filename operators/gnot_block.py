"""A block of GNOT: the tokens read the context, then themselves, each time followed by experts.

Hao et al. 2023 (arXiv 2302.14376), figure 2: each expert is a feed-forward network, and a gate that sees
where a token lies says how much each counts. With one expert, as the Mamba Neural Operator's authors train
it, the gate says 1.
"""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from operators.feed_forward import FeedForward, FeedForwardConfig
from operators.mixers import MixerConfig, mixer_from_config
from operators.points import Points


@final
class GnotBlock(nn.Module):
    """Cross mixer, experts, self mixer, experts; all residual, with norms before mixers and after experts."""

    def __init__(
        self,
        cross_mixer: MixerConfig,
        mixer: MixerConfig,
        feed_forward: FeedForwardConfig,
        experts: int,
        channels: int,
    ) -> None:
        super().__init__()
        self.cross_mixer = mixer_from_config(cross_mixer, channels, cross=True)
        self.mixer = mixer_from_config(mixer, channels)
        self.gate = _gate(2, feed_forward.hidden, experts)
        self.experts_after_cross, self.experts_after_self = (
            nn.ModuleList(FeedForward(feed_forward, channels) for _ in range(experts)) for _ in range(2)
        )
        self.norm_tokens, self.norm_context, self.norm_after_cross, self.norm_self, self.norm_after_self = (
            nn.LayerNorm(channels) for _ in range(5)
        )

    def forward(
        self,
        tokens: Float[Tensor, "batch token channel"],
        points: Points,
        context: Float[Tensor, "batch token channel"],
    ) -> Float[Tensor, "batch token channel"]:
        """The tokens after this block; the context lies at their points."""
        shares = self.gate(points.coordinates).softmax(-1)
        tokens = tokens + self.cross_mixer(self.norm_tokens(tokens), points, self.norm_context(context))
        tokens = tokens + self.norm_after_cross(_weighted(self.experts_after_cross, shares, tokens))
        tokens = tokens + self.mixer(self.norm_self(tokens), points)
        out: Tensor = tokens + self.norm_after_self(_weighted(self.experts_after_self, shares, tokens))
        return out


def _gate(coordinates: int, hidden: int, experts: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(coordinates, hidden),
        nn.GELU(),
        nn.Linear(hidden, hidden),
        nn.GELU(),
        nn.Linear(hidden, experts),
    )


def _weighted(experts: nn.ModuleList, shares: Tensor, tokens: Tensor) -> Float[Tensor, "batch token channel"]:
    answers = torch.stack([expert(tokens) for expert in experts], dim=-1)
    return (answers * shares[:, None, :]).sum(-1)
