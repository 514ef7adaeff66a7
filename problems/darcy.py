"""Darcy flow: the pressure p [Pa] of a fluid in a porous medium with a uniform source f [1/s].

    -div(a grad p) = f   on (0, Lx) x (0, Ly),      p = 0 on the walls

a [m^2/(Pa s)] is the permeability of the medium over the viscosity of the fluid, its mobility; -a grad p is
the Darcy velocity [m/s]; f is the volume of fluid produced per volume and time. p is linear in f, and
inversely proportional to a constant factor of a.

Discretised by two-point-flux finite volumes (``two_point_flux``), solved by multigrid-preconditioned
conjugate gradients (``multigrid``).
"""

import math
from collections.abc import Mapping
from typing import final

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

from problems import error_bound, multigrid, two_point_flux
from problems.fields import Fields, FieldSpec, InvalidField, validate_fields
from problems.grid import Grid
from problems.permeability import FAMILIES
from problems.steady import CannotSolve, ErrorBound, Solution, SteadyProblem
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
        discrete, faces, scale = self._discretise(fields, grid, scheme)
        pressure = self._pressure(solution, grid)
        if scale == 0.0:
            error = math.inf if pressure.any() else 0.0
            return ErrorBound("guaranteed", "energy", error, error, error, 0)
        return error_bound.bound(faces, pressure / scale, grid, discrete, rounding)

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


def _cannot_solve(fields: Fields, reason: str, way_out: str) -> CannotSolve:
    low, high = float(fields["permeability"].min()), float(fields["permeability"].max())
    return CannotSolve(
        f"permeability from {low:.3g} to {high:.3g} {PERMEABILITY.unit} (contrast {high / low:.3g}) with "
        f"source {float(fields['source']):.3g} {SOURCE.unit} is beyond float64: {reason}; {way_out}"
    )
