"""How far each frame of a rollout is from one step of the reference solver from the frame before it.

``d_n = ||x_(n+1) - Phi(x_n)||``, Phi the reference solver over one frame interval, ``||.||`` the root mean
square over all fields and cells. It costs one frame of the reference solver each, so that all of them cost as
much as a rollout of the solver itself: a sample of frames is an *estimate* of how much goes wrong in a step.

Where two solutions part no faster than ``e^(L t)`` (``EvolutionProblem.growth``), all of them together are a
bound: errors ``E_n = ||x_n - q(t_n)||`` obey ``E_(n+1) <= e^(L dt) E_n + d_n`` (Gronwall). For
diffusion-reaction let ``w`` and ``z`` be the differences of u and v of two states. Then
``<w, f_u - f_u'> + <z, f_v - f_v'> <= <w, w>``: diffusion only loses, the cubes lose, the terms ``-z w`` and
``w z`` cancel, and ``-<z, z>`` is left out, so that ``L = 1 / s``. It holds for the flow of the discrete
equations; ``d_n`` has it up to what the solver's own time steps miss. Real errors grow much less: it is of
use over some ten frames.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np

from problems.evolution import EvolutionProblem
from problems.fields import Fields
from problems.grid import Grid


def one_step_defect(
    problem: EvolutionProblem,
    before: Fields,
    after: Fields,
    grid: Grid,
    scheme: str | None = None,
    walls: str | None = None,
    frame: int = 0,
) -> float:
    """``d_n`` of a frame and the one after it.

    Args:
        problem: the problem.
        before: the state at ``frame``.
        after: what was put in the place of the next one.
        grid: of the states.
        scheme: one of the problem's ``schemes``.
        walls: one of its ``walls``.
        frame: number of the frame.

    Raises:
        InvalidField: a field breaks one of its rules.
        CannotSolve: the solver has no next frame.
    """
    (stepped,) = islice(problem.frames(before, grid, scheme, walls, frame), 1)
    return root_mean_square_difference(after, stepped)


def root_mean_square_difference(one: Fields, other: Fields) -> float:
    """``||one - other||`` over all fields and cells."""
    squares = [np.mean((np.asarray(one[name], np.float64) - values) ** 2) for name, values in other.items()]
    return float(np.sqrt(np.mean(squares)))


def root_mean_square(fields: Fields) -> float:
    """``||fields||`` over all fields and cells."""
    return root_mean_square_difference(fields, {name: np.zeros(1) for name in fields})


def sampled_frames(frames: int, count: int, seed: int) -> Sequence[int]:
    """``count`` different frames of 0, ..., ``frames`` - 1, in order."""
    chosen = np.random.default_rng(seed).choice(frames, size=min(count, frames), replace=False)
    return [int(frame) for frame in np.sort(chosen)]


def exponential_bounds(
    defects: Iterable[float], growth: float, interval: float, start: float = 0.0
) -> list[float]:
    """``E_1``, ``E_2``, ... from ``d_0``, ``d_1``, ...: bounds of the error of each frame.

    Args:
        defects: of every frame from the first one on; from one that is NaN on, so are the bounds.
        growth: of the problem [1/s].
        interval: time between two frames [s].
        start: error of the state that the rollout begins with.
    """
    found, error = [], start
    for defect in defects:
        error = math.exp(growth * interval) * error + defect
        found.append(error)
    return found
