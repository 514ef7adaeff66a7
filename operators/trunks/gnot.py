"""GNOT's trunk: tokens made of coordinates alone, which read in every block what is known at the points.

Hao et al. 2023 (arXiv 2302.14376), figure 1; with S6 and Cross-S6 in place of both attentions it is MambaGNOT
(Cheng et al. 2024, arXiv 2410.02113, section 4).
"""

from typing import Literal, final

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from operators.feed_forward import FeedForwardConfig
from operators.gnot_block import GnotBlock
from operators.mixers import MixerConfig
from operators.points import Points
from operators.residual_mlp import ResidualMlp
from operators.trunks.trunk import Trunk

# of a point: its coordinates, and a parameter of the problem that the authors leave at 0
QUERY = 3


@final
class GnotConfig(BaseModel):
    """Options of ``Gnot``; the defaults are the sizes of the Mamba Neural Operator's authors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["gnot"] = "gnot"
    channels: int = Field(default=96, gt=0)
    blocks: int = Field(default=4, gt=0)
    # residual layers of the networks that lift coordinates and values
    lift_layers: int = Field(default=4, ge=0)
    cross_mixer: MixerConfig
    mixer: MixerConfig
    feed_forward: FeedForwardConfig = FeedForwardConfig(hidden=192)
    experts: int = Field(default=1, gt=0)


@final
class Gnot(Trunk):
    """Two lifts, and blocks that mix tokens with values and with themselves."""

    def __init__(self, config: GnotConfig, values: int) -> None:
        """``values``: what is known at each point."""
        super().__init__()
        width, layers = config.channels, config.lift_layers
        self.lift_coordinates = ResidualMlp(QUERY, width, layers, width)
        self.lift_values = ResidualMlp(values + 2, width, layers, width)
        self.blocks = nn.ModuleList(
            GnotBlock(config.cross_mixer, config.mixer, config.feed_forward, config.experts, width)
            for _ in range(config.blocks)
        )

    def forward(
        self, values: Float[Tensor, "batch token value"], points: Points
    ) -> Float[Tensor, "batch token channel"]:
        """See ``Trunk.forward``."""
        coordinates = points.coordinates.expand(values.shape[0], -1, -1)
        query = torch.cat([coordinates, coordinates.new_zeros(*coordinates.shape[:2], 1)], dim=-1)
        tokens: Tensor = self.lift_coordinates(query)
        context = self.lift_values(torch.cat([coordinates, values], dim=-1))
        for block in self.blocks:
            tokens = block(tokens, points, context)
        return tokens
