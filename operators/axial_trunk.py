"""Patch stem and axial S6 blocks: the part of an axial Mamba Neural Operator that every problem shares."""

from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from operators.axial_block import AxialBlock, BlockOptions
from operators.operator import UnsupportedGrid


class TrunkOptions(BlockOptions, Protocol):
    """What the configuration of an architecture says about its trunk."""

    @property
    def blocks(self) -> int: ...
    @property
    def reference_spacing(self) -> float: ...


class AxialTrunk(nn.Module):
    """Fields to tokens, one for each patch of 4 x 4 cells, mixed along rows and columns."""

    PATCH = 4

    def __init__(self, fields: int, config: TrunkOptions) -> None:
        super().__init__()
        self.reference_spacing = config.reference_spacing
        self.lift = nn.Conv2d(
            fields, config.channels, 2 * self.PATCH, stride=self.PATCH, padding=self.PATCH // 2
        )
        self.lift_mix = nn.Linear(config.channels, config.channels)
        self.blocks = nn.ModuleList(AxialBlock(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.channels)

    def forward(
        self, fields: Float[Tensor, "batch field y x"], spacing: tuple[float, float]
    ) -> Float[Tensor, "batch token_y token_x channel"]:
        """Tokens of the fields; ``spacing`` is (hy, hx), in the unit of the reference spacing.

        Raises:
            UnsupportedGrid: a side of the grid is no multiple of the patch.
        """
        ny, nx = fields.shape[-2:]
        if ny % self.PATCH or nx % self.PATCH:
            raise UnsupportedGrid(
                f"the sides of the grid must be multiples of {self.PATCH} cells, got {ny} x {nx}"
            )
        tokens = self.lift_mix(functional.silu(self.lift(fields).permute(0, 2, 3, 1)))
        relative_spacing = self.PATCH * torch.sym_sqrt(spacing[0] * spacing[1]) / self.reference_spacing
        for block in self.blocks:
            tokens = block(tokens, relative_spacing)
        out: Tensor = self.norm(tokens)
        return out
