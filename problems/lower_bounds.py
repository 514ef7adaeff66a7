"""Lower bounds of the error of a state that cost nothing but a look at it.

Let q be the solution and x any state in its place.

* Nothing passes the walls and mass is conserved: ``mean|x - q| >= |mean(x - q)| = |mass(x) - mass(start)| /
  area``.
* The initial state is the same after each transformation g of a group of symmetries of the problem, so the
  solution is, where it is unique. With the mean ``P x`` of all ``g x``, which is the orthogonal projection on
  what the group leaves alone, ``q = P q`` and by Pythagoras ``||x - q||^2 = ||P x - q||^2 + ||x - P x||^2 >=
  ||x - P x||^2``.

Both hold for the equations and for every scheme that conserves mass or shares the symmetry; neither says how
large the error is at most.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from problems.evolution import EvolutionProblem

# [.. y x] by name
State = Mapping[str, NDArray[np.floating]]


@final
class Symmetry(NamedTuple):
    """A symmetry of a rectangle: mirrored along y, along x, or both."""

    along_y: bool
    along_x: bool


# beside none at all
MIRRORS = (Symmetry(True, False), Symmetry(False, True), Symmetry(True, True))


def symmetries(problem: EvolutionProblem, state: State) -> tuple[Symmetry, ...]:
    """Those, beside none at all, after which the state [y x] is what it was, to the last bit.

    Not looked for are those that exchange y and x: a scheme that is split into directions does not share
    them.
    """
    return tuple(each for each in MIRRORS if _same(state, transformed(problem, state, each)))


def least_rms_error(
    problem: EvolutionProblem, state: State, group: Sequence[Symmetry]
) -> NDArray[np.float64]:
    """Root mean square of ``x - P x`` over all fields and cells, of each state [.. y x].

    Args:
        problem: says which fields are the components of a vector.
        state: is to be judged.
        group: what ``symmetries`` found of the initial state.
    """
    images = [transformed(problem, state, each) for each in group]
    squares = [
        np.mean((values - _mean([values, *(image[name] for image in images)])) ** 2, axis=(-2, -1))
        for name, values in ((name, np.asarray(each, np.float64)) for name, each in state.items())
    ]
    return np.asarray(np.sqrt(np.mean(squares, axis=0)))


def transformed(problem: EvolutionProblem, state: State, by: Symmetry) -> dict[str, NDArray[np.floating]]:
    """A state after a symmetry: its fields in other places, components of vectors turned as well."""
    along_x = {name for name, _ in problem.vectors}
    along_y = {name for _, name in problem.vectors}
    found = {}
    for name, values in state.items():
        reversed_ = (by.along_x and name in along_x) != (by.along_y and name in along_y)
        mirrored = values[..., :: -1 if by.along_y else 1, :: -1 if by.along_x else 1]
        found[name] = -mirrored if reversed_ else mirrored
    return found


def _same(state: State, other: State) -> bool:
    return all(np.array_equal(values, other[name]) for name, values in state.items())


def _mean(values: Sequence[NDArray[np.floating]]) -> NDArray[np.float64]:
    return np.asarray(sum(each.astype(np.float64) for each in values) / len(values))
