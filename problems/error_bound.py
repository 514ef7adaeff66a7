"""Guaranteed bounds of the error of any answer x to ``A u = 1``, relative to the solution u.

Upper bounds are those of ``assessment``. Relative they become by bounds of the size of u: from below,
``||u||_A >= |(1, v)| / ||v||_A`` for every v; from above, ``||u||_A^2 = s^2 + dist^2`` with ``s = (1, x) /
||x||_A`` and ``dist <= ||u - x||_A`` the distance of u from the multiples of x.

Lower bounds need something better than x. For every v, ``||u - x||_A >= |(r, v)| / ||v||_A``: v is one solver
step, with a multiple of x where that helps. For a better answer y,

    ||u - x||_A^2 = (y - x)^T (r_x + r_y) + ||u - y||_A^2,

since ``||e_x||^2 - ||e_y||^2 = (e_x - e_y)^T A (e_x + e_y)``. Whatever made y, this holds: the iteration need
not be a perfect conjugate gradient one, as Hestenes' and Stiefel's sum of decrements would require. y comes
from as many multigrid-preconditioned steps as bring both sides together.

L2 and pointwise: with ``m = max|r_y| < 1``, ``A y >= (1 - m) A u`` and A is an M-matrix, so ``u <= y / (1 -
m)`` and ``|u - y| <= m / (1 - m) y`` in each cell; and by Collatz and Wielandt the smallest eigenvalue of A
is at least ``min(1 / u) >= (1 - m) / max(y)``, so ``||u - y||_2^2 <= max(y) / (1 - m) ||u - y||_A^2``.

If the values leave rounded, to x + e with ``|e_i| <= rho |x_i|``, then ``||e||_A <= rho (sum_f T_f (|x_i| +
|x_j|)^2)^{1/2}`` widens both sides.

Source: as in ``assessment``; Hestenes, Stiefel, J. Res. NBS 49 (1952); Meurant, Tichy, Numer. Algorithms 82
(2019); Collatz, Math. Z. 48 (1942).
"""

import math
import sys
from dataclasses import dataclass, replace
from typing import final

import numpy as np
from jaxtyping import Float64

from problems import assessment
from problems.assessment import Assessment
from problems.linear_system import LinearSystem
from problems.multigrid import ConjugateGradients, Singular
from problems.steady import GAP, ErrorBound, Norm

MAXIMUM_STEPS = 10
# a few units in the last place of float64, for the conversion of the answer to these units
_CONVERSION = 2.0**-50
# the same for the transmissibilities
_COEFFICIENTS = 2.0**-48
# more than rounding changes in any norm of a grid's worth of numbers
_SLACK = 1e-8
# errors above this part of the solution make its size worth a better bound
_LARGE = 0.1
# a step that proves this part of an error is nearly all of it
WHOLE = 0.98
# the squares of larger numbers, and sums of these, may be beyond float64
_MODERATE = 1e150


@final
@dataclass(frozen=True)
class Size:
    """``lower <= ||u||_A <= upper``."""

    lower: float
    upper: float


def bound(system: LinearSystem, answer: Float64[np.ndarray, "y x"], rounding: float) -> ErrorBound:
    """Bound of the relative error of ``answer``, once rounded by ``rounding``, for one Poisson solve."""
    return of_assessed(system, system.assess(answer), rounding)


def of_assessed(system: LinearSystem, assessed: Assessment, rounding: float) -> ErrorBound:
    """The same for an answer that was assessed before."""
    correction = system.correct(assessed)
    size = measure(system, assessed, assessed.values + correction.step)
    least = max(correction.least - assessed.rounding * size.upper, 0.0)
    # a step that proves all of the error is the error; a part of it tells more in L2 if it is the solver's
    whole = least >= WHOLE * assessed.error(size.upper)
    step = correction.step if whole else correction.solver_step
    estimate = _ratio(float(np.linalg.norm(step)), float(np.linalg.norm(assessed.values + step)))
    sides = _sides(assessed, size, (0.0, 0.0), least)
    return _leave(assessed, sides, size, rounding, estimate)


def relative_upper(system: LinearSystem, assessed: Assessment) -> float:
    """The upper bound alone, for numbers that leave in float64."""
    size = measure(system, assessed)
    sides = _sides(assessed, size, (0.0, 0.0), 0.0)
    return _leave(assessed, sides, size, 0.0, math.nan).upper


