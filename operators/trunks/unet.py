"""U-Net: convolutions on ever coarser grids and back, with what each grid knew carried across.

Ronneberger, Fischer and Brox 2015 (arXiv 1505.04597), figure 1, with group norms for their lack of any. It is
no
operator: its kernels are sizes in cells, so that on another grid it is another function.
"""

from typing import Literal, final

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from operators.forward_mode import has_tangent
from operators.mixers.mixer import CannotMix
from operators.points import Points
from operators.trunks.trunk import Trunk

GROUPS = 8


@final
class UnetConfig(BaseModel):
    """Options of ``Unet``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["unet"] = "unet"
    # on the finest grid; a coarser one has twice as many
    channels: int = Field(default=32, gt=0, multiple_of=GROUPS)
    # how many times the grid is coarsened
    levels: int = Field(default=4, gt=0)


@final
class Unet(Trunk):
    """An encoder, a decoder, and connections between their grids."""

    def __init__(self, config: UnetConfig, values: int) -> None:
        """``values``: what is known at each point."""
        super().__init__()
        self.levels = config.levels
        widths = [config.channels * 2**level for level in range(config.levels + 1)]
        self.down = nn.ModuleList(
            _twice(inputs, width) for inputs, width in zip([values + 2, *widths], widths, strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in reversed(widths[:-1])
        )
        self.join = nn.ModuleList(_twice(2 * width, width) for width in reversed(widths[:-1]))

    def forward(
        self, values: Float[Tensor, "batch token value"], points: Points
    ) -> Float[Tensor, "batch token channel"]:
        """See ``Trunk.forward``."""
        if any(side % 2**self.levels for side in points.grid):
            raise CannotMix(
                f"the sides of the grid must be multiples of {2**self.levels} cells, got {points.grid}"
            )
        coordinates = points.coordinates.to(values.dtype).expand(values.shape[0], -1, -1)
        fields = torch.cat([values, coordinates], dim=-1).mT.reshape(values.shape[0], -1, *points.grid)
        if has_tangent(fields):
            # torch's rule for tangents through a group norm takes no other layout
            fields = fields.contiguous()
        known: list[Tensor] = []
        for level, block in enumerate(self.down):
            fields = block(fields if level == 0 else self.pool(fields))
            known.append(fields)
        known.pop()
        for up, join in zip(self.up, self.join, strict=True):
            fields = join(torch.cat([up(fields), known.pop()], dim=1))
        out: Tensor = fields.flatten(2).mT
        return out


def _twice(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [
            nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
            nn.GroupNorm(GROUPS, outputs),
            nn.GELU(),
        ]
    return nn.Sequential(*layers)
