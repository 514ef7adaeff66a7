"""A few frames a call, as increments over the last known one; a rollout feeds the operator its own output.

``q_(n+i) = q_n + increment_i(q_n, q_n - q_(n-1), ..)``, i = 1, ..., ``frames``. The number of frames of a
rollout is free. What the increments get wrong comes back as input, so such an operator is trained on its own
rollouts or with noise (``training.evolution_task``). An untrained one says that little will change.

Sources: Brandstetter, Worrall and Welling 2022 (arXiv 2202.03376) for blocks of frames as increments.
"""

from collections.abc import Sequence
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from operators.evolution import EvolutionOperator
from operators.patch_frames import FrameEncoder, FrameHead, PatchFramesConfig, frame_numbers


@final
class AutoregressiveConfig(PatchFramesConfig):
    """Options of ``Autoregressive``."""

    kind: Literal["autoregressive"] = "autoregressive"


@final
class Autoregressive(EvolutionOperator):
    """Patch stem -> S6 blocks -> one patch-wise head for the increment of each frame."""

    feature_layer = "encoder"

    def __init__(self, config: AutoregressiveConfig) -> None:
        super().__init__()
        self.config = config
        self.history, self.frames, self.fields = config.history, config.frames, config.fields
        self.encoder = FrameEncoder(config)
        self.head = FrameHead(config.channels, config.fields, config.frames)

    def forward(
        self,
        history: Float[Tensor, "batch time field y x"],
        extent: tuple[float, float],
        chosen: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch frame field y x"]:
        """See ``EvolutionOperator.forward``; only the chosen increments are read off the tokens."""
        present = history[:, -1:]
        # a trend shows in the differences, which are small beside the frames
        known = torch.cat([present - history[:, :-1], present], dim=1)
        increments: Tensor = self.head(self.encoder(known, extent), frame_numbers(self.frames, chosen))
        return present + increments
