"""What an operator costs, whatever it has learnt: parameters, arithmetic, memory, time."""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from math import prod
from typing import Any, Final, final

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from operators import AnySurrogate, UnsupportedGrid
from operators.backward_memory import held_for_backward
from operators.flop_count import count_flops
from problems import EVOLUTION_PROBLEMS
from training.comparison.config import Grid
from training.comparison.rows import Entry
from training.comparison.scoring import machine
from training.config import DataSection, Run
from training.learner import Learner
from training.progress import Bar, Progress
from training.task import Task, mixed_precision
from training.trainer import prepare_torch

# memory that one sample may take on a grid that is only measured [B]
LIMIT: Final = 2 * 1024**3
# of the synthetic fields: of a permeability's logarithm, and of frames about the state of rest
NOISE: Final = 0.1


@final
class Cost(BaseModel):
    """Of one operator on one grid of one problem.

    Attributes:
        operator: its name in the comparison file.
        problem: the name of the problem there.
        grid: cells along y and x.
        parameters: that are learnt.
        flops: of a forward pass for one sample, a multiplication and an addition counted as two.
        activations: held for the pass back, for one sample [B].
        forward: of one sample [s].
        step: of a training step (loss, gradient, optimizer) with the problem's batch [s]; None off its own
            grid.
        peak: device memory of that step [B]; None on a CPU.
        device: what was timed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    operator: str
    problem: str
    grid: tuple[int, int]
    parameters: int
    flops: int
    activations: int
    forward: float
    step: float | None = None
    peak: int | None = None
    device: str


def measure_costs(
    entries: Sequence[Entry], grids: Iterable[Grid], rounds: int, progress: Progress, limit: int = LIMIT
) -> list[Cost]:
    """Measure the operators of one problem, untrained, on synthetic fields of the problem's shapes.

    Times are medians over ``rounds`` rounds, in each of which everything has its turn, so that what else the
    machine does falls on all alike. A step is the one that training makes, with its batch size, its clipped
    gradient, its average of the weights and, on a GPU, its precision, for the mean square of the answer as
    the loss; drawing a batch is not part of it. A forward pass is one of inference. What is held for the pass
    back is held in the precision of training too, dropout included.

    There is no row for a grid that the operator does not support, nor for one where it would hold more than
    ``limit`` for a pass back. That is judged beforehand by the grids before it, the problem's own first: what
    an operator holds for a cell is taken to be what it held there at most.

    Args:
        entries: one for each operator.
        grids: where to measure besides the problem's own grid.
        rounds: of the timing.
        progress: makes the progress bar.
        limit: memory for one sample on another grid [B].
    """
    device = prepare_torch(entries[0].run)
    subjects, places = [_Subject(entry, device) for entry in entries], list[_Place]()
    with progress(None, len(subjects) + rounds, "costs") as bar:
        for subject in subjects:
            places += _places(subject, grids, limit)
            bar.update(1)
        jobs = [place.ask for place in places] + [place.subject.train for place in places if place.own]
        seconds = _medians(jobs, rounds, device, bar)
    forward, step = seconds[: len(places)], iter(seconds[len(places) :])
    # the peak last: by now the libraries have the work space that they keep
    return [
        place.cost(taken, next(step), _peak(place.subject)) if place.own else place.cost(taken, None, None)
        for place, taken in zip(places, forward, strict=True)
    ]


@final
class _Subject:
    """An untrained operator: one to train, and one to ask."""

    def __init__(self, entry: Entry, device: torch.device) -> None:
        self.entry, self.run, self.device = entry, entry.run, device
        self.learner = Learner(self.run, device)
        self.surrogate = self.learner.averaged()
        self.task = _MeanSquare(self.run, device)

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.learner.surrogate.parameters() if p.requires_grad)

    def train(self) -> None:
        """One step, always the first one of the schedule."""
        self.learner.step(0, self.task)


@final
@dataclass(frozen=True, eq=False)
class _Place:
    """An operator on a grid that it can take."""

    subject: _Subject
    grid: Grid
    given: tuple[Any, ...]
    flops: int
    activations: int

    @property
    def own(self) -> bool:
        """Whether it is trained there."""
        return self.grid == self.subject.run.data.grid

    @torch.inference_mode()
    def ask(self) -> None:
        """One forward pass of one sample."""
        self.subject.surrogate(*self.given)

    def cost(self, forward: float, step: float | None, peak: int | None) -> Cost:
        subject = self.subject
        return Cost(
            operator=subject.entry.operator.name,
            problem=subject.entry.problem.name,
            grid=self.grid,
            parameters=subject.parameters,
            flops=self.flops,
            activations=self.activations,
            forward=forward,
            step=step,
            peak=peak,
            device=machine(subject.device, subject.run.run.threads),
        )


@final
class _MeanSquare(Task):
    """The mean square of the answers to one synthetic batch."""

    def __init__(self, run: Run, device: torch.device) -> None:
        self._device = device
        history = getattr(run.operator, "history", 1)
        self._given = _inputs(run.data, history, run.data.grid, run.optimizer.batch_size, device)

    def prepare(self, surrogate: AnySurrogate) -> None:
        """Nothing: there are no data that determine anything."""

    def loss(self, surrogate: AnySurrogate, step: int) -> Float[Tensor, ""]:  # noqa: ARG002
        """See ``Task.loss``."""
        return _as_in_training(surrogate, self._device, *self._given).float().square().mean()

    def validate(self, surrogate: AnySurrogate) -> dict[str, float]:  # noqa: ARG002
        """Nothing: there is no answer to compare with."""
        return {}


def _places(subject: _Subject, grids: Iterable[Grid], limit: int) -> Iterator[_Place]:
    run, trained, densest = subject.run, subject.learner.surrogate, 0.0
    history = getattr(run.operator, "history", 1)
    for grid in dict.fromkeys([run.data.grid, *grids]):
        if densest * prod(grid) > limit:
            continue
        given = _inputs(run.data, history, grid, 1, subject.device)
        try:
            flops = count_flops(subject.surrogate, *given)
        except UnsupportedGrid:
            continue
        held = held_for_backward(
            partial(_as_in_training, trained, subject.device),
            *given,
            weights=chain(trained.parameters(), trained.buffers()),
        )
        densest = max(densest, held / prod(grid))
        yield _Place(subject, grid, given, flops, held)


def _as_in_training(surrogate: AnySurrogate, device: torch.device, *given: Any) -> Tensor:
    with mixed_precision(device):
        answer: Tensor = surrogate(*given)
    return answer


def _inputs(
    data: DataSection, history: int, grid: Grid, samples: int, device: torch.device
) -> tuple[Any, ...]:
    """Arguments of a surrogate: fields of the problem's shapes and units."""
    generator = torch.Generator().manual_seed(0)
    problem = EVOLUTION_PROBLEMS.get(data.problem)
    if problem is None:
        noise = torch.randn(samples, 1, *grid, generator=generator)
        return (
            (NOISE * noise).exp().to(device),
            torch.full((samples,), data.source, device=device),
            data.extent,
        )
    rest = torch.tensor([problem.rest[spec.name] for spec in problem.inputs])[:, None, None]
    noise = torch.randn(samples, history, len(rest), *grid, generator=generator)
    return (rest + NOISE * noise).to(device), data.extent


