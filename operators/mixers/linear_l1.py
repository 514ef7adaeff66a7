"""Linear attention normalized in the l1 norm, GNOT's (Hao et al. 2023, arXiv 2302.14376, section 3.2).

Queries and keys are softmaxed over the channels of a head, so that ``q . sum_l k_l`` normalizes the sum::

    y = q + q (k^T v) / (q . sum_l k_l)

The query is added as it is; the cost is linear in the tokens.
"""

from typing import Literal, final

from jaxtyping import Float
from torch import Tensor

from operators.mixers.attention import Attention, AttentionConfig


@final
class LinearL1Config(AttentionConfig):
    """Options of ``LinearL1``; its norm is that of keys and values."""

    kind: Literal["linear_l1"] = "linear_l1"


@final
class LinearL1(Attention):
    """Attention without softmax over the tokens, in heads."""

    normed = ("key", "value")

    def attend(
        self,
        q: Float[Tensor, "batch head token part"],
        k: Float[Tensor, "batch head read part"],
        v: Float[Tensor, "batch head read part"],
    ) -> Float[Tensor, "batch head token part"]:
        """See ``Attention.attend``."""
        q, k = q.softmax(-1), k.softmax(-1)
        weight = (q * k.sum(-2, keepdim=True)).sum(-1, keepdim=True)
        out: Tensor = q + q @ (k.mT @ v) / weight
        return out
