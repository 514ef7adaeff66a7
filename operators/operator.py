"""The contract of a neural operator: dimensionless coefficient in, dimensionless solution out."""

from abc import ABC, abstractmethod
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn


class UnsupportedGrid(ValueError):
    """The operator cannot be evaluated on this grid."""


class Operator(nn.Module, ABC):
    """Maps coefficient fields to solutions of the nondimensional problem ``-div(k grad u) = 1``.

    ``k`` has geometric mean 1 and lengths are measured in the domain's width, so an operator never sees a
    unit.

    Attributes:
        feature_layer: the module whose output, tokens [batch .. channel], the solution is read off.
    """

    feature_layer: ClassVar[str]

    @abstractmethod
    def forward(
        self, coefficient: Float[Tensor, "batch 1 y x"], spacing: tuple[float, float]
    ) -> Float[Tensor, "batch 1 y x"]:
        """Evaluate on cell averages; ``spacing`` is (hy, hx) in units of the domain's width.

        Raises:
            UnsupportedGrid: the grid does not fit the operator's patches.
        """
