"""The Fourier neural operator's layers: a spectral convolution beside a linear map, and an activation.

Li et al. 2020 (arXiv 2010.08895), figure 2: ``v <- gelu(K v + W v)``, without residuals, norms or
feed-forwards; the last layer has no activation.
"""

from typing import Literal, final

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from operators.mixers.fourier import Fourier, FourierConfig
from operators.points import Points
from operators.trunks.trunk import Trunk


@final
class FnoConfig(BaseModel):
    """Options of ``Fno``; the defaults are the paper's for two dimensions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["fno"] = "fno"
    channels: int = Field(default=32, gt=0)
    modes: int = Field(default=12, gt=0)
    layers: int = Field(default=4, gt=0)


@final
class Fno(Trunk):
    """A linear lift of values and coordinates, and Fourier layers."""

    def __init__(self, config: FnoConfig, values: int) -> None:
        """``values``: what is known at each point."""
        super().__init__()
        self.lift = nn.Linear(values + 2, config.channels)
        mixer = FourierConfig(modes=config.modes)
        self.layers = nn.ModuleList(Fourier(mixer, config.channels) for _ in range(config.layers))

    def forward(
        self, values: Float[Tensor, "batch token value"], points: Points
    ) -> Float[Tensor, "batch token channel"]:
        """See ``Trunk.forward``."""
        coordinates = points.coordinates.to(values.dtype).expand(values.shape[0], -1, -1)
        tokens: Tensor = self.lift(torch.cat([values, coordinates], dim=-1))
        *before, last = self.layers
        for layer in before:
            tokens = functional.gelu(layer(tokens, points))
        out: Tensor = last(tokens, points)
        return out
