"""Galerkin Transformer's regressor: tokens and coordinates through a small Fourier neural operator.

Cao 2021 (arXiv 2105.14995), appendix C. It is the only part of that operator that sees the whole domain at
once and is the same on every grid.
"""

from typing import Literal, final

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from operators.heads.head import Head
from operators.points import Points
from operators.spectral_convolution import SpectralConvolution


@final
class SpectralConfig(BaseModel):
    """Options of ``Spectral``; the defaults are the sizes of the Mamba Neural Operator's authors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["spectral"] = "spectral"
    channels: int = Field(default=32, gt=0)
    modes: int = Field(default=12, gt=0)
    layers: int = Field(default=2, gt=0)
    hidden: int = Field(default=128, gt=0)


@final
class Spectral(Head):
    """Spectral convolutions beside linear layers, then a pointwise network."""

    def __init__(self, config: SpectralConfig, channels: int, frames: int, fields: int) -> None:
        super().__init__()
        self.frames, self.fields, width = frames, fields, config.channels
        self.narrow = nn.Linear(channels + 2, width)
        self.convolutions = nn.ModuleList(
            SpectralConvolution(width, width, config.modes) for _ in range(config.layers)
        )
        self.linears = nn.ModuleList(nn.Linear(width, width) for _ in range(config.layers))
        self.widen = nn.Linear(width, config.hidden)
        self.read = nn.Linear(config.hidden, frames * fields)

    def forward(
        self, tokens: Float[Tensor, "batch token channel"], points: Points
    ) -> Float[Tensor, "batch token frame field"]:
        """See ``Head.forward``."""
        coordinates = points.coordinates.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        hidden: Tensor = self.narrow(torch.cat([tokens, coordinates], dim=-1))
        for convolution, linear in zip(self.convolutions, self.linears, strict=True):
            convolved = convolution(hidden.mT.reshape(hidden.shape[0], -1, *points.grid)).flatten(2).mT
            hidden = functional.silu(convolved + linear(hidden))
        read: Tensor = self.read(functional.silu(self.widen(hidden)))
        return read.reshape(*read.shape[:2], self.frames, self.fields)
