"""Galerkin attention: ``q (k^T v) / L``, a projection with learnt bases (Cao 2021, arXiv 2105.14995).

Without a softmax the product of keys and values comes first, and the cost is linear in the tokens. Keys and
values are normed, which takes the softmax's place; dropout on ``k^T v`` belongs to training only (the
released code of the Galerkin Transformer also drops at test time).
"""

from typing import Literal, final

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from operators.mixers.attention import AttentionConfig, Projections
from operators.mixers.mixer import Mixer
from operators.points import Points


@final
class GalerkinConfig(AttentionConfig):
    """Options of ``Galerkin``; its norm is that of keys and values."""

    kind: Literal["galerkin"] = "galerkin"
    dropout: float = Field(default=0.0, ge=0, lt=1)


@final
class Galerkin(Mixer):
    """Attention as a projection, in heads."""

    def __init__(self, config: GalerkinConfig, channels: int, *, cross: bool = False) -> None:  # noqa: ARG002
        super().__init__()
        self.config = config
        self.project = Projections(config, channels, ("key", "value"))
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        tokens: Float[Tensor, "batch token channel"],
        points: Points,
        context: Float[Tensor, "batch context_token channel"] | None = None,
        context_points: Points | None = None,
    ) -> Float[Tensor, "batch token channel"]:
        """See ``Mixer.forward``; a context may lie anywhere."""
        q, k, v = self.project(tokens, points, context, context_points)
        return self.project.out(q @ self.dropout(k.mT @ v / k.shape[-2]))
