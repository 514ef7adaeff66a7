"""The contract of a steady problem: reference solver, residual, error bound."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

from problems.fields import Fields
from problems.grid import Grid
from problems.problem import Problem


class CannotSolve(ValueError):
    """The reference solver has no answer that can be trusted for these fields."""


@dataclass(frozen=True)
class Solution:
    """What a reference solver found.

    Attributes:
        fields: the output fields.
        iterations: iterations of the solver, 0 for a direct one.
        residual: relative residual, ||b - A u||_2 / ||b||_2, recomputed from the answer.
        method: algorithm that produced the answer.
        scheme: id of the discrete operator it solves.
    """

    fields: Fields
    iterations: int
    residual: float
    method: Literal["multigrid-cg", "direct"]
    scheme: str


@dataclass(frozen=True)
class ErrorBound:
    """How far an answer is from the exact solution of its scheme, relative to that solution.

    Attributes:
        kind: ``guaranteed``: ``lower <= error <= upper`` holds for every input.
        norm: the norm that ``lower`` and ``upper`` speak of.
        lower: lower bound of the relative error.
        upper: upper bound of the relative error.
        l2_estimate: estimate of the relative L2 error, without guarantee.
        steps: solver steps spent on the bound.
    """

    kind: Literal["guaranteed"]
    norm: Literal["energy"]
    lower: float
    upper: float
    l2_estimate: float
    steps: int


class SteadyProblem(Problem):
    """A boundary value problem with its reference solver."""

    @abstractmethod
    def solve(
        self, fields: Fields, grid: Grid, scheme: str | None = None, tolerance: float = 1e-10
    ) -> Solution:
        """Solution of the discrete problem to a relative residual of ``tolerance``.

        Raises:
            InvalidField: a field breaks one of its rules.
            CannotSolve: float64 does not carry the problem.
        """

    @abstractmethod
    def residual(self, fields: Fields, solution: Fields, grid: Grid, scheme: str | None = None) -> Fields:
        """What is left of the equation when ``solution`` is inserted, per cell."""

    @abstractmethod
    def error_bound(
        self,
        fields: Fields,
        solution: Fields,
        grid: Grid,
        scheme: str | None = None,
        rounding: float = 0.0,
    ) -> ErrorBound:
        """Bound of the error of ``solution``, once its values are rounded by the relative ``rounding``."""
