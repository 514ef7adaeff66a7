"""OFormer's decoder: queries made of coordinates alone read the tokens.

Li, Meidani and Barati Farimani 2023 (arXiv 2205.13671), section 3.3.

For a problem in time the decoded state is then marched: one small network, the same at every step and every
point, adds to it, and another reads each step's fields off it.
"""

import math
from typing import Literal, final

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from operators.feed_forward import FeedForward, FeedForwardConfig
from operators.heads.head import Head
from operators.mixers import MixerConfig, mixer_from_config
from operators.points import Points


@final
class QueryDecoderConfig(BaseModel):
    """Options of ``QueryDecoder``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["query_decoder"] = "query_decoder"
    # of the queries, and of the tokens when they are read
    channels: int = Field(gt=0)
    # random frequencies of the coordinates, and their standard deviation [1 / unit of the coordinates]
    frequencies: int = Field(gt=0)
    frequency: float = Field(gt=0)
    mixer: MixerConfig
    feed_forward: FeedForwardConfig
    # width of the state that is marched; None: the fields are read off the queries
    march: int | None = Field(default=None, gt=0)


@final
class QueryDecoder(Head):
    """Reads fields at points of which it knows only where they lie."""

    frequencies: Tensor

    def __init__(self, config: QueryDecoderConfig, channels: int, frames: int, fields: int) -> None:
        super().__init__()
        width = config.channels
        self.project_tokens = nn.Linear(channels, width, bias=False)
        # frozen (Tancik et al. 2020, arXiv 2006.10739); saved with the weights, which mean nothing without
        # them
        self.register_buffer("frequencies", config.frequency * torch.randn(2, config.frequencies))
        features = 2 * config.frequencies
        self.lift = nn.Sequential(
            nn.Linear(features, features, bias=False), nn.GELU(), nn.Linear(features, width, bias=False)
        )
        self.mixer = mixer_from_config(config.mixer, width, cross=True)
        self.feed_forward = FeedForward(config.feed_forward, width)
        self.reader: _Reader | _March
        if config.march is None:
            self.reader = _Reader(width, frames, fields)
        else:
            self.reader = _March(width, config.march, frames, fields)

    def forward(
        self, tokens: Float[Tensor, "batch token channel"], points: Points
    ) -> Float[Tensor, "batch token frame field"]:
        """See ``Head.forward``."""
        coordinates = points.coordinates.to(tokens.dtype)
        angles = 2 * math.pi * coordinates @ self.frequencies.to(tokens.dtype)
        features = torch.cat([angles.sin(), angles.cos()], dim=-1)
        queries: Tensor = self.lift(features).expand(tokens.shape[0], -1, -1)
        queries = queries + self.mixer(queries, points, self.project_tokens(tokens), points)
        queries = queries + self.feed_forward(queries)
        read: Tensor = self.reader(queries, coordinates.expand(tokens.shape[0], -1, -1))
        return read


@final
class _Reader(nn.Module):
    """All frames off a query and its coordinates."""

    def __init__(self, width: int, frames: int, fields: int) -> None:
        super().__init__()
        self.frames, self.fields = frames, fields
        self.first = nn.Linear(width + 2, width, bias=False)
        self.second = nn.Linear(width, width // 2, bias=False)
        self.last = nn.Linear(width // 2, frames * fields)

    def forward(self, queries: Tensor, coordinates: Tensor) -> Float[Tensor, "batch token frame field"]:
        hidden = functional.gelu(self.first(torch.cat([queries, coordinates], dim=-1)))
        read: Tensor = self.last(functional.gelu(self.second(hidden)))
        return read.reshape(*read.shape[:2], self.frames, self.fields)


@final
class _March(nn.Module):
    """A state for each frame, and the frame's fields off it."""

    def __init__(self, width: int, state: int, frames: int, fields: int) -> None:
        super().__init__()
        self.frames = frames
        self.begin = nn.Linear(width, state, bias=False)
        self.norm_step, self.norm_read = nn.LayerNorm(state), nn.LayerNorm(state)
        self.step = nn.Sequential(
            nn.Linear(state + 2, state, bias=False),
            nn.GELU(),
            nn.Linear(state, state, bias=False),
            nn.GELU(),
            nn.Linear(state, state, bias=False),
        )
        half = state // 2
        self.read = nn.Sequential(
            nn.Linear(state, half), nn.GELU(), nn.Linear(half, half), nn.GELU(), nn.Linear(half, fields)
        )

    def forward(self, queries: Tensor, coordinates: Tensor) -> Float[Tensor, "batch token frame field"]:
        state, frames = self.begin(queries), []
        for _ in range(self.frames):
            state = state + self.step(torch.cat([self.norm_step(state), coordinates], dim=-1))
            frames.append(self.read(self.norm_read(state)))
        return torch.stack(frames, dim=2)
