"""All frames at once: the whole future as output channels of one forward pass.

The known frames become tokens, the tokens are mixed along rows and columns, and a head reads every future
frame of a patch off its token. There is no time axis and no rollout within a call, so an error of one frame
does not feed the next one; the number of frames is part of the architecture.

Source: Cheng et al. 2024 (arXiv 2410.02113), whose operators map 10 frames to the 91 that follow.
"""

from collections.abc import Sequence
from typing import Literal, final

from jaxtyping import Float
from torch import Tensor

from operators.evolution import EvolutionOperator
from operators.patch_frames import FrameEncoder, FrameHead, PatchFramesConfig, frame_numbers


@final
class OneShotConfig(PatchFramesConfig):
    """Options of ``OneShot``."""

    kind: Literal["one_shot"] = "one_shot"


@final
class OneShot(EvolutionOperator):
    """Patch stem -> S6 blocks -> one patch-wise head for each future frame."""

    feature_layer = "encoder"

    def __init__(self, config: OneShotConfig) -> None:
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
        """See ``EvolutionOperator.forward``; only the chosen frames are read off the tokens."""
        frames: Tensor = self.head(self.encoder(history, extent), frame_numbers(self.frames, chosen))
        return frames
