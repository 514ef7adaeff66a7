"""Quantities of interest: linear functionals of the solution that an engineer asks for by name."""

from dataclasses import dataclass
from typing import Literal, final

Wall = Literal["left", "right", "bottom", "top"]


@final
@dataclass(frozen=True)
class Mean:
    """The mean of the solution over the domain."""


@final
@dataclass(frozen=True)
class Outflow:
    """What flows out through walls.

    Attributes:
        walls: ``left`` is that of the smallest x, ``bottom`` that of the smallest y.
    """

    walls: tuple[Wall, ...] = ("left", "right", "bottom", "top")

    def __post_init__(self) -> None:
        known = ("left", "right", "bottom", "top")
        if not self.walls or len(set(self.walls)) < len(self.walls) or not set(self.walls) <= set(known):
            raise ValueError(f"an outflow names some of {', '.join(known)}, each once, got {self.walls}")


@final
@dataclass(frozen=True)
class Reading:
    """The solution at a point, bilinear between cell centers and the value at the walls.

    Attributes:
        y: coordinate [m].
        x: coordinate [m].
    """

    y: float
    x: float


Quantity = Mean | Outflow | Reading


@final
@dataclass(frozen=True)
class CertifiedQuantity:
    """The value of a quantity for the solution of the discrete problem.

    Attributes:
        quantity: what it is of.
        value: the value.
        half_width: the true one is no further from ``value`` than this.
        unit: unit of both.
        uncorrected: the quantity of the answer that the solver started from, None without one.
    """

    quantity: Quantity
    value: float
    half_width: float
    unit: str
    uncorrected: float | None = None
