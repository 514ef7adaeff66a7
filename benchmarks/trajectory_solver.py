"""Reference solvers of evolution problems against SciPy and PyClaw: trajectories on PDEBench's grid.

All start from the same states, cell averages of PDEBench's on a finer grid. Two errors stand beside each
time, both relative L2 of what departs from rest, all fields of the state together, of the first trajectory:

* *to the reference*, on the same grid: the worst frame. For diffusion-reaction the reference integrates the
  same finite volumes with a relative tolerance of 1e-9, so this is the error in time; for shallow water it is
  PyClaw, or else the scheme that reproduces it, so this is how far two good schemes are apart.
* *to the finest*: the mean over the frames compared, against a solution on the finer grid, averaged down: of
  the default scheme for shallow water, of ``fv5-strang-v1`` for diffusion-reaction. The last line names it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from statistics import median
from types import MappingProxyType

import numpy as np
from jaxtyping import Float64

from benchmarks import pyclaw, scipy_trajectory
from benchmarks.cpu_time import cpu_seconds
from problems import EVOLUTION_PROBLEMS, EvolutionProblem, Fields, Grid, coarsen

# the states at all frames after the initial one
Method = Callable[[Fields], list[Fields]]


@dataclass(frozen=True)
class Comparison:
    """What a problem's solvers are compared with.

    Attributes:
        problem: its name.
        others: other solvers by name.
        reference: name and solver that the first error is measured against.
        finest_scheme: the scheme on the finest grid.
        first_frame: the first frame compared with it.
    """

    problem: EvolutionProblem
    others: Mapping[str, Method]
    reference: tuple[str, Method]
    finest_scheme: str
    first_frame: int


def _solve(problem: EvolutionProblem, scheme: str, state: Fields, grid: Grid | None = None) -> list[Fields]:
    return list(islice(problem.frames(state, grid or problem.grid, scheme), problem.frame_count))


def _diffusion_reaction() -> Comparison:
    problem = EVOLUTION_PROBLEMS["diffusion_reaction"]
    return Comparison(
        problem,
        MappingProxyType({"SciPy RK45, PDEBench's tolerances": scipy_trajectory.runge_kutta_45}),
        ("SciPy DOP853, 1e-9", scipy_trajectory.reference),
        "fv5-strang-v1",
        # white noise looks different on every grid until its short waves have gone
        first_frame=10,
    )


def _shallow_water() -> Comparison:
    problem = EVOLUTION_PROBLEMS["shallow_water"]
    others: dict[str, Method] = {"PyClaw classic": pyclaw.trajectory} if pyclaw.is_installed() else {}
    twin = "roe-mc-split-v1"
    reference = (twin, partial(_solve, problem, twin))
    return Comparison(
        problem,
        MappingProxyType(others),
        ("PyClaw classic", pyclaw.trajectory) if others else reference,
        problem.schemes[0],
        first_frame=1,
    )


COMPARISONS: Mapping[str, Callable[[], Comparison]] = MappingProxyType(
    {"shallow_water": _shallow_water, "diffusion_reaction": _diffusion_reaction}
)


def time_trajectories(compare: Callable[[], Comparison], count: int, finest: int) -> Iterator[str]:
    """Lines of the table for ``count`` trajectories and a finest grid of ``finest`` cells per side."""
    comparison = compare()
    problem, (reference, solve_reference) = comparison.problem, comparison.reference
    methods = {scheme: partial(_solve, problem, scheme) for scheme in problem.schemes} | {**comparison.others}
    fine = Grid((finest, finest), problem.grid.extent, problem.grid.origin)
    starts = [problem.sample("pdebench", {}, 0, index, fine) for index in range(count)]
    states = [coarsen(state, problem.grid.shape) for state in starts]
    yield f"{problem.title}, {problem.frame_count} frames at {_size(problem.grid)}, PDEBench's family"
    yield f"CPU seconds per trajectory, medians of {count} interleaved runs; to the reference: {reference}"
    yield f"{'':>36} {'seconds':>9} {'least':>8} {'to the reference':>17} {f'to {_size(fine)}':>12}"
    found = {name: departure(problem, method(states[0])) for name, method in methods.items()}
    times: dict[str, list[float]] = {name: [] for name in methods}
    for state in states:
        for name, method in methods.items():
            times[name].append(cpu_seconds(partial(method, state)))
    exact = departure(problem, solve_reference(states[0]))
    frames = islice(problem.frames(starts[0], fine, comparison.finest_scheme), problem.frame_count)
    best = departure(problem, [coarsen(frame, problem.grid.shape) for frame in frames])
    for name, frames_found in found.items():
        worst = relative_errors(frames_found, exact).max()
        mean = relative_errors(frames_found, best)[comparison.first_frame - 1 :].mean()
        yield f"{name:>36} {median(times[name]):>9.3f} {min(times[name]):>8.3f} {worst:>17.1e} {mean:>12.1e}"
    seconds = cpu_seconds(partial(_solve, problem, comparison.finest_scheme, starts[0], fine))
    yield f"{comparison.finest_scheme + ' at ' + _size(fine):>36} {seconds:>9.3f}"


def _size(grid: Grid) -> str:
    return f"{grid.shape[0]}x{grid.shape[1]}"


def departure(problem: EvolutionProblem, frames: list[Fields]) -> Float64[np.ndarray, "frame channel y x"]:
    """What departs from rest."""
    names = [spec.name for spec in problem.outputs]
    return np.stack([[frame[name] - problem.rest[name] for name in names] for frame in frames])


def relative_errors(
    found: Float64[np.ndarray, "frame channel y x"], expected: Float64[np.ndarray, "frame channel y x"]
) -> Float64[np.ndarray, " frame"]:
    """Relative L2 error of every frame."""
    axes = (1, 2, 3)
    return np.asarray(np.sqrt(np.sum((found - expected) ** 2, axes) / np.sum(expected**2, axes)))
