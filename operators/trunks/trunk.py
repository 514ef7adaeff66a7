"""The contract of a trunk: what is known at the points of a grid becomes tokens that know of each other."""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn

from operators.points import Points


class Trunk(nn.Module, ABC):
    """Lift and layers of a neural operator."""

    @abstractmethod
    def forward(
        self, values: Float[Tensor, "batch token value"], points: Points
    ) -> Float[Tensor, "batch token channel"]:
        """Tokens at the points of the values.

        Raises:
            CannotMix: the trunk cannot treat such points.
        """
