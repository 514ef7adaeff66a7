"""Softmax attention, whose cost is quadratic in the tokens (Vaswani et al. 2017, arXiv 1706.03762)."""

from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from operators.forward_mode import has_tangent
from operators.mixers.attention import Attention, AttentionConfig

# weights [batch head token read] that are held at a time, where they are held at all
WEIGHTS = 1 << 24


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
        if has_tangent(q, k, v):
            return _in_torch(q, k, v)
        return functional.scaled_dot_product_attention(q, k, v)


def _in_torch(q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "batch head token part"]:
    """The same by operations that know of tangents, some queries at a time: they hold the whole matrix."""
    batch, heads, reads, _ = k.shape
    queries = max(1, WEIGHTS // (batch * heads * reads))
    with sdpa_kernel(SDPBackend.MATH):
        parts = [
            functional.scaled_dot_product_attention(each, k, v) for each in torch.split(q, queries, dim=2)
        ]
    return torch.cat(parts, dim=2)
