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

# parts of an error below this one make a bound of it tighter by less than 5 %
_NOTICEABLE = 0.3


@final
@dataclass(frozen=True)
class Correction:
    """A step towards the solution.

    Attributes:
        step: what comes closest to the error.
        least: lower bound of the energy norm of the error, which the step proves.
        solver_step: its part without any multiple of the answer.
    """

    step: Float64[np.ndarray, "y x"]
    least: float
    solver_step: Float64[np.ndarray, "y x"]


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
            Abandoned: ``go_on`` said no.
        """
        self.require_interest()
        return multigrid.Factorization(self.faces)

    def require_interest(self) -> None:
        """Ask before whatever takes long.

        Raises:
            Abandoned: ``go_on`` said no.
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

    def correct(self, assessed: Assessment) -> Correction:
        """A step from an answer towards the solution, and the energy norm of the error that it proves.

        One solver step, and a multiple of the answer itself where it is too large or too small as a whole:
        that part of an error is the one that solver steps find late at high contrast.
        """
        residual = assessed.residual
        directions = (solve(residual) for solve in (self._cycle, self._poisson))
        for direction in directions:
            length, least = assessment.project(self.faces, direction, residual)
            # single precision does not reach beyond a contrast of 1e12
            if least > 0:
                return self._rescaled(assessed, Correction(length * direction, least, length * direction))
        nothing = np.zeros_like(residual)
        return Correction(nothing, 0.0, nothing)

    def _rescaled(self, assessed: Assessment, found: Correction) -> Correction:
        """The best of a step and of the answer together, if the answer's share is worth it."""
        if assessed.off_by_scale > _NOTICEABLE * found.least:
            step, answer = assessment.best_in_plane(self.faces, found.step, assessed)
            together = step * found.step + answer * assessed.values
            length, least = assessment.project(self.faces, together, assessed.residual)
            if least > found.least:
                return Correction(length * together, least, found.step)
        return found

    def _cycle(self, residual: Float64[np.ndarray, "y x"]) -> Float64[np.ndarray, "y x"]:
        return self._poisson(residual) if self.levels is None else self.levels.cycle(residual)

    def _poisson(self, residual: Float64[np.ndarray, "y x"]) -> Float64[np.ndarray, "y x"]:
        return poisson.solve(residual, self.grid, self.scheme)
