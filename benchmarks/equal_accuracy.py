"""``mno bench accuracy``: what a surrogate costs, and what the reference solver costs at the same accuracy.

A time without an error beside it says nothing, and a fast answer against a solver that is more exact than
needed says as little (McGreivy and Hakim 2024, arXiv 2407.07218). So the solver stops as early as it may:
Darcy after full multigrid and some steps, the evolution problems on every grid from the served one to that of
the truth, with every scheme. The last line names the cheapest of these that is no worse than the
surrogate. CPU times of the process, medians of runs that take turns, one answer at a time; errors are medians
over fresh samples. Run with ``OMP_NUM_THREADS=1``.
"""

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from statistics import median

import click
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.cpu_time import cpu_seconds
from benchmarks.trajectory_solver import departure, relative_errors
from model_store import Card, LoadedVersion, open_catalog
from operators import EvolutionSurrogate, Surrogate
from problems import EVOLUTION_PROBLEMS, STEADY_PROBLEMS, EvolutionProblem, Fields, Grid, coarsen
from problems.multigrid import ConjugateGradients, Multigrid
from problems.two_point_flux import SCHEMES, apply, transmissibilities

# a run with this seed beside its own makes no sample of its data
FRESH_SEED = 20261123
# conjugate gradient steps after full multigrid
STEPS = (0, 1, 2, 3, 4, 6, 8)
SURROGATE = "surrogate"

Error = float
# an answer to a sample, and its error
Answer = Callable[[], NDArray[np.floating]]


@dataclass(frozen=True)
class Rung:
    """A way to an answer.

    Attributes:
        name: of the way.
        seconds: median CPU time of an answer [s].
        error: median relative L2 error.
    """

    name: str
    seconds: float
    error: float


def climb(
    samples: Sequence[Mapping[str, Answer]], error: Callable[[int, NDArray[np.floating]], Error]
) -> list[Rung]:
    """A rung for each way.

    Args:
        samples: of each sample, the ways to its answer by name, the same for all.
        error: of the answer to a sample, by its number.
    """
    times: dict[str, list[float]] = {name: [] for name in samples[0]}
    errors: dict[str, list[float]] = {name: [] for name in samples[0]}
    for number, ways in enumerate(samples):
        for name, answer in ways.items():
            # the first run compiles and allocates
            errors[name].append(error(number, answer()))
            times[name].append(cpu_seconds(answer))
    return [Rung(name, median(times[name]), median(errors[name])) for name in times]


def darcy_rungs(version: LoadedVersion, count: int) -> list[Rung]:
    """Of a version that solves Darcy, against the exact solution of its discrete operator."""
    darcy, grid = STEADY_PROBLEMS["darcy"], Grid(version.card.grids[0], version.card.extent)
    scheme = version.card.scheme
    fields = [darcy.sample("pdebench", {}, FRESH_SEED, index, grid) for index in range(count)]
    exact = [darcy.solve(one, grid, scheme, 1e-11).fields["pressure"] for one in fields]

    def ways(sample: Fields) -> dict[str, Answer]:
        found: dict[str, Answer] = {SURROGATE: partial(_forward, version, sample)}
        for steps in STEPS:
            found[f"full multigrid + {steps} CG"] = partial(_multigrid, sample, grid, scheme, steps)
        return found

    def error(number: int, answer: NDArray[np.floating]) -> Error:
        return float(np.linalg.norm(answer - exact[number]) / np.linalg.norm(exact[number]))

    return climb([ways(one) for one in fields], error)


def _forward(version: LoadedVersion, fields: Fields) -> NDArray[np.floating]:
    assert isinstance(version.surrogate, Surrogate)
    permeability = torch.from_numpy(np.asarray(fields["permeability"], np.float32))[None, None]
    with torch.inference_mode():
        answer: NDArray[np.floating] = version.surrogate(permeability, torch.ones(1), version.card.extent)[
            0, 0
        ].numpy()
    return answer


def _multigrid(fields: Fields, grid: Grid, scheme: str, steps: int) -> NDArray[np.float64]:
    """Full multigrid and some steps of conjugate gradients; the source is 1."""
    discrete, largest = SCHEMES[scheme], float(fields["permeability"].max())
    faces = transmissibilities(fields["permeability"] / largest, grid, discrete)
    levels = Multigrid(faces, discrete)
    values = levels.full_multigrid()
    if steps:
        iteration = ConjugateGradients(levels, 1.0 - apply(faces, values), values)
        iteration.advance(steps)
        values = iteration.values
    return np.asarray(values * (grid.cell_area / largest))


