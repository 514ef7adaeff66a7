"""Softmax attention, whose cost is quadratic in the tokens (Vaswani et al. 2017, arXiv 1706.03762)."""

from typing import Literal, final

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from operators.mixers.attention import AttentionConfig, Projections
from operators.mixers.mixer import Mixer
from operators.points import Points


@final
class SoftmaxConfig(AttentionConfig):
    """Options of ``Softmax``; its norm is that of queries and keys."""

    kind: Literal["softmax"] = "softmax"


@final
class Softmax(Mixer):
    """``softmax(q k^T / sqrt(d)) v`` over all tokens, in heads."""

    def __init__(self, config: SoftmaxConfig, channels: int, *, cross: bool = False) -> None:  # noqa: ARG002
        super().__init__()
        self.config = config
        self.project = Projections(config, channels, ("query", "key"))

    def forward(
        self,
        tokens: Float[Tensor, "batch token channel"],
        points: Points,
        context: Float[Tensor, "batch context_token channel"] | None = None,
        context_points: Points | None = None,
    ) -> Float[Tensor, "batch token channel"]:
        """See ``Mixer.forward``; a context may lie anywhere."""
        q, k, v = self.project(tokens, points, context, context_points)
        return self.project.out(functional.scaled_dot_product_attention(q, k, v))
