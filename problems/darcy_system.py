"""The fields of Darcy flow on a grid, the equations that they stand for, and refusals where float64 has none.

The solvers work in units in which the source is 1 per cell and the largest permeability 1: whatever the units
of the fields, it is the contrast alone that decides what float64 carries.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

from problems import certified_answer, multigrid, two_point_flux
from problems.fields import Fields, FieldSpec, InvalidField, validate_fields
from problems.grid import Grid
from problems.linear_system import LinearSystem
from problems.steady import CannotSolve, GoOn, NotCertifiable, always
from problems.two_point_flux import SCHEMES, Faces, Scheme

PERMEABILITY = FieldSpec(
    "permeability",
    "a",
    "m^2/(Pa s)",
    "permeability of the medium over the viscosity of the fluid",
    exclusive_minimum=0.0,
)
SOURCE = FieldSpec("source", "f", "1/s", "volume of fluid produced per volume and time, uniform", rank=0)
PRESSURE = FieldSpec("pressure", "p", "Pa", "pressure above that of the surroundings")


@final
@dataclass(frozen=True)
class DarcySystem:
    """The equations of one field.

    Attributes:
        fields: permeability and source.
        equations: for a source of 1 per cell and a largest permeability of 1.
        unit: the pressure that 1 stands for there [Pa]; 0 without a source.
    """

    fields: Fields
    equations: LinearSystem
    unit: float

    @property
    def largest(self) -> float:
        """The largest permeability."""
        return float(np.max(self.fields["permeability"]))

    @property
    def pressure_per_source(self) -> float:
        """The pressure that 1 stands for if the source is 1 / s [Pa s]."""
        return self.equations.grid.cell_area / self.largest

    def scaled(self, solution: Fields) -> Float64[np.ndarray, "y x"]:
        """A pressure in the units of the equations."""
        return np.asarray(pressure_of(solution, self.equations.grid) / self.unit)

    def start(self, solution: Fields | None) -> Float64[np.ndarray, "y x"] | None:
        """The same where a solver may begin, infinite where it overflows; None: there is none."""
        if solution is None or self.unit == 0.0:
            return None
        with np.errstate(over="ignore"):
            return self.scaled(solution)

    @contextmanager
    def within(self, tolerance: float | str | None) -> Iterator[None]:
        """Tells whoever asks that a tolerance is out of reach.

        Raises:
            NotCertifiable: so it is.
        """
        try:
            yield
        except (certified_answer.OutOfReach, multigrid.Singular) as error:
            raise not_certifiable(self.fields, tolerance, str(error)) from error


def system(fields: Fields, grid: Grid, scheme: str | None, go_on: GoOn = always) -> DarcySystem:
    """The equations that fields stand for.

    Raises:
        InvalidField: a field breaks one of its rules.
        CannotSolve: there are none in float64.
    """
    discrete, faces = discretise(fields, grid, scheme)
    source, largest = float(fields["source"]), float(np.max(fields["permeability"]))
    unit = source * (grid.cell_area / largest)
    if source != 0.0 and not np.finfo(np.float64).tiny <= abs(unit) < math.inf:
        raise cannot_solve(
            fields, f"{unit:.3g} Pa is no unit of pressure", "choose units in which they are moderate"
        )
    equations = LinearSystem(fields["permeability"] / largest, faces, grid, discrete, go_on)
    return DarcySystem(fields, equations, unit)


def discretise(fields: Fields, grid: Grid, scheme: str | None) -> tuple[Scheme, Faces]:
    """Scheme, the first where None is named, and faces for permeability / its maximum.

    Raises:
        InvalidField: a field breaks one of its rules.
        CannotSolve: the contrast is beyond float64.
    """
    validate_fields((PERMEABILITY, SOURCE), fields)
    permeability = on_grid("permeability", fields["permeability"], grid)
    if scheme is not None and scheme not in SCHEMES:
        raise ValueError(f"unknown scheme {scheme}, expected one of {', '.join(SCHEMES)}")
    discrete = SCHEMES[scheme or next(iter(SCHEMES))]
    largest = float(permeability.max())
    if float(permeability.min()) / largest < np.finfo(np.float64).tiny:
        raise cannot_solve(fields, "the ratio vanishes in float64", "lower the contrast")
    return discrete, two_point_flux.transmissibilities(permeability / largest, grid, discrete)


def pressure_of(solution: Fields, grid: Grid) -> Float64[np.ndarray, "y x"]:
    """The pressure of a solution [Pa].

    Raises:
        InvalidField: it breaks one of its rules.
    """
    validate_fields((PRESSURE,), solution)
    return on_grid("pressure", solution["pressure"], grid)


def on_grid(name: str, field: NDArray[np.float64], grid: Grid) -> Float64[np.ndarray, "y x"]:
    """A field of the grid's shape.

    Raises:
        InvalidField: it has another one.
    """
    if field.shape != grid.shape:
        message = f"{name} must have the grid's shape {grid.shape}, got {field.shape}"
        raise InvalidField(name, "shape", None, message)
    return np.asarray(field, np.float64)


def not_certifiable(fields: Fields, tolerance: float | str | None, reason: str) -> NotCertifiable:
    """What to raise where float64 does not carry a tolerance; None: a bound at all."""
    low, high = _range(fields)
    asked = "a bound" if tolerance is None else f"a tolerance of {tolerance}"
    return NotCertifiable(
        f"{asked} is out of float64's reach for a permeability of contrast {high / low:.3g}: {reason}; ask "
        "for a larger tolerance, or lower the contrast"
    )


def cannot_solve(fields: Fields, reason: str, way_out: str) -> CannotSolve:
    """What to raise where float64 does not carry the fields."""
    low, high = _range(fields)
    return CannotSolve(
        f"permeability from {low:.3g} to {high:.3g} {PERMEABILITY.unit} (contrast {high / low:.3g}) with "
        f"source {float(fields['source']):.3g} {SOURCE.unit} is beyond float64: {reason}; {way_out}"
    )


def _range(fields: Fields) -> tuple[float, float]:
    """The smallest and the largest permeability."""
    return float(fields["permeability"].min()), float(fields["permeability"].max())
