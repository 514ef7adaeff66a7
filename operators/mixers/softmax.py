"""Softmax attention, whose cost is quadratic in the tokens (Vaswani et al. 2017, arXiv 1706.03762)."""

from typing import Literal, final

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from operators.mixers.attention import Attention, AttentionConfig


@final
class SoftmaxConfig(AttentionConfig):
    """Options of ``Softmax``; its norm is that of queries and keys."""

    kind: Literal["softmax"] = "softmax"


@final
class Softmax(Attention):
    """``softmax(q k^T / sqrt(d)) v`` over all tokens, in heads."""

    normed = ("query", "key")

    def attend(
        self,
        q: Float[Tensor, "batch head token part"],
        k: Float[Tensor, "batch head read part"],
        v: Float[Tensor, "batch head read part"],
    ) -> Float[Tensor, "batch head token part"]:
        """See ``Attention.attend``."""
        return functional.scaled_dot_product_attention(q, k, v)