def certify(
    system: LinearSystem, answer: Float64[np.ndarray, "y x"], rounding: float, norm: Norm
) -> ErrorBound:
    """Bound whose sides are within 5 % in ``norm``, by as few solver steps as that takes, or directly.

    Where the rounding of the numbers is all that can be seen of the error, the sides stay further apart.

    Raises:
        Abandoned: ``go_on`` said no.
    """
    assessed = system.assess(answer)
    found = of_assessed(system, assessed, rounding)
    if _close(found, norm) or _hidden(found):
        return found
    if system.levels is not None:
        iteration = ConjugateGradients(system.levels, assessed.residual, answer)
        for step in range(1, MAXIMUM_STEPS + 1):
            system.require_interest()
            iteration.advance(1)
            found = _compare(system, assessed, iteration.values, rounding, found, step)
            if _close(found, norm) or _hidden(found):
                return found
    return _compare_directly(system, assessed, rounding, found, norm)


def measure(
    system: LinearSystem, assessed: Assessment, better: Float64[np.ndarray, "y x"] | None = None
) -> Size:
    """The size of the solution, from an approximation to it, and a better one where that helps."""
    lower, upper = assessed.least_size, _largest_size(assessed)
    if assessed.largest < 1 and assessed.energy < math.inf:
        lower = max(lower, assessed.energy * (1 - _SLACK) / (1 + assessed.largest))
    if upper * (1 - _LARGE) > lower:
        constant = assessment.constant_solution(system.grid, system.scheme)
        candidates = (constant,) if better is None else (better, constant)
        lower = max(lower, *(assessment.project(system.faces, v, system.source)[1] for v in candidates))
        upper = min(upper, assessment.carried_size(system.faces, system.grid, system.scheme))
    return Size(lower, upper)


def _largest_size(assessed: Assessment) -> float:
    size = math.inf
    if not math.isfinite(assessed.energy):
        return size
    if assessed.rounding < 1:
        size = (assessed.energy + assessed.remainder) / (1 - assessed.rounding)
    if assessed.largest < 1:
        size = min(size, assessed.energy / (1 - assessed.largest))
    # a first bound of the size, put into the error, gives a second one
    if assessed.energy > 0 and math.isfinite(size):
        along = (abs(assessed.work) + assessed.work_slack) / assessed.energy * (1 + _SLACK)
        size = min(size, math.hypot(along, assessed.error(size)) * (1 + _SLACK))
    return math.inf if math.isnan(size) else size


def _compare(
    system: LinearSystem,
    assessed: Assessment,
    better: Float64[np.ndarray, "y x"],
    rounding: float,
    before: ErrorBound,
    steps: int,
) -> ErrorBound:
    """The bound that a better answer gives, where it is tighter than the one before."""
    if not np.isfinite(better).all():
        return before
    second = system.assess(better)
    size = measure(system, second)
    move = better - assessed.values
    product = move * (assessed.residual + second.residual)
    removed = float(np.sum(product))
    slack = (assessed.rounding + second.rounding) * size.upper * system.energy_norm(move)
    slack += 4 * move.size * sys.float_info.epsilon * float(np.sum(np.abs(product)))
    sides = _sides(second, size, (max(removed - slack, 0.0), max(removed + slack, 0.0)), 0.0)
    estimate = _ratio(float(np.linalg.norm(move)), float(np.linalg.norm(better)))
    found = _leave(assessed, sides, size, rounding, estimate)
    remaining = second.error(size.upper)
    found = _in_other_norms(found, assessed.values, second, remaining, rounding)
    return _tighter(replace(found, steps=steps), before)


def _compare_directly(
    system: LinearSystem, assessed: Assessment, rounding: float, before: ErrorBound, norm: Norm
) -> ErrorBound:
    """The same with the direct solver's answer, if it has one."""
    try:
        values = system.factorization.solve(system.source)
    except Singular:
        return before
    steps = before.steps
    found = _compare(system, assessed, values, rounding, before, steps)
    if not _close(found, norm) and np.isfinite(values).all():
        values = values + system.factorization.solve(system.assess(values).residual)
        found = _compare(system, assessed, values, rounding, found, steps)
    return found


def _tighter(found: ErrorBound, before: ErrorBound) -> ErrorBound:
    """Of two bounds of the same error the larger lower and the smaller upper ends."""
    return replace(
        found,
        lower=max(found.lower, before.lower),
        upper=min(found.upper, before.upper),
        l2_lower=max(found.l2_lower, before.l2_lower),
        l2_upper=min(found.l2_upper, before.l2_upper),
        max_lower=max(found.max_lower, before.max_lower),
        max_upper=min(found.max_upper, before.max_upper),
    )


