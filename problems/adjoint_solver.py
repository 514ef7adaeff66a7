"""Derivatives of the discrete solution by adjoint and tangent solves, with guaranteed bounds.

``A(a) u = 1`` in the units of ``linear_system``, J(u) = (c, u), ``A lambda = c``. Then

    dJ / dlog a_i = - sum_f share_{f,i} T_f (G lambda)_f (G u)_f,    share_{f,i} = dlog T_f / dlog a_i,

and the derivative of u in a direction d of log a solves ``A t = -G^T ((sum_i share_{f,i} d_i) T_f G u)``:
both are derivatives of the discrete operator itself, not discretizations of the continuous ones.

Approximations with energy errors eta_u, eta_l give approximate derivatives. As the shares of a face add up to
1, every direction has ``|sum_i share_{f,i} d_i| <= max|d|``, and by Cauchy and Schwarz

    |g . d - g~ . d| <= max|d| (eta_u ||lambda~||_A + eta_l ||u~||_A + eta_u eta_l),
    |(c, u) - (c, u~) - (lambda~, r~)| = |(lambda - lambda~, u - u~)_A| <= eta_u eta_l:

a value that is corrected by the adjoint solution has an error of second order.

Source: Giles, Suli, Acta Numerica 11 (2002), section 2; Pierce, Giles, SIAM Rev. 42 (2000).
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

import numpy as np
from jaxtyping import Float64

from problems import refinement, two_point_flux
from problems.assessment import Assessment
from problems.certified_answer import OutOfReach
from problems.error_bound import Size, measure
from problems.linear_system import LinearSystem
from problems.multigrid import Singular
from problems.refinement import Approximation

# a few steps whose bound is above this leave too little to rely on: then as many as the second number needs
LOOSE, _TIGHT = 0.05, 1e-3
# what the solution is solved to where a derivative is small beside it
_TIGHTEST = 1e-6
# steps on the solution from a good start, and on each further solution from 0
STEPS_OF_SOLUTION = 2
STEPS_OF_ADJOINT = 3
_ROUNDING = 2.0**-48


@final
@dataclass(frozen=True)
class State:
    """The approximation that derivatives are taken at.

    Attributes:
        found: the approximation to u.
        size: of u.
        error: upper bound of its energy error.
    """

    found: Approximation
    size: Size
    error: float


@final
@dataclass(frozen=True)
class Adjoint:
    """What one functional c has.

    Attributes:
        gradient: dJ / dlog a.
        error: of ``gradient . d`` for any direction with max|d| = 1.
        relative_error: ``error`` over a lower bound of ``||lambda||_A ||u||_A``.
        value: (c, u), corrected.
        value_error: upper bound of the error of ``value``.
        steps: solver steps.
    """

    gradient: Float64[np.ndarray, "y x"]
    error: float
    relative_error: float
    value: float
    value_error: float
    steps: int


@final
@dataclass(frozen=True)
class Tangent:
    """The derivative of u in one direction.

    Attributes:
        values: the derivative.
        relative_error: upper bound of its relative energy error.
        steps: solver steps.
    """

    values: Float64[np.ndarray, "y x"]
    relative_error: float
    steps: int


def state(system: LinearSystem, start: Float64[np.ndarray, "y x"] | None, tolerance: float | None) -> State:
    """The solution, to a relative energy error or by a few steps."""

    def error(assessed: Assessment) -> float:
        return error_of_source(system, assessed)

    found = _approach(system, system.source, start, STEPS_OF_SOLUTION, tolerance, error)
    size = measure(system, found.assessed)
    return State(found, size, found.assessed.error(size.upper))


def tighten(system: LinearSystem, at: State) -> State:
    """A state that leaves a derivative that is small beside the solution a useful bound, if there is one."""
    try:
        found = refinement.reach(
            system,
            system.source,
            at.found.assessed.values,
            _TIGHTEST,
            lambda assessed: error_of_source(system, assessed) <= _TIGHTEST,
        )
    except Singular:
        return at
    size = measure(system, found.assessed)
    found = replace(found, iterations=at.found.iterations + found.iterations)
    better = State(found, size, found.assessed.error(size.upper))
    return better if better.error < at.error else at


def _approach(
    system: LinearSystem,
    right_hand_side: Float64[np.ndarray, "y x"],
    start: Float64[np.ndarray, "y x"] | None,
    steps: int,
    tolerance: float | None,
    error: Callable[[Assessment], float],
) -> Approximation:
    """To a relative error within the tolerance; without one by a few steps, or more where these do little."""
    spent = 0
    if tolerance is None:
        found = refinement.spend(system, right_hand_side, start, steps)
        if error(found.assessed) <= LOOSE:
            return found
        start, spent = found.assessed.values, found.iterations
    goal = tolerance or _TIGHT
    found = refinement.reach(system, right_hand_side, start, goal, lambda assessed: error(assessed) <= goal)
    if tolerance is not None and not error(found.assessed) <= tolerance:
        raise OutOfReach(error(found.assessed))
    return replace(found, iterations=spent + found.iterations)


def error_of_source(system: LinearSystem, assessed: Assessment) -> float:
    """Upper bound of the relative energy error of an approximation to u."""
    size = measure(system, assessed)
    return min(_ratio(assessed.error(size.upper), size.lower), assessed.largest + _ROUNDING)


def adjoint(
    system: LinearSystem,
    at: State,
    functional: Float64[np.ndarray, "y x"],
    tolerance: float | None,
) -> Adjoint:
    """Gradient and value of one functional."""
    scale = float(np.max(np.abs(functional)))
    if scale == 0.0:
        return Adjoint(np.zeros_like(functional), 0.0, 0.0, 0.0, 0.0, 0)
    unit = functional / scale
    found = _solve(system, at, unit, tolerance)
    solution, dual = at.found.assessed, found.assessed
    error = dual.error(at.size.upper)
    least = max(dual.energy - error, dual.least_size, 0.0)
    gradient = _gradient(system, dual.values, solution.values)
    bound = at.error * dual.energy + error * solution.energy + at.error * error
    bound += _ROUNDING * dual.energy * solution.energy
    value = float(np.sum(unit * solution.values) + np.sum(dual.values * solution.residual))
    uncertain = at.error * error + _ROUNDING * solution.energy * dual.energy
    uncertain += solution.rounding * at.size.upper * dual.energy
    terms = np.sum(np.abs(unit * solution.values)) + np.sum(np.abs(dual.values * solution.residual))
    uncertain += 4 * unit.size * sys.float_info.epsilon * float(terms)
    return Adjoint(
        scale * gradient,
        _known(scale * bound),
        _ratio(bound, least * at.size.lower),
        scale * value,
        _known(scale * uncertain),
        found.iterations,
    )


def tangent(
    system: LinearSystem,
    at: State,
    direction: Float64[np.ndarray, "y x"],
    of_source: float,
    tolerance: float | None,
) -> Tangent:
    """The derivative of u for ``direction`` of log a and ``of_source`` of the source, which is 1."""
    solution = at.found.assessed
    right_hand_side, terms = _tangent_source(system, solution.values, direction)
    right_hand_side += of_source
    scale = float(np.max(np.abs(right_hand_side)))
    if scale == 0.0 and not direction.any():
        return Tangent(np.zeros_like(direction), 0.0, 0)
    if not 0 < scale < math.inf:
        if tolerance is not None:
            raise OutOfReach(math.inf)
        return Tangent(np.zeros_like(direction), math.inf, 0)
    found = _solve(system, at, right_hand_side / scale, tolerance)
    error = found.assessed.error(at.size.upper)
    error += (float(np.max(np.abs(direction))) * at.error + _ROUNDING * terms * at.size.upper) / scale
    energy = found.assessed.energy
    return Tangent(scale * found.assessed.values, _ratio(error, energy - error), found.iterations)


def _solve(
    system: LinearSystem, at: State, right_hand_side: Float64[np.ndarray, "y x"], tolerance: float | None
) -> Approximation:
    def error(assessed: Assessment) -> float:
        return relative_error(assessed, at.size.upper)

    return _approach(system, right_hand_side, None, STEPS_OF_ADJOINT, tolerance, error)


def relative_error(assessed: Assessment, size_of_source: float) -> float:
    """Upper bound of the relative energy error of an approximation for any right-hand side."""
    error = assessed.error(size_of_source)
    return _ratio(error, max(assessed.energy - error, assessed.least_size))


def _gradient(
    system: LinearSystem, dual: Float64[np.ndarray, "y x"], solution: Float64[np.ndarray, "y x"]
) -> Float64[np.ndarray, "y x"]:
    a, share, faces = system.permeability, system.scheme.share, system.faces
    product, of_solution = two_point_flux.differences(dual), two_point_flux.differences(solution)
    product.x[:] *= faces.x * of_solution.x
    product.y[:] *= faces.y * of_solution.y
    gradient = np.zeros_like(a)
    gradient[:, 1:] -= product.x[:, 1:-1] * share(a[:, 1:], a[:, :-1])
    gradient[:, :-1] -= product.x[:, 1:-1] * share(a[:, :-1], a[:, 1:])
    gradient[1:] -= product.y[1:-1] * share(a[1:], a[:-1])
    gradient[:-1] -= product.y[1:-1] * share(a[:-1], a[1:])
    # a wall face has one cell
    gradient[:, 0] -= product.x[:, 0]
    gradient[:, -1] -= product.x[:, -1]
    gradient[0] -= product.y[0]
    gradient[-1] -= product.y[-1]
    return gradient


def _tangent_source(
    system: LinearSystem, solution: Float64[np.ndarray, "y x"], direction: Float64[np.ndarray, "y x"]
) -> tuple[Float64[np.ndarray, "y x"], float]:
    """``-G^T (dT G u)`` and the largest sum of the absolute values that it adds up."""
    a, share, faces = system.permeability, system.scheme.share, system.faces
    flux = two_point_flux.differences(solution)
    flux.x[:] *= faces.x
    flux.y[:] *= faces.y
    flux.x[:, 1:-1] *= (
        share(a[:, 1:], a[:, :-1]) * direction[:, 1:] + share(a[:, :-1], a[:, 1:]) * direction[:, :-1]
    )
    flux.y[1:-1] *= share(a[1:], a[:-1]) * direction[1:] + share(a[:-1], a[1:]) * direction[:-1]
    flux.x[:, 0] *= direction[:, 0]
    flux.x[:, -1] *= direction[:, -1]
    flux.y[0] *= direction[0]
    flux.y[-1] *= direction[-1]
    outflow = flux.x[:, :-1] - flux.x[:, 1:] + flux.y[:-1] - flux.y[1:]
    size_x, size_y = np.abs(flux.x), np.abs(flux.y)
    terms = size_x[:, :-1] + size_x[:, 1:] + size_y[:-1] + size_y[1:]
    return -outflow, float(terms.max())


def _known(error: float) -> float:
    return math.inf if math.isnan(error) else error


def _ratio(part: float, whole: float) -> float:
    return part / whole if part < math.inf and 0 < whole < math.inf else math.inf
