"""``mno bench rollout``: rollouts of an evolution model against its reference solver on the same grid.

Both start from the same states, which the solver has brought to the first frame: a model may be meant for
frames whose beginning it cannot know, and the solver may take more steps in the earlier ones. All run in
turns, so that other load on the machine meets them alike. CPU seconds are those of all threads of the
process, wall seconds those of a clock; both per trajectory, the median of the runs.
"""

import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from statistics import median

import click
import numpy as np
import torch
from jaxtyping import Float32

from benchmarks.cpu_time import Seconds, seconds
from model_store import Card, Reference, open_catalog
from operators import EvolutionSurrogate
from problems import EVOLUTION_PROBLEMS, EvolutionProblem, Fields, Grid

FAMILY = "wide"

States = Float32[np.ndarray, "batch channel y x"]


@dataclass(frozen=True)
class Rollout:
    """What model and solver do.

    Attributes:
        problem: the problem that both solve.
        grid: of the states.
        scheme: what the solver solves with.
        walls: boundary conditions of the solver, None for the problem's own.
        first_frame: number of the frame that both start from.
        frames: how many follow.
    """

    problem: EvolutionProblem
    grid: Grid
    scheme: str
    walls: str | None
    first_frame: int
    frames: int

    def initial_states(self, count: int) -> States:
        """Samples of the family that every evolution problem has, at the first frame."""
        samples = (self.problem.sample(FAMILY, {}, 0, index, self.grid) for index in range(count))
        return np.stack([self._stack(self._bring(sample)) for sample in samples]).astype(np.float32)

    def roll_out(self, surrogate: EvolutionSurrogate, states: States) -> None:
        """All trajectories as one batch."""
        with torch.inference_mode():
            blocks = surrogate.blocks(torch.from_numpy(states)[:, None], self.grid.extent)
            for _ in islice(blocks, -(-self.frames // surrogate.frames)):
                pass

    def solve(self, states: States) -> None:
        """One trajectory after the other, on one thread."""
        names = [spec.name for spec in self.problem.inputs]
        for state in states.astype(np.float64):
            start = dict(zip(names, state, strict=True))
            for _ in islice(self._frames(start, self.first_frame), self.frames):
                pass

    def _bring(self, state: Fields) -> Fields:
        """The initial state after as many frames as the first one has before it."""
        for following in islice(self._frames(state, 0), self.first_frame):
            state = following
        return state

    def _frames(self, state: Fields, start: int) -> Iterator[Fields]:
        return self.problem.frames(state, self.grid, self.scheme, self.walls, start)

    def _stack(self, state: Fields) -> np.ndarray:
        return np.stack([state[spec.name] for spec in self.problem.inputs])


def time_rollouts(
    surrogate: EvolutionSurrogate, rollout: Rollout, batches: list[int], repeats: int
) -> Iterator[str]:
    """A line for every batch size."""
    yield "seconds per trajectory, medians of interleaved runs"
    yield f"{'batch':>6} {'model CPU':>12} {'model wall':>12} {'solver CPU':>12} {'solver wall':>12}"
    states = rollout.initial_states(max(batches))
    for batch in batches:
        found = _time_batch(surrogate, rollout, states[:batch], repeats)
        cells = [
            f"{median(times) / batch:>12.3f}" for name in found for times in zip(*found[name], strict=True)
        ]
        yield f"{batch:>6} {' '.join(cells)}"


def _time_batch(
    surrogate: EvolutionSurrogate, rollout: Rollout, states: States, repeats: int
) -> Mapping[str, list[Seconds]]:
    """By who works, times of all trajectories of the batch."""
    work = {
        "model": partial(rollout.roll_out, surrogate, states),
        "solver": partial(rollout.solve, states),
    }
    for one in work.values():
        # compiles and allocates
        one()
    times: dict[str, list[Seconds]] = {name: [] for name in work}
    for _ in range(repeats):
        for name, one in work.items():
            times[name].append(seconds(one))
    return times


@click.command("rollout")
@click.option("--model", default="shallow_water@production", show_default=True)
@click.option("--store", metavar="URL", help="A model store; without it the built-in models.")
@click.option("--batches", default="1,8", show_default=True, help="Batch sizes, separated by commas.")
@click.option(
    "--first-frame",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="The frame that trajectories start from; the solver brings the states there.",
)
@click.option(
    "--frames", type=click.IntRange(min=1), default=100, show_default=True, help="Frames that follow it."
)
@click.option(
    "--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Runs of each, interleaved."
)
@click.option("--threads", type=int, help="Threads of the model; PyTorch's default otherwise.")
def bench_rollout(
    model: str,
    store: str | None,
    batches: str,
    first_frame: int,
    frames: int,
    repeats: int,
    threads: int | None,
) -> None:
    """Time an evolution model's rollouts against the reference solver."""
    if threads is not None:
        torch.set_num_threads(threads)
    reference, card, surrogate = _load(model, store)
    problem = EVOLUTION_PROBLEMS[card.problem]
    grid = Grid(card.grids[0], card.extent, problem.grid.origin)
    click.echo(
        f"{reference} at {grid.shape[0]}x{grid.shape[1]}, {frames} frames after frame {first_frame}, "
        f"float32, {torch.get_num_threads()} threads; {card.scheme}, one thread; family {FAMILY}, "
        f"brought to frame {first_frame} by {card.scheme}; {platform.machine()}"
    )
    rollout = Rollout(problem, grid, card.scheme, card.walls, first_frame, frames)
    sizes = [int(size) for size in batches.split(",")]
    for line in time_rollouts(surrogate, rollout, sizes, repeats):
        click.echo(line)


def _load(model: str, store: str | None) -> tuple[Reference, Card, EvolutionSurrogate]:
    catalog = open_catalog(store)
    reference = catalog.resolve(model)
    version = catalog.load(reference.name, reference.version)
    if not isinstance(version.surrogate, EvolutionSurrogate):
        raise click.UsageError(
            f"{reference} is a steady model: expected an evolution one, or use bench forward"
        )
    if version.surrogate.history > 1:
        history = version.surrogate.history
        raise click.UsageError(f"{reference} starts from {history} frames: expected a model that needs one")
    return reference, version.card, version.surrogate
