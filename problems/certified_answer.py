"""Answers whose guaranteed error is within a tolerance.

The solver begins at the start that is offered, a surrogate's answer, where the certificate of that shows an
energy error below that of 0, and at full multigrid otherwise. It goes on until the guaranteed bound of the
relative energy error is within the tolerance; or, against the equation, until the error left by the solver is
a tenth of the whole (``pde_bound``).
"""

import math
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
from jaxtyping import Float64

from problems import error_bound, pde_bound, refinement
from problems.assessment import Assessment
from problems.linear_system import LinearSystem
from problems.refinement import Approximation
from problems.steady import ErrorBound

Values = Float64[np.ndarray, "y x"]


class OutOfReach(ArithmeticError):
    """The tolerance cannot be met in float64.

    Attributes:
        reached: the bound of the best answer, infinite where there is none.
    """

    def __init__(self, reached: float) -> None:
        super().__init__(f"the best bound is {reached:.1g}")
        self.reached = reached


@final
@dataclass(frozen=True)
class CertifiedAnswer:
    """An answer within its tolerance.

    Attributes:
        values: the answer.
        bound: its bound, against the equation where that was asked for.
        discrete: its bound against the scheme.
        iterations: solver steps.
        method: what made it.
        from_start: whether the solver began at the start that was offered.
    """

    values: Values
    bound: ErrorBound
    discrete: ErrorBound
    iterations: int
    method: Literal["multigrid-cg", "direct", "start"]
    from_start: bool


def begin(system: LinearSystem, start: Values | None) -> tuple[Values | None, Assessment | None]:
    """Where to begin, and the assessment of the start where that is it."""
    if start is not None and np.isfinite(start).all():
        assessed = system.assess(start)
        if error_bound.relative_upper(system, assessed) < 1:
            return start, assessed
    if system.levels is not None and np.isfinite(values := system.levels.full_multigrid()).all():
        return values, None
    return None, None


def refine(
    system: LinearSystem, start: Values | None, tolerance: float | Literal["discretization"]
) -> CertifiedAnswer:
    """The certified answer.

    Raises:
        OutOfReach: the tolerance cannot be met in float64.
        Singular: the direct solver had to be used, and has no answer in float64.
        Abandoned: ``go_on`` said no.
    """
    values, assessed = begin(system, start)

    def met(assessed: Assessment) -> bool:
        if tolerance == "discretization":
            return pde_bound.stops(system, assessed)
        return error_bound.relative_upper(system, assessed) <= tolerance

    if assessed is not None and met(assessed):
        found = Approximation(assessed, 0, "start")
    else:
        # against the equation, asking is worth its price after every step
        expected = math.inf if tolerance == "discretization" else tolerance
        found = refinement.reach(system, system.source, values, expected, met)
    discrete = error_bound.of_assessed(system, found.assessed, 0.0)
    if not met(found.assessed):
        raise OutOfReach(discrete.upper)
    bound = discrete
    if tolerance == "discretization":
        bound = pde_bound.bound(system, found.assessed, discrete, 0.0)
    from_start = assessed is not None and found.method != "direct"
    return CertifiedAnswer(found.assessed.values, bound, discrete, found.iterations, found.method, from_start)
