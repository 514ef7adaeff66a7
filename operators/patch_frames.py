"""Known frames to tokens and tokens to frames: what the generic evolution operators share.

A token stands for a patch of 4 x 4 cells. None of this knows a problem: frames are channels, and the walls
show as the edge of a constant channel that is padded by zeros.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from operators.axial_trunk import AxialTrunk
from operators.scan_plan import PlanName


class PatchFramesConfig(BaseModel):
    """Options that the generic evolution operators have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # channels of a frame
    fields: int = Field(gt=0)
    # the boundary conditions that it learns; a run compares them with its data's
    walls: str
    # spacing of the patches at which ``delta`` is taken as it is [m]
    reference_spacing: float = Field(gt=0)
    history: int = Field(default=1, gt=0)
    frames: int = Field(default=10, gt=0)
    channels: int = Field(default=64, gt=0)
    inner_channels: int = Field(default=64, gt=0)
    states: int = Field(default=4, gt=0)
    rank: int = Field(default=4, gt=0)
    blocks: int = Field(default=4, gt=0)
    expansion: float = Field(default=2.0, gt=0)
    plan: PlanName = "axial"


class FrameEncoder(nn.Module):
    """Axial S6 tokens of the last known frames."""

    def __init__(self, config: PatchFramesConfig) -> None:
        super().__init__()
        self.history = config.history
        self.trunk = AxialTrunk(config.history * config.fields + 1, config)

    def forward(
        self, history: Float[Tensor, "batch time field y x"], extent: tuple[float, float]
    ) -> Float[Tensor, "batch token_y token_x channel"]:
        """Tokens of the last ``history`` frames; ``extent``: side lengths (Ly, Lx) [m].

        Raises:
            ValueError: there are fewer frames.
            UnsupportedGrid: a side of the grid is no multiple of 4.
        """
        if history.shape[1] < self.history:
            raise ValueError(f"the operator needs {self.history} frames, got {history.shape[1]}")
        ny, nx = history.shape[-2:]
        known = history[:, -self.history :].flatten(1, 2)
        # the constant is padded by zeros, which tells the walls
        features = torch.cat([known, torch.ones_like(known[:, :1])], dim=1)
        tokens: Tensor = self.trunk(features, (extent[0] / ny, extent[1] / nx))
        return tokens


class FrameHead(nn.Module):
    """Frames out of tokens, patch by patch."""

    def __init__(self, channels: int, fields: int, frames: int) -> None:
        """Create the head; its first outputs are small.

        Args:
            channels: width of the tokens.
            fields: channels of a frame.
            frames: frames that a token tells.
        """
        super().__init__()
        self.frames = frames
        self.hidden = nn.Linear(channels, 2 * channels)
        self.project = nn.Linear(2 * channels, frames * fields * AxialTrunk.PATCH**2)
        with torch.no_grad():
            self.project.weight.mul_(0.1)
            self.project.bias.zero_()

    def forward(
        self, tokens: Float[Tensor, "batch token_y token_x channel"], chosen: Sequence[int]
    ) -> Float[Tensor, "batch frame field y x"]:
        """The chosen ones of its frames."""
        hidden = functional.silu(self.hidden(tokens))
        weights, biases = (values.chunk(self.frames) for values in (self.project.weight, self.project.bias))
        # the last product stays in float32: rounding to bfloat16 alone would cost 0.4 % of a frame. Each
        # frame is a product of its own, so that its bits do not depend on which others are chosen
        with torch.autocast(tokens.device.type, enabled=False):
            hidden = hidden.to(self.project.weight.dtype)
            patches = [functional.linear(hidden, weights[frame], biases[frame]) for frame in chosen]
        return functional.pixel_shuffle(torch.stack(patches, dim=1).movedim(-1, 2), AxialTrunk.PATCH)


def frame_numbers(frames: int, chosen: Sequence[int] | None) -> Sequence[int]:
    """The frames that a call returns.

    Raises:
        ValueError: a chosen one is none of the ``frames``, or none is chosen.
    """
    if chosen is None:
        return range(frames)
    if len(chosen) == 0 or not all(0 <= frame < frames for frame in chosen):
        raise ValueError(f"chosen frames must be some of 0, ..., {frames - 1}, got {list(chosen)}")
    return chosen
