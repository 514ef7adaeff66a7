"""Galerkin attention: ``q (k^T v) / L``, a projection with learnt bases (Cao 2021, arXiv 2105.14995).

Without a softmax the product of keys and values comes first, and the cost is linear in the tokens. Keys and
values are normed, which takes the softmax's place; dropout on ``k^T v`` belongs to training only (the
released code of the Galerkin Transformer also drops at test time).
"""

from typing import Literal, final

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from operators.mixers.attention import Attention, AttentionConfig


@final
class GalerkinConfig(AttentionConfig):
    """Options of ``Galerkin``; its norm is that of keys and values."""

    kind: Literal["galerkin"] = "galerkin"
    dropout: float = Field(default=0.0, ge=0, lt=1)


@final
class Galerkin(Attention):
    """Attention as a projection, in heads."""

    normed = ("key", "value")

    def __init__(self, config: GalerkinConfig, channels: int, *, cross: bool = False) -> None:
        super().__init__(config, channels, cross=cross)
        self.dropout = nn.Dropout(config.dropout)

    def attend(
        self,
        q: Float[Tensor, "batch head token part"],
        k: Float[Tensor, "batch head read part"],
        v: Float[Tensor, "batch head read part"],
    ) -> Float[Tensor, "batch head token part"]:
        """See ``Attention.attend``."""
        out: Tensor = q @ self.dropout(k.mT @ v / k.shape[-2])
        return out
