"""Linear attention normalized in the l1 norm, GNOT's (Hao et al. 2023, arXiv 2302.14376, section 3.2).

Queries and keys are softmaxed over the channels of a head, so that ``q . sum_l k_l`` normalizes the sum::

    y = q + q (k^T v) / (q . sum_l k_l)

The query is added as it is; the cost is linear in the tokens.
"""

from typing import Literal, final

from jaxtyping import Float
from torch import Tensor

from operators.mixers.attention import AttentionConfig, Projections
from operators.mixers.mixer import Mixer
from operators.points import Points


@final
class LinearL1Config(AttentionConfig):
    """Options of ``LinearL1``; its norm is that of keys and values."""

    kind: Literal["linear_l1"] = "linear_l1"


@final
class LinearL1(Mixer):
    """Attention without softmax over the tokens, in heads."""

    def __init__(self, config: LinearL1Config, channels: int, *, cross: bool = False) -> None:  # noqa: ARG002
        super().__init__()
        self.config = config
        self.project = Projections(config, channels, ("key", "value"))

    def forward(
        self,
        tokens: Float[Tensor, "batch token channel"],
        points: Points,
        context: Float[Tensor, "batch context_token channel"] | None = None,
        context_points: Points | None = None,
    ) -> Float[Tensor, "batch token channel"]:
        """See ``Mixer.forward``; a context may lie anywhere."""
        q, k, v = self.project(tokens, points, context, context_points)
        q, k = q.softmax(-1), k.softmax(-1)
        weight = (q * k.sum(-2, keepdim=True)).sum(-1, keepdim=True)
        return self.project.out(q + q @ (k.mT @ v) / weight)
