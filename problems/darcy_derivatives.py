"""Derivatives of Darcy flow, and quantities that are read off it, with guaranteed errors, in physical units.

``adjoint_solver`` says why they hold; it works in the units of ``darcy_system``.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

from problems import adjoint_solver, certified_answer, two_point_flux
from problems.darcy_system import PRESSURE, DarcySystem, not_certifiable, on_grid, pressure_of
from problems.fields import Fields, InvalidField
from problems.functionals import functional
from problems.grid import Grid
from problems.quantity import CertifiedQuantity, Outflow, Quantity
from problems.sensitivity import Gradients, Tangents

# smaller directions may have lost digits to underflow
_SMALLEST_DIRECTION = 1e-290
# tenfold tighter solves for a quantity: float64 ends before
_ROUNDS = 20


def adjoint(
    system: DarcySystem,
    cotangents: Float64[np.ndarray, "k y x"],
    start: Fields | None,
    tolerance: float | None,
) -> Gradients:
    """DJ / d permeability and dJ / d source of k functions J, from dJ / d pressure.

    Raises:
        InvalidField: a cotangent is not of the grid's shape.
        NotCertifiable: the tolerance cannot be met in float64.
    """
    at = _state(system, system.start(start), tolerance)
    found = [_adjoint(system, at, cotangent, tolerance) for cotangent in cotangents]
    unit, per_source = system.unit, system.pressure_per_source
    logarithmic = np.array([unit * one.gradient for one in found]).reshape(-1, *system.equations.grid.shape)
    return Gradients(
        {
            "permeability": logarithmic / system.fields["permeability"],
            # the solution is proportional to the source
            "source": np.array([per_source * one.value for one in found]),
        },
        {"permeability": logarithmic},
        np.array([abs(unit) * one.error for one in found]),
        np.array([one.relative_error for one in found]),
        np.array([per_source * one.value_error for one in found]),
        (at.found.iterations, max((one.steps for one in found), default=0)),
        system.equations.scheme.id,
    )


def tangent(
    system: DarcySystem,
    directions: Mapping[str, NDArray[np.float64]],
    start: Fields | None,
    tolerance: float | None,
) -> Tangents:
    """Derivative of the pressure in k directions of permeability and source.

    Raises:
        InvalidField: a direction breaks one of its rules.
        NotCertifiable: the tolerance cannot be met in float64.
    """
    equations, per_source = system.equations, system.pressure_per_source
    of_permeability, of_source = _directions(directions, equations.grid)
    at = _state(system, system.start(start), tolerance)
    along = [
        (_logarithmic(system.fields, one), float(more))
        for one, more in zip(of_permeability, of_source, strict=True)
    ]
    # what overflows has no bound
    with system.within(tolerance), np.errstate(over="ignore", invalid="ignore"):
        found = [adjoint_solver.tangent(equations, at, *one, tolerance) for one in along]
        if tolerance is None and any(one.relative_error > adjoint_solver.LOOSE for one in found):
            at = adjoint_solver.tighten(equations, at)
            found = [adjoint_solver.tangent(equations, at, *one, tolerance) for one in along]
        pressure = np.array([per_source * one.values for one in found]).reshape(-1, *equations.grid.shape)
    relative_error = np.array([one.relative_error for one in found])
    relative_error[~np.isfinite(pressure).all(axis=(1, 2))] = math.inf
    return Tangents(
        {"pressure": pressure},
        relative_error,
        (at.found.iterations, max((one.steps for one in found), default=0)),
        equations.scheme.id,
    )


def quantities(
    system: DarcySystem, wanted: Sequence[Quantity], start: Fields | None, tolerance: float | None
) -> tuple[CertifiedQuantity, ...]:
    """Mean pressure and readings [Pa], outflow [m^2/s], with guaranteed intervals.

    Raises:
        ValueError: a quantity is of a point outside the grid.
        NotCertifiable: the tolerance cannot be met in float64.
    """
    equations, largest, unit = system.equations, system.largest, system.unit
    faces = two_point_flux.Faces(largest * equations.faces.x, largest * equations.faces.y)
    weights = [functional(quantity, faces, equations.grid, equations.scheme) for quantity in wanted]
    offered = system.start(start)
    pressure = None if start is None else pressure_of(start, equations.grid)
    values = _values(system, offered, weights, tolerance)
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
    system: DarcySystem,
    start: Float64[np.ndarray, "y x"] | None,
    weights: Sequence[Float64[np.ndarray, "y x"]],
    tolerance: float | None,
) -> list[tuple[float, float]]:
    """Values and half widths of functionals, by solves as exact as the tolerance needs."""
    _require_positive(tolerance)
    # the error of a value is the product of two
    needed = None if tolerance is None else min(0.1 * math.sqrt(tolerance), 0.1)
    for _ in range(_ROUNDS):
        at = _state(system, start, needed)
        found = [_adjoint(system, at, weight, needed) for weight in weights]
        if tolerance is None or all(one.value_error <= tolerance * abs(one.value) for one in found):
            return [(one.value, one.value_error) for one in found]
        needed = 0.1 * (needed or 1.0)
        start = at.found.assessed.values
    raise not_certifiable(system.fields, tolerance, "tighter solves do not help")


def _state(
    system: DarcySystem, start: Float64[np.ndarray, "y x"] | None, tolerance: float | None
) -> adjoint_solver.State:
    _require_positive(tolerance)
    with system.within(tolerance):
        values, _ = certified_answer.begin(system.equations, start)
        return adjoint_solver.state(system.equations, values, tolerance)


def _adjoint(
    system: DarcySystem,
    at: adjoint_solver.State,
    cotangent: Float64[np.ndarray, "y x"],
    tolerance: float | None,
) -> adjoint_solver.Adjoint:
    given = on_grid("cotangent", cotangent, system.equations.grid)
    with system.within(tolerance):
        return adjoint_solver.adjoint(system.equations, at, given, tolerance)


def _require_positive(tolerance: float | None) -> None:
    if tolerance is not None and not 0 < tolerance < math.inf:
        raise ValueError(f"tolerance must be positive and finite, got {tolerance:g}")


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
