"""A block of an axial Mamba Neural Operator: S6 and a feed-forward network, both residual, both pre-norm."""

from typing import Protocol

from jaxtyping import Float
from torch import Tensor, nn

from operators.s6 import S6
from operators.scan_plan import PLANS, PlanName


class BlockOptions(Protocol):
    """What the configuration of an architecture says about its blocks."""

    @property
    def channels(self) -> int: ...
    @property
    def inner_channels(self) -> int: ...
    @property
    def states(self) -> int: ...
    @property
    def rank(self) -> int: ...
    @property
    def expansion(self) -> float: ...
    @property
    def plan(self) -> PlanName: ...


class AxialBlock(nn.Module):
    """Pre-norm S6 and pre-norm feed-forward, both residual."""

    def __init__(self, config: BlockOptions) -> None:
        super().__init__()
        width, hidden = config.channels, int(config.expansion * config.channels)
        self.norm_mixer = nn.LayerNorm(width)
        self.mixer = S6(width, config.inner_channels, config.states, config.rank, PLANS[config.plan])
        self.norm_feed_forward = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, width))

    def forward(
        self, tokens: Float[Tensor, "batch y x channel"], relative_spacing: float
    ) -> Float[Tensor, "batch y x channel"]:
        """Mix; ``relative_spacing`` is the tokens' spacing over the reference spacing."""
        tokens = tokens + self.mixer(self.norm_mixer(tokens), relative_spacing)
        out: Tensor = tokens + self.feed_forward(self.norm_feed_forward(tokens))
        return out