def _medians(jobs: Sequence[Callable[[], None]], rounds: int, device: torch.device, bar: Bar) -> list[float]:
    """How long each job takes [s]; they take turns."""
    # what is compiled or allocated once is no cost of a call
    for job in jobs:
        job()
    taken: list[list[float]] = [[] for _ in jobs]
    for _ in range(rounds):
        for job, times in zip(jobs, taken, strict=True):
            times.append(_seconds(job, device))
        bar.update(1)
    return [statistics.median(times) for times in taken]


def _seconds(job: Callable[[], None], device: torch.device) -> float:
    _finish(device)
    start = time.perf_counter()
    job()
    _finish(device)
    return time.perf_counter() - start


def _finish(device: torch.device) -> None:
    """Wait for what the device was given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak(subject: _Subject) -> int | None:
    """Device memory of a training from its weights and batch to the end of a step [B]; None on a CPU."""
    device = subject.device
    if device.type != "cuda":
        return None
    before = torch.cuda.memory_allocated(device)
    learner, task = Learner(subject.run, device), _MeanSquare(subject.run, device)
    # the optimizer's moments come with the first step
    learner.step(0, task)
    torch.cuda.reset_peak_memory_stats(device)
    learner.step(0, task)
    return torch.cuda.max_memory_allocated(device) - before
