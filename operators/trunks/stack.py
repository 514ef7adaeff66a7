"""Values and coordinates through one linear lift, then layer after layer: the encoder of most operators."""

from typing import Literal, final

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from operators.feed_forward import FeedForwardConfig
from operators.kernel_block import KernelBlock, Norm
from operators.mixers import MixerConfig
from operators.points import Points
from operators.trunks.trunk import Trunk


@final
class StackConfig(BaseModel):
    """Options of ``Stack``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["stack"] = "stack"
    channels: int = Field(gt=0)
    # one mixer for each layer
    mixers: tuple[MixerConfig, ...] = Field(min_length=1)
    feed_forward: FeedForwardConfig
    norm: Norm = "pre"
    lift_bias: bool = True
    lift_dropout: float = Field(default=0.0, ge=0, lt=1)


@final
class Stack(Trunk):
    """A lift and kernel blocks."""

    def __init__(self, config: StackConfig, values: int) -> None:
        """``values``: what is known at each point."""
        super().__init__()
        self.lift = nn.Linear(values + 2, config.channels, bias=config.lift_bias)
        self.dropout = nn.Dropout(config.lift_dropout)
        self.blocks = nn.ModuleList(
            KernelBlock(mixer, config.feed_forward, config.norm, config.channels) for mixer in config.mixers
        )

    def forward(
        self, values: Float[Tensor, "batch token value"], points: Points
    ) -> Float[Tensor, "batch token channel"]:
        """See ``Trunk.forward``."""
        known = torch.cat([values, points.coordinates.expand(values.shape[0], -1, -1)], dim=-1)
        tokens: Tensor = self.dropout(self.lift(known))
        for block in self.blocks:
            tokens = block(tokens, points)
        return tokens
