"""Approximations to the solution of ``A u = c`` that are as good as was asked for, or an honest refusal.

Multigrid-preconditioned conjugate gradients, by number of steps or until a guaranteed bound of the energy
error says that the answer is good enough. What an iteration is expected to have reached is read off the
energies that its steps remove; the bound is only computed when that promises success. Past
``multigrid.MAXIMUM_ITERATIONS`` steps, or when they lead nowhere, the sparse direct solver takes over, with
iterative refinement; its answers are judged by the same bound.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
from jaxtyping import Float64

from problems.assessment import Assessment
from problems.linear_system import LinearSystem
from problems.multigrid import MAXIMUM_ITERATIONS, ConjugateGradients, Singular

# the first step of a start that is as good as the coarse grids removes about this part of the error
_FIRST_CONTRACTION = 0.3
# steps that change less than this part of the solution lead nowhere
_STAGNATION = 1e-15
_ROUNDS = 3


@final
@dataclass(frozen=True)
class Approximation:
    """An approximation and what is known of it.

    Attributes:
        assessed: its assessment.
        iterations: solver steps since the start, 0 for the direct solver.
        method: what made it; ``start``: the start itself.
    """

    assessed: Assessment
    iterations: int
    method: Literal["multigrid-cg", "direct", "start"]


def spend(
    system: LinearSystem,
    right_hand_side: Float64[np.ndarray, "y x"],
    start: Float64[np.ndarray, "y x"] | None,
    steps: int,
) -> Approximation:
    """What a number of steps makes of ``start``, or of 0; directly where there is no multigrid.

    Raises:
        Singular: the direct solver had to be used, and has no answer in float64.
        Abandoned: ``go_on`` said no.
    """
    if system.levels is not None:
        iteration = _begin(system, right_hand_side, start)
        system.require_interest()
        iteration.advance(steps)
        if np.isfinite(values := iteration.values).all():
            return Approximation(system.assess(values, right_hand_side), iteration.steps, "multigrid-cg")
    values = system.factorization.solve(right_hand_side)
    return Approximation(system.assess(values, right_hand_side), 0, "direct")


def reach(
    system: LinearSystem,
    right_hand_side: Float64[np.ndarray, "y x"],
    start: Float64[np.ndarray, "y x"] | None,
    tolerance: float,
    met: Callable[[Assessment], bool],
) -> Approximation:
    """The first approximation that is ``met``, or the best one of the direct solver.

    Args:
        system: the equations.
        right_hand_side: c.
        start: where to begin, 0 otherwise.
        tolerance: expected relative energy error from which on asking ``met`` is worth its price.
        met: whether an approximation is good enough.

    Raises:
        Singular: the direct solver had to be used, and has no answer in float64.
        Abandoned: ``go_on`` said no.
    """
    if system.levels is not None:
        iteration = _begin(system, right_hand_side, start)
        found = _iterate(system, right_hand_side, iteration, tolerance, met)
        if found is not None:
            return Approximation(found, iteration.steps, "multigrid-cg")
    assessed = system.assess(system.factorization.solve(right_hand_side), right_hand_side)
    for _ in range(_ROUNDS):
        if met(assessed) or not math.isfinite(assessed.energy):
            break
        better = assessed.values + system.factorization.solve(assessed.residual)
        assessed = system.assess(better, right_hand_side)
    return Approximation(assessed, 0, "direct")


def _begin(
    system: LinearSystem,
    right_hand_side: Float64[np.ndarray, "y x"],
    start: Float64[np.ndarray, "y x"] | None,
) -> ConjugateGradients:
    if system.levels is None:
        raise Singular("there is no multigrid for this grid")
    if start is None:
        return ConjugateGradients(system.levels, right_hand_side)
    return ConjugateGradients(system.levels, right_hand_side - system.apply(start), start)


def _iterate(
    system: LinearSystem,
    right_hand_side: Float64[np.ndarray, "y x"],
    iteration: ConjugateGradients,
    tolerance: float,
    met: Callable[[Assessment], bool],
) -> Assessment | None:
    """The assessment that is ``met``, None when the iteration does not get there."""
    before = math.inf
    for _ in range(MAXIMUM_ITERATIONS):
        system.require_interest()
        taken = iteration.steps
        iteration.advance(1)
        if iteration.steps == taken:
            # nothing is left of the residual, so nothing is gained by going on
            assessed = system.assess(iteration.values, right_hand_side)
            return assessed if met(assessed) else None
        if not 0 <= iteration.removed < math.inf:
            return None
        step = math.sqrt(iteration.removed)
        contraction = _FIRST_CONTRACTION if before == math.inf else min(step / before, 1.0)
        size = system.energy_norm(iteration.values)
        if step * contraction <= tolerance * size:
            assessed = system.assess(iteration.values, right_hand_side)
            if met(assessed):
                return assessed
        if step <= _STAGNATION * size:
            return None
        before = step
    return None
