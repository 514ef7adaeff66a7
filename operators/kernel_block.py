"""One layer of a neural operator: ``v <- v + K v``, then ``v <- v + feed_forward(v)``, and its norms.

Kovachki et al. 2023 (arXiv 2108.08481), equation 7, with the residual connections that today's operators
have.
"""

from typing import Literal, final

from jaxtyping import Float
from torch import Tensor, nn

from operators.feed_forward import FeedForward, FeedForwardConfig
from operators.mixers import MixerConfig, mixer_from_config
from operators.points import Points

# ``pre``: what is mixed is normed, and the residual stream is not; ``stream``: the stream itself is (OFormer)
Norm = Literal["none", "pre", "stream"]


@final
class KernelBlock(nn.Module):
    """A mixer and a feed-forward network, both residual."""

    def __init__(
        self, mixer: MixerConfig, feed_forward: FeedForwardConfig, norm: Norm, channels: int
    ) -> None:
        super().__init__()
        self.norm = norm
        self.mixer = mixer_from_config(mixer, channels)
        self.feed_forward = FeedForward(feed_forward, channels)
        self.norm_mixer, self.norm_feed_forward = (
            nn.Identity() if norm == "none" else nn.LayerNorm(channels) for _ in range(2)
        )

    def forward(
        self, tokens: Float[Tensor, "batch token channel"], points: Points
    ) -> Float[Tensor, "batch token channel"]:
        """The tokens after this layer."""
        normed = self.norm_mixer(tokens)
        tokens = (normed if self.norm == "stream" else tokens) + self.mixer(normed, points)
        normed = self.norm_feed_forward(tokens)
        out: Tensor = (normed if self.norm == "stream" else tokens) + self.feed_forward(normed)
        return out
