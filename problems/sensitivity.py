"""Derivatives of a discrete solution with respect to its inputs, with guaranteed bounds of their errors."""

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float64

from problems.fields import Fields


@final
@dataclass(frozen=True)
class Gradients:
    """Gradients of k functions J of the solution.

    Attributes:
        fields: dJ / d input, by the name of the input, first axis k.
        logarithmic: dJ / d log input, for the inputs that are positive.
        error: B of each function: ``|g . d - g~ . d| <= B max|d|`` for every direction d of the logarithm of
            the coefficient, g the exact gradient and g~ the one in ``logarithmic``.
        relative_error: B over ``||lambda||_A ||u||_A``, which no ``g . d`` with ``max|d| = 1`` exceeds.
        source_error: bound of the error of dJ / d source.
        steps: solver steps spent on the solution, and the most spent on an adjoint one.
        scheme: id of the discrete operator.
    """

    fields: Fields
    logarithmic: Fields
    error: Float64[np.ndarray, " k"]
    relative_error: Float64[np.ndarray, " k"]
    source_error: Float64[np.ndarray, " k"]
    steps: tuple[int, int]
    scheme: str


@final
@dataclass(frozen=True)
class Tangents:
    """What k directions of the inputs do to the solution, to first order.

    Attributes:
        fields: derivative of each output in each direction, first axis k.
        relative_error: guaranteed bound of the relative energy error of each; infinite if there is none.
        steps: solver steps spent on the solution, and the most spent on a derivative.
        scheme: id of the discrete operator.
    """

    fields: Fields
    relative_error: Float64[np.ndarray, " k"]
    steps: tuple[int, int]
    scheme: str
