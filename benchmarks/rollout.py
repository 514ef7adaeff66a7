"""``mno bench rollout``: rollouts of an evolution model against its reference solver on the same grid.

All run in turns on the same initial states, so that other load on the machine meets them alike. CPU seconds
are those of all threads of the process, wall seconds those of a clock; both per trajectory, the median of the
runs.
"""

import platform
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from statistics import median

import click
import numpy as np
import torch
from jaxtyping import Float32

from model_store import open_catalog
from operators import EvolutionSurrogate
from problems import EVOLUTION_PROBLEMS, EvolutionProblem, Grid

FAMILY = "wide"


def initial_states(problem: EvolutionProblem, grid: Grid, count: int) -> Float32[np.ndarray, "b channel y x"]:
    """Samples of the family that every evolution problem has."""
    samples = [problem.sample(FAMILY, {}, 0, index, grid) for index in range(count)]
    return np.stack([np.stack(list(sample.values())) for sample in samples]).astype(np.float32)


@torch.inference_mode()
def roll_out(
    surrogate: EvolutionSurrogate, states: Float32[np.ndarray, "b channel y x"], grid: Grid, frames: int
) -> None:
    """All trajectories as one batch."""
    blocks = surrogate.blocks(torch.from_numpy(states)[:, None], grid.extent)
    for _ in islice(blocks, -(-frames // surrogate.frames)):
        pass


def solve(
    problem: EvolutionProblem,
    states: Float32[np.ndarray, "b channel y x"],
    grid: Grid,
    scheme: str,
    frames: int,
) -> None:
    """One trajectory after the other, on one thread."""
    names = [spec.name for spec in problem.inputs]
    for state in states.astype(np.float64):
        for _ in islice(problem.frames(dict(zip(names, state, strict=True)), grid, scheme), frames):
            pass


def seconds(work: Callable[[], None]) -> tuple[float, float]:
    """CPU and wall time of one call [s]."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def rows(
    surrogate: EvolutionSurrogate,
    problem: EvolutionProblem,
    grid: Grid,
    scheme: str,
    batches: list[int],
    frames: int,
    repeats: int,
) -> Iterator[str]:
    """A line for every batch size."""
    if surrogate.history > 1:
        raise click.UsageError("expected a model that starts from one frame")
    for batch in batches:
        states = initial_states(problem, grid, batch)
        work: dict[str, Callable[[], None]] = {
            "model": partial(roll_out, surrogate, states, grid, frames),
            "solver": partial(solve, problem, states, grid, scheme, frames),
        }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
        for one in work.values():
            # compiles and allocates
            one()
        for _ in range(repeats):
            for name, one in work.items():
                times[name].append(seconds(one))
        cells = [
            f"{median(found[kind] for found in times[name]) / batch:>9.3f}"
            for name in work
            for kind in (0, 1)
        ]
        yield f"{batch:>6} {cells[0]} {cells[1]}   {cells[2]} {cells[3]}"


@click.command("rollout")
@click.option("--model", default="shallow_water@production", show_default=True)
@click.option("--store", metavar="URL", help="A model store; without it the built-in models.")
@click.option("--batches", default="1,8", show_default=True, help="Batch sizes, separated by commas.")
@click.option("--frames", default=100, show_default=True, help="Frames of a trajectory.")
@click.option("--repeats", default=5, show_default=True, help="Runs of each, interleaved.")
@click.option("--threads", type=int, help="Threads of the model; PyTorch's default otherwise.")
def bench_rollout(
    model: str, store: str | None, batches: str, frames: int, repeats: int, threads: int | None
) -> None:
    """Time an evolution model's rollouts against the reference solver."""
    if threads is not None:
        torch.set_num_threads(threads)
    catalog = open_catalog(store)
    reference = catalog.resolve(model)
    version = catalog.load(reference.name, reference.version)
    if not isinstance(version.surrogate, EvolutionSurrogate):
        raise click.UsageError(
            f"{reference} is a steady model: expected an evolution one, or use bench forward"
        )
    problem, card = EVOLUTION_PROBLEMS[version.card.problem], version.card
    grid = Grid(card.grids[0], card.extent, problem.grid.origin)
    click.echo(
        f"{reference} at {grid.shape[0]}x{grid.shape[1]}, {frames} frames, float32, "
        f"{torch.get_num_threads()} threads; {card.scheme} float64, one thread; family {FAMILY}, "
        f"{platform.machine()}"
    )
    click.echo("seconds per trajectory, medians of interleaved runs: CPU, wall")
    click.echo(f"{'batch':>6} {'model':>19}   {'solver':>19}")
    sizes = [int(size) for size in batches.split(",")]
    for line in rows(version.surrogate, problem, grid, card.scheme, sizes, frames, repeats):
        click.echo(line)
