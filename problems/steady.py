"""The contract of a steady problem: reference solver, residual, error bound."""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

from problems.fields import Fields
from problems.grid import Grid
from problems.problem import Problem
from problems.quantity import CertifiedQuantity, Quantity
from problems.sensitivity import Gradients, Tangents

Norm = Literal["energy", "l2", "pointwise"]

# a bound is two-sided when its lower end is at most this fraction below its upper one
GAP = 0.05


class CannotSolve(ValueError):
    """The reference solver has no answer that can be trusted for these fields."""


class Abandoned(Exception):
    """Whoever asked has no use for the answer any more: the solver stopped before its next step."""


GoOn = Callable[[], bool]


def always() -> bool:
    """Somebody waits, however long it takes."""
    return True


class NotCertifiable(CannotSolve):
    """No answer with a guaranteed error within the tolerance can be had in float64."""


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
    """How far an answer is from the exact solution, relative to that solution.

    Attributes:
        kind: ``guaranteed``: ``lower <= error <= upper`` holds for every input.
        norm: the norm that ``lower`` and ``upper`` speak of.
        lower: lower bound of the relative error.
        upper: upper bound of the relative error.
        l2_estimate: estimate of the relative L2 error, without guarantee.
        steps: solver steps spent on the bound.
        l2_lower: lower bound of the relative L2 error; 0 when there is none.
        l2_upper: upper bound of the relative L2 error; infinite when there is none.
        max_lower: lower bound of the largest error of a cell over the largest value.
        max_upper: upper bound of the same.
        floor: the part of ``lower`` and ``upper`` that stands for the rounding of numbers. Two sides cannot
            come closer than twice this.
        reference: ``discrete``: the exact solution is that of the scheme; ``pde``: that of the equation.
    """

    kind: Literal["guaranteed"]
    norm: Literal["energy"]
    lower: float
    upper: float
    l2_estimate: float
    steps: int
    l2_lower: float = 0.0
    l2_upper: float = math.inf
    max_lower: float = 0.0
    max_upper: float = math.inf
    floor: float = 0.0
    reference: Literal["discrete", "pde"] = "discrete"

    @property
    def two_sided(self) -> bool:
        """Whether ``lower`` and ``upper`` are within 5 % of each other."""
        return self.upper - self.lower <= GAP * self.upper

    def sides(self, norm: Norm) -> tuple[float, float]:
        """Lower and upper bound of the relative error in a norm."""
        return {
            "energy": (self.lower, self.upper),
            "l2": (self.l2_lower, self.l2_upper),
            "pointwise": (self.max_lower, self.max_upper),
        }[norm]


@dataclass(frozen=True)
class Refined:
    """An answer that meets a tolerance, with its bound.

    Attributes:
        fields: the output fields.
        bound: bound of their error, within the tolerance where that is a number; against the equation where
            it is ``discretization``.
        discrete: bound of their error as a solution of the scheme.
        iterations: iterations of the solver, 0 for a direct one.
        method: what made the answer; ``start``: the start met the tolerance as it was.
        from_start: whether the solver began at the start that was offered.
        scheme: id of the discrete operator.
    """

    fields: Fields
    bound: ErrorBound
    discrete: ErrorBound
    iterations: int
    method: Literal["multigrid-cg", "direct", "start"]
    from_start: bool
    scheme: str


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

    @abstractmethod
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
        """Bound whose sides are within 5 % in ``norm``, unless rounding hides the error.

        The fewest solver steps that do are taken, ten at most, then the direct solver. Sides closer than
        twice ``floor`` cannot be had: the error of an answer that is exact to rounding is known to be small,
        not how small. ``go_on`` is asked before each step, here and below.

        Raises:
            InvalidField: a field breaks one of its rules.
            Abandoned: ``go_on`` said no.
        """

    @abstractmethod
    def pde_bound(
        self,
        fields: Fields,
        solution: Fields,
        grid: Grid,
        scheme: str | None = None,
        rounding: float = 0.0,
    ) -> ErrorBound:
        """Bound of the distance to the solution of the equation itself, coefficients constant in a cell."""

    @abstractmethod
    def refine(
        self,
        fields: Fields,
        start: Fields | None,
        grid: Grid,
        scheme: str | None = None,
        tolerance: float | Literal["discretization"] = 1e-6,
        go_on: GoOn = always,
    ) -> Refined:
        """An answer whose guaranteed relative energy error is within ``tolerance``.

        ``discretization`` asks for an answer whose error as a solution of the scheme is at most a tenth of
        its error against the equation. ``start`` is an answer to begin at, where its bound shows that this
        helps.

        Raises:
            InvalidField: a field breaks one of its rules.
            NotCertifiable: the tolerance cannot be met in float64.
            Abandoned: ``go_on`` said no.
        """

    @abstractmethod
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
        """Gradients of functions J of the solution u with respect to the inputs, from ``dJ / du`` per cell.

        ``tolerance`` bounds the relative energy error of each solve; without one, a few steps are taken.

        Raises:
            InvalidField: a field breaks one of its rules.
            NotCertifiable: the tolerance cannot be met in float64.
            Abandoned: ``go_on`` said no.
        """

    @abstractmethod
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
        """Derivatives of the solution in k directions of the inputs, first axis k; those left out are 0.

        Raises:
            InvalidField: a field or a direction breaks one of its rules.
            NotCertifiable: the tolerance cannot be met in float64.
            Abandoned: ``go_on`` said no.
        """

    @abstractmethod
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
        """Quantities of interest with guaranteed intervals, corrected by adjoint solutions.

        ``tolerance`` is the largest half width over the value; without one, a few solver steps are taken.

        Raises:
            InvalidField: a field breaks one of its rules.
            ValueError: a quantity is of a point outside the grid.
            NotCertifiable: the tolerance cannot be met in float64.
            Abandoned: ``go_on`` said no.
        """