def evolution_rungs(version: LoadedVersion, family: str, count: int, finest: int) -> list[Rung]:
    """Of a version that steps in time, against the solution on a finer grid, averaged down.

    The version and the solvers on its grid are given the first frame that its card names, averaged down from
    the truth; solvers on finer grids, which cannot know it, begin at frame 0, and that counts.

    Args:
        version: the version.
        family: of the initial states.
        count: how many trajectories.
        finest: cells per side of the truth.
    """
    card = version.card
    problem, surrogate = EVOLUTION_PROBLEMS[card.problem], version.surrogate
    if not isinstance(surrogate, EvolutionSurrogate) or surrogate.history > 1:
        raise click.UsageError(f"{version.reference}: expected a model that starts from one frame")
    grid = Grid(card.grids[0], card.extent, problem.grid.origin)
    fine = Grid((finest, finest * grid.shape[1] // grid.shape[0]), card.extent, problem.grid.origin)
    first_frame, frames = card.first_frame, problem.frame_count - card.first_frame
    starts = [problem.sample(family, {}, FRESH_SEED, index, fine) for index in range(count)]
    march = partial(_march, problem, walls=card.walls)
    true = [march(start, fine, grid, card.scheme, problem.frame_count) for start in starts]

    def ways(number: int) -> dict[str, Answer]:
        start, given = starts[number], _given(problem, starts[number], true[number], first_frame, grid)
        found: dict[str, Answer] = {SURROGATE: partial(_roll_out, surrogate, card, given, frames)}
        state = {spec.name: np.float64(one) for spec, one in zip(problem.inputs, given, strict=True)}
        for scheme in problem.schemes:
            found[f"{scheme} at {grid.shape[0]}"] = partial(
                march, state, grid, grid, scheme, frames, start=first_frame
            )
        side = 2 * grid.shape[0]
        while side < finest:
            on = Grid((side, side * grid.shape[1] // grid.shape[0]), card.extent, problem.grid.origin)
            for scheme in problem.schemes:
                found[f"{scheme} at {side}"] = partial(
                    march, coarsen(start, on.shape), on, grid, scheme, problem.frame_count
                )
            side *= 2
        found[f"{card.scheme} at {finest}, the truth"] = partial(
            march, start, fine, grid, card.scheme, problem.frame_count
        )
        return found

    def error(number: int, answer: NDArray[np.floating]) -> Error:
        return float(relative_errors(answer[-frames:], true[number][-frames:]).mean())

    return climb([ways(number) for number in range(count)], error)


def _march(
    problem: EvolutionProblem,
    state: Fields,
    on: Grid,
    to: Grid,
    scheme: str,
    frames: int,
    walls: str | None,
    start: int = 0,
) -> NDArray[np.float64]:
    """What departs from rest, in frames averaged down from grid ``on`` to grid ``to``."""
    stepped = islice(problem.frames(state, on, scheme, walls, start), frames)
    return departure(problem, [coarsen(frame, to.shape) for frame in stepped])


def _given(
    problem: EvolutionProblem, start: Fields, true: NDArray[np.float64], first_frame: int, grid: Grid
) -> NDArray[np.float32]:
    """The state at a frame, all channels."""
    if first_frame == 0:
        coarse = coarsen(start, grid.shape)
        return np.stack([coarse[spec.name] for spec in problem.inputs]).astype(np.float32)
    rest = np.array([problem.rest[spec.name] for spec in problem.outputs])
    return np.asarray(true[first_frame - 1] + rest[:, None, None], np.float32)


def _roll_out(
    surrogate: EvolutionSurrogate, card: Card, state: NDArray[np.float32], frames: int
) -> NDArray[np.floating]:
    """What departs from rest."""
    problem = EVOLUTION_PROBLEMS[card.problem]
    with torch.inference_mode():
        blocks = surrogate.blocks(torch.from_numpy(state)[None, None], card.extent)
        rolled = torch.cat(list(islice(blocks, -(-frames // surrogate.frames))), dim=1)[0, :frames].numpy()
    rest = np.array([problem.rest[spec.name] for spec in problem.outputs], np.float32)
    return np.asarray(rolled - rest[:, None, None])


def table(rungs: Sequence[Rung]) -> Iterator[str]:
    """Lines: every way, and the cheapest solver that is no worse than the surrogate."""
    surrogate = next(rung for rung in rungs if rung.name == SURROGATE)
    yield f"{'':>34} {'CPU ms':>10} {'of surrogate':>13} {'error':>10}"
    for rung in rungs:
        share = rung.seconds / surrogate.seconds
        yield f"{rung.name:>34} {1e3 * rung.seconds:>10.2f} {share:>13.2f} {100 * rung.error:>9.3f}%"
    others = [rung for rung in rungs if rung.name != SURROGATE and rung.error <= surrogate.error]
    if not others:
        yield "no solver here is as accurate as the surrogate"
        return
    best = min(others, key=lambda rung: rung.seconds)
    yield (
        f"at equal accuracy: {best.name} takes {best.seconds / surrogate.seconds:.2f} of the surrogate's time"
    )


@click.command("accuracy")
@click.option("--model", default="darcy@production", show_default=True)
@click.option("--store", metavar="URL", help="A model store; without it the built-in models.")
@click.option("--samples", type=click.IntRange(min=1), default=8, show_default=True, help="Fresh samples.")
@click.option("--family", default="wide", show_default=True, help="Of the states of an evolution problem.")
@click.option(
    "--finest",
    default=512,
    show_default=True,
    help="Cells per side of the truth of evolution problems: a power of two times the served ones.",
)
def bench_accuracy(model: str, store: str | None, samples: int, family: str, finest: int) -> None:
    """Compare a surrogate with the reference solver at the same accuracy."""
    catalog = open_catalog(store)
    reference = catalog.resolve(model)
    version = catalog.load(reference.name, reference.version)
    sides, threads = " x ".join(map(str, version.card.grids[0])), torch.get_num_threads()
    click.echo(f"{reference} at {sides}, {samples} fresh samples, {threads} threads, {platform.machine()}")
    if isinstance(version.surrogate, Surrogate):
        click.echo(f"PDEBench's family; errors against the exact solution of {version.card.scheme}")
        rungs = darcy_rungs(version, samples)
    else:
        truth = f"{version.card.scheme} at {finest}"
        click.echo(f"family {family}, from frame {version.card.first_frame}; errors against {truth}")
        rungs = evolution_rungs(version, family, samples, finest)
    for line in table(rungs):
        click.echo(line)
