"""What a block's frames lack: a local network on the prediction around a place and the trunk's context.

All frames share its kernels; each has a scale and a shift of its own for the hidden channels, since an error
of a prediction grows along the block.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class FrameCorrection(nn.Module):
    """Three convolutions on blocks of 2 x 2 cells, which reach five cells far."""

    def __init__(self, features: int, context: int, hidden: int, outputs: int, frames: int) -> None:
        """Create the network; its first outputs are small.

        Args:
            features: channels of a frame.
            context: channels of the trunk's context.
            hidden: channels between.
            outputs: channels of the correction.
            frames: frames of a block.
        """
        super().__init__()
        self.read_frame = nn.Conv2d(features, hidden, 3, padding=1)
        self.read_context = nn.Conv2d(context, hidden, 3, padding=1)
        self.frame_shift = nn.Parameter(torch.zeros(frames, hidden))
        self.frame_scale = nn.Parameter(torch.ones(frames, hidden))
        self.mix = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.write = nn.Conv2d(hidden, outputs, 1)
        with torch.no_grad():
            for parameter, factor in zip(self.write.parameters(), (0.1, 0.0), strict=True):
                parameter.mul_(factor)

    def forward(
        self,
        features: Float[Tensor, "batch frame feature y2 x2"],
        context: Float[Tensor, "batch context y2 x2"],
        frames: Sequence[int],
    ) -> Float[Tensor, "batch frame output y2 x2"]:
        """The correction; ``frames``: which frames of the block these are."""
        size = features.shape[:2]
        hidden = self.read_frame(features.flatten(0, 1)).unflatten(0, size)
        hidden = hidden + self.read_context(context)[:, None]
        scale, shift = (
            values[list(frames), :, None, None] for values in (self.frame_scale, self.frame_shift)
        )
        hidden = functional.silu(hidden * scale + shift).flatten(0, 1)
        hidden = functional.silu(self.mix(hidden))
        out: Tensor = self.write(hidden)
        return out.reshape(*size, *out.shape[1:])
