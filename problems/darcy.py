"""Darcy flow: the pressure p [Pa] of a fluid in a porous medium with a uniform source f [1/s].

    -div(a grad p) = f   on (0, Lx) x (0, Ly),      p = 0 on the walls

a [m^2/(Pa s)] is the permeability of the medium over the viscosity of the fluid, its mobility; -a grad p is
the Darcy velocity [m/s]; f is the volume of fluid produced per volume and time. p is linear in f, and
inversely proportional to a constant factor of a.

Discretised by two-point-flux finite volumes (``two_point_flux``), solved by multigrid-preconditioned
conjugate gradients (``multigrid``).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, final

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

from problems import certified_answer, darcy_derivatives, error_bound, multigrid, pde_bound, two_point_flux
from problems.darcy_system import (
    PERMEABILITY,
    PRESSURE,
    SOURCE,
    cannot_solve,
    discretise,
    pressure_of,
    system,
)
from problems.fields import Fields
from problems.grid import Grid
from problems.permeability import FAMILIES
from problems.quantity import CertifiedQuantity, Quantity
from problems.sensitivity import Gradients, Tangents
from problems.steady import ErrorBound, GoOn, Norm, Refined, Solution, SteadyProblem, always
from problems.two_point_flux import SCHEMES

__all__ = ["PERMEABILITY", "PRESSURE", "SOURCE", "Darcy"]

# rounding may leave the direct solver more than the tolerance: up to this relative residual, its answer
# still counts
_USABLE_RESIDUAL = 1e-6


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
        discrete, faces = discretise(fields, grid, scheme)
        scale = float(fields["source"]) / float(np.max(fields["permeability"]))
        if scale == 0.0:
            return Solution({"pressure": np.zeros(grid.shape)}, 0, 0.0, "direct", discrete.id)
        # what overflows is refused below
        with np.errstate(over="ignore", invalid="ignore"):
            try:
                found = multigrid.solve(faces, two_point_flux.right_hand_side(1.0, grid), discrete, tolerance)
            except multigrid.Singular as error:
                raise cannot_solve(fields, str(error), "lower the contrast") from error
            pressure = found.values * scale
        _require_finite(pressure, fields)
        if not found.residual <= max(tolerance, _USABLE_RESIDUAL):
            left = f"a relative residual of {found.residual:.1g} is left"
            raise cannot_solve(fields, left, "lower the contrast, or allow a larger tolerance")
        return Solution({"pressure": pressure}, found.iterations, found.residual, found.method, discrete.id)

    def residual(self, fields: Fields, solution: Fields, grid: Grid, scheme: str | None = None) -> Fields:
        """``-div(a grad p) - f`` per cell [1/s]."""
        _, faces = discretise(fields, grid, scheme)
        outflow = two_point_flux.apply(faces, pressure_of(solution, grid))
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
        at = system(fields, grid, scheme)
        if at.unit == 0.0:
            return _bound_of_nothing(pressure_of(solution, grid))
        return error_bound.bound(at.equations, at.scaled(solution), rounding)

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
        at = system(fields, grid, scheme, go_on)
        if at.unit == 0.0:
            return _bound_of_nothing(pressure_of(solution, grid))
        return error_bound.certify(at.equations, at.scaled(solution), rounding, norm)

    def pde_bound(
        self,
        fields: Fields,
        solution: Fields,
        grid: Grid,
        scheme: str | None = None,
        rounding: float = 0.0,
    ) -> ErrorBound:
        """Guaranteed bound of the energy error against the equation, permeability constant in each cell."""
        at = system(fields, grid, scheme)
        if at.unit == 0.0:
            return replace(_bound_of_nothing(pressure_of(solution, grid)), reference="pde")
        assessed = at.equations.assess(at.scaled(solution))
        discrete = error_bound.of_assessed(at.equations, assessed, rounding)
        return pde_bound.bound(at.equations, assessed, discrete, rounding)

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
        at = system(fields, grid, scheme, go_on)
        if at.unit == 0.0:
            zero = np.zeros(grid.shape)
            none = _bound_of_nothing(zero)
            return Refined({"pressure": zero}, none, none, 0, "direct", False, at.equations.scheme.id)
        with at.within(tolerance):
            found = certified_answer.refine(at.equations, at.start(start), tolerance)
        pressure = found.values * at.unit
        _require_finite(pressure, fields)
        return Refined(
            {"pressure": pressure},
            found.bound,
            found.discrete,
            found.iterations,
            found.method,
            found.from_start,
            at.equations.scheme.id,
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
        at = system(fields, grid, scheme, go_on)
        return darcy_derivatives.adjoint(at, cotangents, start, tolerance)

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
        at = system(fields, grid, scheme, go_on)
        return darcy_derivatives.tangent(at, directions, start, tolerance)

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
        at = system(fields, grid, scheme, go_on)
        return darcy_derivatives.quantities(at, wanted, start, tolerance)


def _require_finite(pressure: Float64[np.ndarray, "y x"], fields: Fields) -> None:
    if not np.isfinite(pressure).all():
        raise cannot_solve(fields, "the pressure is not finite", "choose units in which they are moderate")


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
