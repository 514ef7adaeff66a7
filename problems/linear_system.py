"""``A u = c`` of one field, in units in which the source is 1 per cell and the largest permeability 1."""

from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
from jaxtyping import Float64

from problems import assessment, multigrid, poisson, two_point_flux
from problems.assessment import Assessment
from problems.grid import Grid
from problems.steady import Abandoned, GoOn, always
from problems.two_point_flux import Faces, Scheme


@final
@dataclass(frozen=True)
class LinearSystem:
    """The matrix with what solves it, made when it is asked for.

    Attributes:
        permeability: over its largest value.
        faces: transmissibilities.
        grid: the grid.
        scheme: the discrete operator.
        go_on: whether somebody waits for an answer still.
    """

    permeability: Float64[np.ndarray, "y x"]
    faces: Faces
    grid: Grid
    scheme: Scheme
    go_on: GoOn = always

    @cached_property
    def levels(self) -> multigrid.Multigrid | None:
        """Multigrid, None on a grid whose sides cannot be halved often enough."""
        return multigrid.Multigrid(self.faces, self.scheme) if multigrid.suits(self.grid.shape) else None

    @cached_property
    def factorization(self) -> multigrid.Factorization:
        """The sparse factorization.

        Raises:
            Singular: it has none in float64.
            Abandoned: nobody waits any more.
        """
        self.require_interest()
        return multigrid.Factorization(self.faces)

    def require_interest(self) -> None:
        """Ask before whatever takes long.

        Raises:
            Abandoned: nobody waits any more.
        """
        if not self.go_on():
            raise Abandoned

    @property
    def source(self) -> Float64[np.ndarray, "y x"]:
        """The right-hand side of the problem itself."""
        return assessment.ones(self.grid.shape)

    def assess(
        self, values: Float64[np.ndarray, "y x"], right_hand_side: Float64[np.ndarray, "y x"] | None = None
    ) -> Assessment:
        """What is known of the error of ``values``; without a right-hand side, as the problem's solution."""
        given = self.source if right_hand_side is None else right_hand_side
        return assessment.assess(self.faces, self.grid, self.scheme, values, given)

    def apply(self, values: Float64[np.ndarray, "y x"]) -> Float64[np.ndarray, "y x"]:
        """``A x``."""
        return two_point_flux.apply(self.faces, values)

    def energy_norm(self, values: Float64[np.ndarray, "y x"]) -> float:
        """``||x||_A``."""
        return assessment.energy_norm(self.faces, values)

    def correct(self, residual: Float64[np.ndarray, "y x"]) -> tuple[Float64[np.ndarray, "y x"], float]:
        """A direction towards the error that leaves this residual, and the energy norm that it proves.

        Returns:
            The direction times the step length that comes closest to the error, and a lower bound of
            ``||A^{-1} r||_A``.
        """
        directions = (solve(residual) for solve in (self._cycle, self._poisson))
        for direction in directions:
            step, least = assessment.project(self.faces, direction, residual)
            # single precision does not reach beyond a contrast of 1e12
            if least > 0:
                return step * direction, least
        return np.zeros_like(residual), 0.0

    def _cycle(self, residual: Float64[np.ndarray, "y x"]) -> Float64[np.ndarray, "y x"]:
        return self._poisson(residual) if self.levels is None else self.levels.cycle(residual)

    def _poisson(self, residual: Float64[np.ndarray, "y x"]) -> Float64[np.ndarray, "y x"]:
        return poisson.solve(residual, self.grid, self.scheme)
