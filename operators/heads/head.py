"""The contract of a head: tokens become the fields that are asked for."""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn

from operators.points import Points


class Head(nn.Module, ABC):
    """Reads ``frames`` frames of ``fields`` fields off the tokens, at their points."""

    @abstractmethod
    def forward(
        self, tokens: Float[Tensor, "batch token channel"], points: Points
    ) -> Float[Tensor, "batch token frame field"]:
        """The fields at each point.

        Raises:
            CannotMix: the head cannot treat such points.
        """
