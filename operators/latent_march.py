"""Encode once, march a latent state, decode each step.

``s_0 = encoder(history)``, ``s_(n+1) = s_n + propagator(s_n)``, ``q_n = decoder(s_(n+1))``. Propagator and
decoder are the same for all steps and act on each token alone: only the encoder carries information across
the domain, and a step costs little beside it.

Source: Li, Meidani and Barati Farimani 2023 (OFormer, arXiv 2205.13671), section 3.3; there the propagator
also sees coordinates, here the tokens know the walls.
"""

from collections.abc import Sequence
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from operators.evolution import EvolutionOperator
from operators.patch_frames import FrameEncoder, FrameHead, PatchFramesConfig, frame_numbers


@final
class LatentMarchConfig(PatchFramesConfig):
    """Options of ``LatentMarch``."""

    kind: Literal["latent_march"] = "latent_march"


@final
class LatentMarch(EvolutionOperator):
    """Patch stem -> S6 blocks -> a step in latent space for each frame, and its patch-wise decoder."""

    feature_layer = "encoder"

    def __init__(self, config: LatentMarchConfig) -> None:
        super().__init__()
        self.config = config
        self.history, self.frames, self.fields = config.history, config.frames, config.fields
        self.encoder = FrameEncoder(config)
        width = config.channels
        self.propagator = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )
        self.norm = nn.LayerNorm(width)
        self.head = FrameHead(width, config.fields, frames=1)

    def forward(
        self,
        history: Float[Tensor, "batch time field y x"],
        extent: tuple[float, float],
        chosen: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch frame field y x"]:
        """See ``EvolutionOperator.forward``; it marches to the last chosen frame and decodes the chosen."""
        wanted = frame_numbers(self.frames, chosen)
        state, decoded = self.encoder(history, extent), {}
        for frame in range(max(wanted) + 1):
            state = state + self.propagator(state)
            if frame in wanted:
                decoded[frame] = self.head(self.norm(state), [0])
        return torch.cat([decoded[frame] for frame in wanted], dim=1)