def _sides(second: Assessment, size: Size, removed: tuple[float, float], least: float) -> tuple[float, float]:
    """Bounds of ``||u - x||_A / ||u||_A`` by an answer y that removes a known part of the squared error of x.

    With ``t = ||u - y||_A^2`` the squared error is ``removed + t``, the squared size ``known + t``, ``known =
    2 (1, y) - ||y||_A^2``: their ratio is monotonous in t, which lies between squares of bounds.

    Args:
        second: the assessment of y.
        size: of u.
        removed: bounds of ``||u - x||_A^2 - ||u - y||_A^2``.
        least: lower bound of ``||u - y||_A``.
    """
    remaining = second.error(size.upper)
    # infinity over infinity is not a number, which max and min pass over; a comparison with one is false
    numbers = (remaining, second.energy, least, *map(math.sqrt, removed), math.sqrt(abs(second.work)))
    if not all(number < _MODERATE for number in numbers):
        return 0.0, math.inf
    known = 2 * second.work - second.energy**2
    slack = 2 * second.work_slack + _SLACK * second.energy**2
    ends = (least**2, remaining**2)
    lowest = [(removed[0] + t) / (known + slack + t) for t in ends if known + slack + t > 0]
    highest = [(removed[1] + t) / (known - slack + t) if known - slack + t > 0 else math.inf for t in ends]
    lower = max(math.sqrt(min(lowest, default=0.0)), _quotient(math.sqrt(removed[0] + ends[0]), size.upper))
    upper = min(math.sqrt(max(highest)), _ratio(math.sqrt(removed[1] + ends[1]), size.lower))
    if removed[1] == 0.0:
        # relative to the size of the solution, whatever that is
        upper = min(upper, second.largest)
    return lower * (1 - _COEFFICIENTS) - _COEFFICIENTS, upper * (1 + _COEFFICIENTS) + _COEFFICIENTS


def _leave(
    assessed: Assessment, sides: tuple[float, float], size: Size, rounding: float, estimate: float
) -> ErrorBound:
    """The bound of the numbers once rounded."""
    leaving = _ratio((rounding + _CONVERSION) * assessed.spread, size.lower)
    lower = max(sides[0] - leaving, 0.0) if math.isfinite(leaving) else 0.0
    upper = sides[1] + leaving
    floor = leaving + _ratio(assessed.rounding * size.upper, size.lower)
    return ErrorBound(
        "guaranteed",
        "energy",
        lower,
        math.inf if math.isnan(upper) else upper,
        estimate,
        0,
        floor=math.inf if math.isnan(floor) else floor,
    )


def _in_other_norms(
    found: ErrorBound,
    answer: Float64[np.ndarray, "y x"],
    second: Assessment,
    remaining: float,
    rounding: float,
) -> ErrorBound:
    """Adds L2 and pointwise sides from a better answer with its energy error ``remaining``."""
    better, m = second.values, second.largest
    if not m < 1 or not better.min() > 0:
        return found
    # norms of larger values are infinite
    if not (better.max() < _MODERATE and np.abs(answer).max() < _MODERATE):
        return found
    largest, size, apart = float(better.max()), float(np.linalg.norm(better)), m / (1 - m)
    move, leaving = np.abs(better - answer), (rounding + _CONVERSION) * np.abs(answer)
    left = min(math.sqrt(largest / (1 - m)) * remaining, apart * size) + float(np.linalg.norm(leaving))
    moved, unknown = float(np.linalg.norm(move)), apart * better + leaving
    below, above = 1 - _SLACK, 1 + _SLACK
    return replace(
        found,
        l2_lower=max(moved * below - left * above, 0.0) / (size + left) * below,
        l2_upper=(moved + left) / (size - left) * above if left < size / 2 else math.inf,
        max_lower=max(float(np.max(move * below - unknown * above)), 0.0) * (1 - m) / largest,
        max_upper=float(np.max(move + unknown)) * (1 + m) / largest * above,
    )


def _close(found: ErrorBound, norm: Norm) -> bool:
    lower, upper = found.sides(norm)
    return upper - lower <= GAP * upper < math.inf


def _hidden(found: ErrorBound) -> bool:
    """Whether rounding alone keeps the sides apart."""
    return 2 * found.floor > GAP * found.upper


def _quotient(part: float, whole: float) -> float:
    """``part / whole``, 0 where the whole may be infinite."""
    return part / whole if 0 < whole < math.inf else 0.0


def _ratio(part: float, whole: float) -> float:
    """``part / whole``, infinite where one of them is infinite or not a number, or the whole may be 0."""
    return part / whole if part < math.inf and 0 < whole < math.inf else math.inf
