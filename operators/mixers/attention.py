"""What every attention has around its kernel: queries, keys and values in heads, with their positions."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from operators.mixers.mixer import CannotMix, Mixer
from operators.mixers.rotary import rotated
from operators.points import Points

# ``concat``: coordinates before the channels of each head (Cao 2021, arXiv 2105.14995, section 3.3);
# ``rotary``: angles that grow with the coordinates (Su et al. 2021, arXiv 2104.09864; Li et al. 2023, arXiv
# 2205.13671)
Positions = Literal["none", "concat", "rotary"]
# ``layer``: a layer norm with weights of its own for each head; ``token``: the same without weights
HeadNorm = Literal["none", "layer", "token"]
EPSILON = 1e-5


class AttentionConfig(BaseModel):
    """Options that all attentions have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    heads: int = Field(default=8, gt=0)
    # channels of a head; None: the heads share those of the tokens
    head_size: int | None = Field(default=None, gt=0)
    bias: bool = True
    positions: Positions = "none"
    # how many times faster the angles of ``rotary`` grow than in steps of ``ROTARY_UNIT``
    rotary_scale: float = Field(default=1.0, gt=0)
    norm: HeadNorm = "none"
    # where positive, projections begin as this multiple of the identity, and noise of that size
    diagonal: float = Field(default=0.0, ge=0)


class Projections(nn.Module):
    """Tokens to queries, keys and values [batch head token part], and heads to tokens."""

    def __init__(self, config: AttentionConfig, channels: int, normed: tuple[str, str]) -> None:
        """``normed``: the two of ``query``, ``key`` and ``value`` that the norm is for."""
        super().__init__()
        if config.head_size is None and channels % config.heads:
            raise CannotMix(f"expected channels that {config.heads} heads can share, got {channels}")
        self.config = config
        self.size = config.head_size or channels // config.heads
        inner, given = config.heads * self.size, 2 if config.positions == "concat" else 0
        self.query, self.key, self.value = (nn.Linear(channels, inner, bias=config.bias) for _ in range(3))
        self.norms = nn.ModuleDict(
            {
                name: _HeadNorm(config.norm, config.heads, self.size)
                for name in normed
                if config.norm != "none"
            }
        )
        whole = config.heads == 1 and self.size == channels and not given
        self.project_out = nn.Identity() if whole else nn.Linear(config.heads * (self.size + given), channels)
        if config.diagonal:
            self._begin_near_identity(config.diagonal)

    @torch.no_grad()
    def _begin_near_identity(self, diagonal: float) -> None:
        for layer in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(layer.weight, gain=diagonal)
            for block in layer.weight.split(self.size):  # type: ignore[no-untyped-call]
                block.diagonal().add_(diagonal)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(
        self, tokens: Tensor, points: Points, context: Tensor | None, context_points: Points | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the tokens; keys and values of the context, or of the tokens."""
        read, read_points = (tokens, points) if context is None else (context, context_points or points)
        q, k, v = self._heads("query", tokens), self._heads("key", read), self._heads("value", read)
        if self.config.positions == "rotary":
            q = rotated(q, points, self.config.rotary_scale)
            k = rotated(k, read_points, self.config.rotary_scale)
        elif self.config.positions == "concat":
            q = _with_coordinates(q, points)
            k, v = _with_coordinates(k, read_points), _with_coordinates(v, read_points)
        return q, k, v

    def out(self, parts: Float[Tensor, "batch head token part"]) -> Float[Tensor, "batch token channel"]:
        """The heads beside each other, projected."""
        projected: Tensor = self.project_out(parts.transpose(1, 2).flatten(2))
        return projected

    def _heads(self, name: str, tokens: Tensor) -> Float[Tensor, "batch head token part"]:
        projected: Tensor = getattr(self, name)(tokens)
        heads = projected.reshape(*projected.shape[:2], self.config.heads, self.size).transpose(1, 2)
        return self.norms[name](heads) if name in self.norms else heads


class Attention(Mixer, ABC):
    """What a kind of attention adds to the projections: how queries read keys and values.

    Attributes:
        normed: the two of ``query``, ``key`` and ``value`` that the heads' norm is for.
    """

    normed: ClassVar[tuple[str, str]]

    def __init__(self, config: AttentionConfig, channels: int, *, cross: bool = False) -> None:  # noqa: ARG002
        super().__init__()
        self.config = config
        self.project = Projections(config, channels, self.normed)

    def forward(
        self,
        tokens: Float[Tensor, "batch token channel"],
        points: Points,
        context: Float[Tensor, "batch context_token channel"] | None = None,
        context_points: Points | None = None,
    ) -> Float[Tensor, "batch token channel"]:
        """See ``Mixer.forward``; a context may lie anywhere."""
        return self.project.out(self.attend(*self.project(tokens, points, context, context_points)))

    @abstractmethod
    def attend(
        self,
        q: Float[Tensor, "batch head token part"],
        k: Float[Tensor, "batch head read part"],
        v: Float[Tensor, "batch head read part"],
    ) -> Float[Tensor, "batch head token part"]:
        """What the queries read."""


class _HeadNorm(nn.Module):
    """Each token of each head with mean 0 and variance 1 over its channels."""

    def __init__(self, kind: HeadNorm, heads: int, size: int) -> None:
        super().__init__()
        learnt = kind == "layer"
        self.weight = nn.Parameter(torch.ones(heads, 1, size)) if learnt else None
        self.bias = nn.Parameter(torch.zeros(heads, 1, size)) if learnt else None

    def forward(self, parts: Tensor) -> Tensor:
        normed = nn.functional.layer_norm(parts, parts.shape[-1:], eps=EPSILON)
        if self.weight is None or self.bias is None:
            return normed
        return normed * self.weight + self.bias


def _with_coordinates(parts: Tensor, points: Points) -> Tensor:
    coordinates = points.coordinates.to(parts.dtype).expand(*parts.shape[:2], -1, -1)
    return torch.cat([coordinates, parts], dim=-1)
