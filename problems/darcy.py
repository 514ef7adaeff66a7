"""Darcy flow: the pressure p [Pa] of a fluid in a porous medium with a uniform source f [1/s].

    -div(a grad p) = f   on (0, Lx) x (0, Ly),      p = 0 on the walls

a [m^2/(Pa s)] is the permeability of the medium over the viscosity of the fluid, its mobility; -a grad p is
the Darcy velocity [m/s]; f is the volume of fluid produced per volume and time. p is linear in f, and
inversely proportional to a constant factor of a.

Discretised by two-point-flux finite volumes (``two_point_flux``), solved by multigrid-preconditioned
conjugate gradients (``multigrid``).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal, final

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

from problems import adjoint_solver, certified_answer, error_bound, multigrid, pde_bound, two_point_flux
from problems.fields import Fields, FieldSpec, InvalidField, validate_fields
from problems.functionals import functional
from problems.grid import Grid
from problems.linear_system import LinearSystem
from problems.permeability import FAMILIES
from problems.quantity import CertifiedQuantity, Outflow, Quantity
from problems.sensitivity import Gradients, Tangents
from problems.steady import (
    CannotSolve,
    ErrorBound,
    GoOn,
    Norm,
    NotCertifiable,
    Refined,
    Solution,
    SteadyProblem,
    always,
)
from problems.two_point_flux import SCHEMES, Scheme

PERMEABILITY = FieldSpec(
    "permeability",
    "a",
    "m^2/(Pa s)",
    "permeability of the medium over the viscosity of the fluid",
    exclusive_minimum=0.0,
)
SOURCE = FieldSpec("source", "f", "1/s", "volume of fluid produced per volume and time, uniform", rank=0)
PRESSURE = FieldSpec("pressure", "p", "Pa", "pressure above that of the surroundings")

# rounding may leave the direct solver more than the tolerance: up to this relative residual, its answer
# still counts
_USABLE_RESIDUAL = 1e-6
# smaller directions may have lost digits to underflow
_SMALLEST_DIRECTION = 1e-290
# tenfold tighter solves for a quantity: float64 ends before
_ROUNDS = 20


@final
class Darcy(SteadyProblem):
    """Steady flow through a heterogeneous porous medium."""

    name = "darcy"
    title = "Darcy flow"
    equation = "-div(a grad p) = f"
    boundary_conditions = "p = 0 on all four walls"
    inputs = (PERMEABILITY,)
    parameters = (SOURCE,)
    outputs = (PRESSURE,)
    schemes = tuple(SCHEMES)
    families = FAMILIES

    def sample(
        self, family: str, parameters: Mapping[str, float], seed: int, index: int, grid: Grid
    ) -> Fields:
        """Permeability number ``index`` of a family, with a source of 1 / s."""
        if family not in FAMILIES:
            raise ValueError(f"unknown family {family}, expected one of {', '.join(FAMILIES)}")
        permeability = FAMILIES[family].sample(parameters, seed, index, grid)
        return {"permeability": permeability, "source": np.array(1.0)}

    def solve(
        self, fields: Fields, grid: Grid, scheme: str | None = None, tolerance: float = 1e-10
    ) -> Solution:
        """Pressure [Pa]; exactly proportional to the source."""
        discrete, faces, scale = self._discretise(fields, grid, scheme)
        if scale == 0.0:
            return Solution({"pressure": np.zeros(grid.shape)}, 0, 0.0, "direct", discrete.id)
        # what overflows is refused below
        with np.errstate(over="ignore", invalid="ignore"):
            try:
                found = multigrid.solve(faces, two_point_flux.right_hand_side(1.0, grid), discrete, tolerance)
            except multigrid.Singular as error:
                raise _cannot_solve(fields, str(error), "lower the contrast") from error
            pressure = found.values * scale
        if not np.isfinite(pressure).all():
            raise _cannot_solve(
                fields, "the pressure is not finite", "choose units in which they are moderate"
            )
        if not found.residual <= max(tolerance, _USABLE_RESIDUAL):
            left = f"a relative residual of {found.residual:.1g} is left"
            raise _cannot_solve(fields, left, "lower the contrast, or allow a larger tolerance")
        return Solution({"pressure": pressure}, found.iterations, found.residual, found.method, discrete.id)

    def residual(self, fields: Fields, solution: Fields, grid: Grid, scheme: str | None = None) -> Fields:
        """``-div(a grad p) - f`` per cell [1/s]."""
        _, faces, _ = self._discretise(fields, grid, scheme)
        outflow = two_point_flux.apply(faces, self._pressure(solution, grid))
        largest, source = float(np.max(fields["permeability"])), float(fields["source"])
        return {"pressure": outflow * (largest / grid.cell_area) - source}

    def error_bound(
        self,
        fields: Fields,
        solution: Fields,
        grid: Grid,
        scheme: str | None = None,
        rounding: float = 0.0,
    ) -> ErrorBound:
        """Guaranteed bound of the relative energy error, which is that of the Darcy velocity."""
        system, unit = self._system(fields, grid, scheme)
        pressure = self._pressure(solution, grid)
        if unit == 0.0:
            return _bound_of_nothing(pressure)
        return error_bound.bound(system, pressure / unit, rounding)

    def certify(
        self,
        fields: Fields,
        solution: Fields,
        grid: Grid,
        scheme: str | None = None,
        rounding: float = 0.0,
        norm: Norm = "energy",
        go_on: GoOn = always,
    ) -> ErrorBound:
        """Guaranteed bounds whose two sides are within 5 %, in the energy norm unless another is named."""
        system, unit = self._system(fields, grid, scheme, go_on)
        pressure = self._pressure(solution, grid)
        if unit == 0.0:
            return _bound_of_nothing(pressure)
        return error_bound.certify(system, pressure / unit, rounding, norm)

    def pde_bound(
        self,
        fields: Fields,
        solution: Fields,
        grid: Grid,
        scheme: str | None = None,
        rounding: float = 0.0,
    ) -> ErrorBound:
        """Guaranteed bound of the energy error against the equation, permeability constant in each cell."""
        system, unit = self._system(fields, grid, scheme)
        pressure = self._pressure(solution, grid)
        if unit == 0.0:
            return replace(_bound_of_nothing(pressure), reference="pde")
        assessed = system.assess(pressure / unit)
        discrete = error_bound.of_assessed(system, assessed, rounding)
        return pde_bound.bound(system, assessed, discrete, rounding)

    def refine(
        self,
        fields: Fields,
        start: Fields | None,
        grid: Grid,
        scheme: str | None = None,
        tolerance: float | Literal["discretization"] = 1e-6,
        go_on: GoOn = always,
    ) -> Refined:
        """Pressure [Pa] with a guaranteed relative error of the Darcy velocity."""
        if tolerance != "discretization" and not 0 < tolerance < math.inf:
            raise ValueError(f"tolerance must be positive and finite, or discretization, got {tolerance:g}")
        system, unit = self._system(fields, grid, scheme, go_on)
        if unit == 0.0:
            zero = np.zeros(grid.shape)
            none = _bound_of_nothing(zero)
            return Refined({"pressure": zero}, none, none, 0, "direct", False, system.scheme.id)
        try:
            found = certified_answer.refine(system, self._start(start, unit, grid), tolerance)
        except (certified_answer.OutOfReach, multigrid.Singular) as error:
            raise _not_certifiable(fields, tolerance, str(error)) from error
        pressure = found.values * unit
        if not np.isfinite(pressure).all():
            raise _cannot_solve(
                fields, "the pressure is not finite", "choose units in which they are moderate"
            )
        return Refined(
            {"pressure": pressure},
            found.bound,
            found.discrete,
            found.iterations,
            found.method,
            found.from_start,
            system.scheme.id,
        )

    def adjoint(
        self,
        fields: Fields,
        cotangents: Float64[np.ndarray, "k y x"],
        grid: Grid,
        scheme: str | None = None,
        start: Fields | None = None,
        tolerance: float | None = None,
        go_on: GoOn = always,
    ) -> Gradients:
        """DJ / d permeability and dJ / d source of k functions J, from dJ / d pressure."""
        system, unit = self._system(fields, grid, scheme, go_on)
        at = self._state(fields, system, self._start(start, unit, grid), tolerance)
        found = [self._adjoint(fields, system, at, cotangent, tolerance) for cotangent in cotangents]
        logarithmic = np.array([unit * one.gradient for one in found]).reshape(-1, *grid.shape)
        # the solution is proportional to the source
        per_source = grid.cell_area / float(np.max(fields["permeability"]))
        return Gradients(
            {
                "permeability": logarithmic / fields["permeability"],
                "source": np.array([per_source * one.value for one in found]),
            },
            {"permeability": logarithmic},
            np.array([abs(unit) * one.error for one in found]),
            np.array([one.relative_error for one in found]),
            np.array([per_source * one.value_error for one in found]),
            (at.found.iterations, max((one.steps for one in found), default=0)),
            system.scheme.id,
        )

    def tangent(
        self,
        fields: Fields,
        directions: Mapping[str, NDArray[np.float64]],
        grid: Grid,
        scheme: str | None = None,
        start: Fields | None = None,
        tolerance: float | None = None,
        go_on: GoOn = always,
    ) -> Tangents:
        """Derivative of the pressure in k directions of permeability and source."""
        system, unit = self._system(fields, grid, scheme, go_on)
        of_permeability, of_source = _directions(directions, grid)
        at = self._state(fields, system, self._start(start, unit, grid), tolerance)
        per_source = grid.cell_area / float(np.max(fields["permeability"]))
        along = [
            (_logarithmic(fields, one), float(more))
            for one, more in zip(of_permeability, of_source, strict=True)
        ]
        # what overflows has no bound
        with _certifiable(fields, tolerance), np.errstate(over="ignore", invalid="ignore"):
            found = [adjoint_solver.tangent(system, at, *one, tolerance) for one in along]
            if tolerance is None and any(one.relative_error > adjoint_solver.LOOSE for one in found):
                at = adjoint_solver.tighten(system, at)
                found = [adjoint_solver.tangent(system, at, *one, tolerance) for one in along]
            pressure = np.array([per_source * one.values for one in found]).reshape(-1, *grid.shape)
        relative_error = np.array([one.relative_error for one in found])
        relative_error[~np.isfinite(pressure).all(axis=(1, 2))] = math.inf
        return Tangents(
            {"pressure": pressure},
            relative_error,
            (at.found.iterations, max((one.steps for one in found), default=0)),
            system.scheme.id,
        )

    def quantities(
        self,
        fields: Fields,
        wanted: Sequence[Quantity],
        grid: Grid,
        scheme: str | None = None,
        start: Fields | None = None,
        tolerance: float | None = None,
        go_on: GoOn = always,
    ) -> tuple[CertifiedQuantity, ...]:
        """Mean pressure and readings [Pa], outflow [m^2/s], with guaranteed intervals."""
        system, unit = self._system(fields, grid, scheme, go_on)
        largest = float(np.max(fields["permeability"]))
        faces = two_point_flux.Faces(largest * system.faces.x, largest * system.faces.y)
        weights = [functional(quantity, faces, grid, system.scheme) for quantity in wanted]
        offered = self._start(start, unit, grid)
        pressure = None if start is None else self._pressure(start, grid)
        values = self._values(fields, system, offered, weights, tolerance)
        return tuple(
            CertifiedQuantity(
                quantity,
                unit * value,
                abs(unit) * half_width,
                "m^2/s" if isinstance(quantity, Outflow) else PRESSURE.unit,
                None if pressure is None else float(np.sum(weight * pressure)),
            )
            for quantity, weight, (value, half_width) in zip(wanted, weights, values, strict=True)
        )

    def _values(
        self,
        fields: Fields,
        system: LinearSystem,
        start: Float64[np.ndarray, "y x"] | None,
        weights: Sequence[Float64[np.ndarray, "y x"]],
        tolerance: float | None,
    ) -> list[tuple[float, float]]:
        """Values and half widths of functionals, by solves as exact as the tolerance needs."""
        if tolerance is not None and not 0 < tolerance < math.inf:
            raise ValueError(f"tolerance must be positive and finite, got {tolerance:g}")
        # the error of a value is the product of two
        needed = None if tolerance is None else min(0.1 * math.sqrt(tolerance), 0.1)
        for _ in range(_ROUNDS):
            at = self._state(fields, system, start, needed)
            found = [self._adjoint(fields, system, at, weight, needed) for weight in weights]
            if tolerance is None or all(one.value_error <= tolerance * abs(one.value) for one in found):
                return [(one.value, one.value_error) for one in found]
            needed = 0.1 * (needed or 1.0)
            start = at.found.assessed.values
        raise _not_certifiable(fields, tolerance, "tighter solves do not help")

    def _state(
        self,
        fields: Fields,
        system: LinearSystem,
        start: Float64[np.ndarray, "y x"] | None,
        tolerance: float | None,
    ) -> adjoint_solver.State:
        if tolerance is not None and not 0 < tolerance < math.inf:
            raise ValueError(f"tolerance must be positive and finite, got {tolerance:g}")
        with _certifiable(fields, tolerance):
            values, _ = certified_answer.begin(system, start)
            return adjoint_solver.state(system, values, tolerance)

    def _adjoint(
        self,
        fields: Fields,
        system: LinearSystem,
        at: adjoint_solver.State,
        cotangent: Float64[np.ndarray, "y x"],
        tolerance: float | None,
    ) -> adjoint_solver.Adjoint:
        with _certifiable(fields, tolerance):
            return adjoint_solver.adjoint(
                system, at, _on_grid("cotangent", cotangent, grid=system.grid), tolerance
            )

    def _start(self, start: Fields | None, unit: float, grid: Grid) -> Float64[np.ndarray, "y x"] | None:
        """The start in the units of the solver."""
        if start is None or unit == 0.0:
            return None
        with np.errstate(over="ignore"):
            return np.asarray(self._pressure(start, grid) / unit)

    def _system(
        self, fields: Fields, grid: Grid, scheme: str | None, go_on: GoOn = always
    ) -> tuple[LinearSystem, float]:
        """The equations for a source of 1 per cell, and the pressure that 1 stands for [Pa]."""
        discrete, faces, _ = self._discretise(fields, grid, scheme)
        source, largest = float(fields["source"]), float(np.max(fields["permeability"]))
        unit = source * (grid.cell_area / largest)
        if source != 0.0 and not np.finfo(np.float64).tiny <= abs(unit) < math.inf:
            raise _cannot_solve(
                fields, f"{unit:.3g} Pa is no unit of pressure", "choose units in which they are moderate"
            )
        return LinearSystem(fields["permeability"] / largest, faces, grid, discrete, go_on), unit

    def _pressure(self, solution: Fields, grid: Grid) -> Float64[np.ndarray, "y x"]:
        validate_fields(self.outputs, solution)
        return _on_grid("pressure", solution["pressure"], grid)

    def _discretise(
        self, fields: Fields, grid: Grid, scheme: str | None
    ) -> tuple[Scheme, two_point_flux.Faces, float]:
        """Scheme, faces for permeability / its maximum, and the pressure that 1 stands for [Pa]."""
        validate_fields(self.inputs + self.parameters, fields)
        permeability = _on_grid("permeability", fields["permeability"], grid)
        if scheme is not None and scheme not in SCHEMES:
            raise ValueError(f"unknown scheme {scheme}, expected one of {', '.join(SCHEMES)}")
        discrete = SCHEMES[scheme or self.schemes[0]]
        largest = float(permeability.max())
        if float(permeability.min()) / largest < np.finfo(np.float64).tiny:
            raise _cannot_solve(fields, "the ratio vanishes in float64", "lower the contrast")
        faces = two_point_flux.transmissibilities(permeability / largest, grid, discrete)
        return discrete, faces, float(fields["source"]) / largest


def _on_grid(name: str, field: NDArray[np.float64], grid: Grid) -> Float64[np.ndarray, "y x"]:
    if field.shape != grid.shape:
        message = f"{name} must have the grid's shape {grid.shape}, got {field.shape}"
        raise InvalidField(name, "shape", None, message)
    return np.asarray(field, np.float64)


def _directions(
    directions: Mapping[str, NDArray[np.float64]], grid: Grid
) -> tuple[Float64[np.ndarray, "k y x"], Float64[np.ndarray, " k"]]:
    """Directions of permeability and source, 0 where they are left out."""
    for name, given in directions.items():
        shape = {"permeability": grid.shape, "source": ()}.get(name)
        if shape is None:
            raise InvalidField(name, "unknown", None, f"unknown field {name}, expected permeability, source")
        if given.ndim != 1 + len(shape) or given.shape[1:] != shape or not np.isfinite(given).all():
            message = (
                f"a direction of {name} must be finite and have the shape (k, *{shape}), got {given.shape}"
            )
            raise InvalidField(name, "shape", None, message)
    counts = {given.shape[0] for given in directions.values()}
    if len(counts) != 1:
        raise ValueError(f"directions must be of one number k, got {sorted(counts) or 'none'}")
    count = counts.pop()
    of_permeability = directions.get("permeability", np.zeros((count, *grid.shape)))
    return of_permeability, directions.get("source", np.zeros(count))


def _logarithmic(fields: Fields, along: Float64[np.ndarray, "y x"]) -> Float64[np.ndarray, "y x"]:
    """A direction of permeability as one of its logarithm, times the source; not a number if it has no room.

    The derivative is in units of the pressure for a source of 1, of which the source is so many.
    """
    source = float(fields["source"])
    if source == 0.0 or not along.any():
        return np.zeros_like(along)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        logarithmic = np.asarray(source * (along / fields["permeability"]))
    largest = float(np.max(np.abs(logarithmic)))
    return logarithmic if _SMALLEST_DIRECTION < largest < math.inf else np.full_like(along, math.nan)


@contextmanager
def _certifiable(fields: Fields, tolerance: float | None) -> Iterator[None]:
    """Tells whoever asks that a tolerance is out of reach."""
    try:
        yield
    except (certified_answer.OutOfReach, multigrid.Singular) as error:
        raise _not_certifiable(fields, tolerance, str(error)) from error


def _not_certifiable(fields: Fields, tolerance: float | str | None, reason: str) -> NotCertifiable:
    low, high = float(fields["permeability"].min()), float(fields["permeability"].max())
    asked = "a bound" if tolerance is None else f"a tolerance of {tolerance}"
    return NotCertifiable(
        f"{asked} is out of float64's reach for a permeability of contrast {high / low:.3g}: {reason}; ask "
        "for a larger tolerance, or lower the contrast"
    )


def _bound_of_nothing(pressure: Float64[np.ndarray, "y x"]) -> ErrorBound:
    """The bound where the solution is 0."""
    error = math.inf if pressure.any() else 0.0
    return ErrorBound(
        "guaranteed",
        "energy",
        error,
        error,
        error,
        0,
        l2_lower=error,
        l2_upper=error,
        max_lower=error,
        max_upper=error,
    )


def _cannot_solve(fields: Fields, reason: str, way_out: str) -> CannotSolve:
    low, high = float(fields["permeability"].min()), float(fields["permeability"].max())
    return CannotSolve(
        f"permeability from {low:.3g} to {high:.3g} {PERMEABILITY.unit} (contrast {high / low:.3g}) with "
        f"source {float(fields['source']):.3g} {SOURCE.unit} is beyond float64: {reason}; {way_out}"
    )
