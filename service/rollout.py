"""The story of a rollout: validate the state, choose how to step, step block by block, judge every frame.

A block is what one call of the surrogate returns. The next one is asked for when all frames of this one were
taken, so that a slow reader has at most a block in memory and holds no thread. Blocks of several rollouts of
one version and grid share the worker's batches, and a rollout that nobody reads any more leaves the queue. It
stays with the version that it began with, also when another one takes over its name.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, final

import numpy as np
from numpy.typing import NDArray

from problems import CannotSolve, EvolutionProblem, Grid
from problems import InvalidField as BrokenRule
from service.batcher import Batcher
from service.deadline import Deadline
from service.errors import LONGEST_QUOTE, InvalidField, NotAvailableYet, WorkerLost
from service.frame_trust import CalibratedError, calibrated_error, within_hull
from service.lookup import find_evolution
from service.models import Models, Served, require_tested
from service.settings import Limits
from service.shadow import Shadows
from service.ticket import ANYBODY, Ticket
from service.validate import Inputs, complete_state, validate_inputs, within_float32
from service.worker import STEP, Batch, Bucket

__all__ = ["Frame", "Progress", "Roller", "Rollout", "RolloutMethod", "RolloutRequest"]

RolloutMethod = Literal["auto", "surrogate", "solver", "hybrid"]

State = Mapping[str, NDArray[Any]]

# an invariant that some problems have, and what is said about it beside
MASS, MASS_DEFECT = "mass", "mass_defect"


@final
@dataclass(frozen=True)
class RolloutRequest:
    """An initial state, or a batch of them, and how far to step.

    Attributes:
        state: fields (ny, nx) or (batch, ny, nx) by name, as they came.
        steps: the last step, counted from the initial state.
        every: only the steps that this divides are sent.
        start_step: number of the step that ``state`` belongs to.
        walls: boundary conditions; None: those of the model.
        dtype: dtype of the answer, float32 or float64.
        ticket: for whom, how urgently, and until when the last frame is wanted.
        key: what decides whether a canary answers: equal keys get equal versions; empty: by chance.
        received: ``time.perf_counter()`` when the request arrived [s].
    """

    problem: str
    state: State
    steps: int
    every: int = 1
    start_step: int = 0
    dtype: Literal["float32", "float64"] = "float32"
    model: str | None = None
    method: RolloutMethod = "auto"
    walls: str | None = None
    ticket: Ticket = ANYBODY
    key: str = ""
    received: float = field(default_factory=time.perf_counter)


@final
@dataclass(frozen=True)
class Frame:
    """The state after a step.

    Attributes:
        step: counted from the initial state, which is step 0.
        time: of the step [s].
        fields: [batch y x] by name.
        invariants: [batch] by name.
        error: what is known about the error at this step; None: nothing.
    """

    step: int
    time: float
    fields: State
    invariants: Mapping[str, NDArray[np.float64]]
    error: CalibratedError | None


@final
@dataclass(frozen=True)
class Rollout:
    """How a rollout is computed, and its frames as they are.

    Attributes:
        names: fields of a frame.
        model: the version that steps, None for the reference solver.
        operator: id of the discrete operator that the frames approximate.
        block: steps that are computed at once, counted from the start; a rollout that goes on from the end of
            a block gives the same frames as one that was not broken.
        in_distribution: for each row, whether its state resembles the training data.
        nbytes: what the frames of a block take in memory [B].
        frames: close it to stop the computation.
    """

    names: tuple[str, ...]
    model: str | None
    method: Literal["surrogate", "solver"]
    operator: str
    walls: str
    grid: Grid
    frame_interval: float
    block: int
    steps: int
    count: int
    in_distribution: tuple[bool, ...]
    nbytes: int
    frames: AsyncGenerator[Frame, None]

    async def close(self) -> None:
        """Compute no more."""
        await self.frames.aclose()


@final
@dataclass(frozen=True)
class _March:
    """How a state is stepped: by which queue, in which bucket, how many steps at once.

    Attributes:
        hull: of the training states; None: the method was not trained.
        calibrated_from: the step from which the frames of ``calibration`` count.
        most_cell_steps: cells times steps that a frame may take; None: each takes the same.
        single: the caller sent one state, not a batch.
        ticket: on whose behalf, how urgently and until when.
        served: the version, which stays loaded as long as this refers to it; None: the reference solver.
        shadows: compare its first block with that of the version's shadow.
    """

    problem: EvolutionProblem
    batcher: Batcher
    bucket: Bucket
    frame_interval: float
    hull: Mapping[str, float] | None
    calibration: Mapping[str, float]
    calibrated_from: int
    most_cell_steps: int | None
    single: bool
    ticket: Ticket
    served: Served | None
    shadows: Shadows

    @property
    def block(self) -> int:
        """Steps that are computed at once."""
        return self.bucket.frames

    async def advance(self, state: State, step: int, *, admitted: bool) -> State:
        """The next block after ``state``, which is that of ``step``: fields [batch frame y x]."""
        if self.most_cell_steps is not None:
            await asyncio.to_thread(self._check_cost, state, step, self.most_cell_steps)
        batch = await asyncio.to_thread(self._placed, state, step)
        try:
            outcome = await self.batcher.submit(batch, self.ticket, admitted=admitted)
        except WorkerLost as error:
            text = f"{error}; go on from step {step} with start_step={step}"
            raise WorkerLost(text, error.retry_after, step) from error
        for row, why in outcome.solutions.unsolved.items():
            raise self.diverged(step + 1, row, why)
        if self.served is not None and not admitted:
            self.shadows.follow(self.served, batch, outcome.solutions.fields)
        # numbers of its own: a slow reader would keep those of the whole batch, where others need the room
        return await asyncio.to_thread(_copied, outcome.solutions.fields)

    def _placed(self, state: State, step: int) -> Batch:
        """The state where the worker reads it."""
        fields = {}
        for name, values in state.items():
            fields[name] = self.batcher.allocate(values.shape, self.bucket.dtype)
            np.copyto(fields[name], values, casting="same_kind")
        if self.served is None:
            fields[STEP] = np.full(len(fields[self.problem.inputs[0].name]), step)
        return Batch(self.bucket, fields)

    def diverged(self, step: int, row: int, why: str) -> InvalidField:
        """What to raise when the state of a row has left what the problem allows."""
        way_out = "another model, or method=solver" if self.bucket.version else "or start from a tamer state"
        message = f"step {step}: {why}; ask for fewer steps, {way_out}"
        return InvalidField(
            self.problem.outputs[0].name, "diverged", message, None if self.single else (row,)
        )

    def _check_cost(self, state: State, step: int, most: int) -> None:
        """Refuse a state of which the reference solver would need too long for one frame."""
        problem, bucket, cost = self.problem, self.bucket, 0
        for row, fields in enumerate(_rows(state)):
            try:
                cost += problem.cell_steps(fields, bucket.grid, bucket.scheme, step)
            except (BrokenRule, CannotSolve) as error:
                raise self.diverged(step + 1, row, str(error)) from error
        if cost > most:
            message = (
                f"step {step + 1} of {problem.name} from this state takes {cost:.2g} cell updates, "
                f"at most {most:.2g} are allowed; send a coarser grid or a tamer state, or fewer steps"
            )
            raise InvalidField(problem.inputs[0].name, "cost", message)


class Progress(Protocol):
    """What is told of one rollout after another; ``service.metrics`` counts it."""

    def began(self) -> None:
        """A client reads its frames; ``ended`` follows."""

    def sent(self, frames: int = 1) -> None:
        """Frames were handed over."""

    def ended(self) -> None:
        """It wants no more of them."""


@final
class _Unwatched:
    """Tells nobody."""

    def began(self) -> None:
        """See ``Progress``."""

    def sent(self, frames: int = 1) -> None:
        """See ``Progress``."""

    def ended(self) -> None:
        """See ``Progress``."""


@final
class Roller:
    """Steps states with the served surrogates and the reference solvers."""

    def __init__(
        self,
        models: Models,
        references: Batcher,
        limits: Limits,
        shadows: Shadows,
        progress: Callable[[str], Progress] | None = None,
    ) -> None:
        """``progress`` gives what is told of a problem's rollouts; None: nothing is."""
        self._models = models
        self._references = references
        self._limits = limits
        self._shadows = shadows
        self._progress = progress or _unwatched
        self._turns = map(str, itertools.count())

    async def start(self, request: RolloutRequest) -> Rollout:
        """A rollout of which the first block is computed: what is wrong with the request is known by then.

        Raises:
            ServiceFault: one of its kinds; the frames raise them too.
        """
        problem = find_evolution(request.problem)
        _check_span(request, self._limits)
        deadline = Deadline(
            request.ticket.deadline, request.received, "allow more time or ask for fewer steps"
        )
        async with deadline.kept():
            given = complete_state(problem, request.state, request.start_step)
            inputs = await asyncio.to_thread(validate_inputs, problem, given, self._limits)
            march = self._choose(problem, request, inputs)
            if march.bucket.dtype == "float32":
                await asyncio.to_thread(within_float32, problem, inputs)
            known = await asyncio.to_thread(_in_distribution, march, inputs)
            judge = await asyncio.to_thread(_Judge, march, request.dtype, request.start_step, inputs.fields)
            first = await march.advance(inputs.fields, request.start_step, admitted=False)
        return Rollout(
            names=tuple(spec.name for spec in problem.outputs),
            model=None if march.bucket.version is None else str(march.bucket.version),
            method="solver" if march.bucket.version is None else "surrogate",
            operator=march.bucket.scheme,
            walls=march.bucket.walls or problem.walls[0],
            grid=march.bucket.grid,
            frame_interval=march.frame_interval,
            block=march.block,
            steps=request.steps,
            count=request.steps // request.every - request.start_step // request.every,
            in_distribution=known,
            nbytes=sum(values.nbytes for values in first.values()),
            frames=_watched(self._progress(problem.name), _frames(march, request, judge, deadline, first)),
        )

    def _choose(self, problem: EvolutionProblem, request: RolloutRequest, inputs: Inputs) -> _March:
        if request.method == "hybrid":
            raise NotAvailableYet("method=hybrid is for steady problems; use surrogate, solver or auto")
        if request.walls is not None and request.walls not in problem.walls:
            message = f"walls: expected {' or '.join(problem.walls)}, got {request.walls[:LONGEST_QUOTE]!r}"
            raise InvalidField("walls", "unknown", message)
        if request.method == "solver":
            return self._reference(problem, request, inputs)
        return self._surrogate(problem, request, inputs)

    def _surrogate(self, problem: EvolutionProblem, request: RolloutRequest, inputs: Inputs) -> _March:
        served = self._models.find(problem.name, request.model, request.key or next(self._turns))
        version = served.version
        walls = version.walls or problem.walls[0]
        if request.walls not in (None, walls):
            message = f"{version} knows walls {walls!r} only; choose another model or method=solver"
            raise InvalidField("walls", "model", message)
        require_tested(version, problem.inputs[0].name, inputs.grid)
        if version.history > 1:
            message = f"{version} starts from {version.history} frames, a rollout from one state"
            raise InvalidField("model", "history", f"{message}; choose another model or method=solver")
        bucket = Bucket(
            problem.name,
            version.reference,
            version.scheme,
            Grid(inputs.grid, version.extent, problem.grid.origin),
            "float32",
            walls,
            "advance",
            version.frames,
            request.ticket.reproducible,
        )
        return _March(
            problem,
            served.queue,
            bucket,
            version.frame_interval or problem.frame_interval,
            version.training_hull,
            version.calibration,
            min(request.start_step, version.first_frame),
            None,
            inputs.single,
            request.ticket,
            served,
            self._shadows,
        )

    def _reference(self, problem: EvolutionProblem, request: RolloutRequest, inputs: Inputs) -> _March:
        # a named model asks for the discrete operator of that model's labels
        version = None
        if request.model is not None:
            version = self._models.find(problem.name, request.model, request.key).version
        extent = problem.grid.extent if version is None else version.extent
        grid = Grid(inputs.grid, extent, problem.grid.origin)
        scheme = problem.schemes[0] if version is None else version.scheme
        walls = request.walls or (version and version.walls) or problem.walls[0]
        # a step at a time, so that it stops when its reader does
        bucket = Bucket(problem.name, None, scheme, grid, "float64", walls, "advance", frames=1)
        interval, most = problem.frame_interval, self._limits.cell_steps
        return _March(
            problem,
            self._references,
            bucket,
            interval,
            None,
            {},
            0,
            most,
            inputs.single,
            request.ticket,
            None,
            self._shadows,
        )


@final
class _Judge:
    """Turns a state into the frame that leaves the service, with all that is known about it."""

    def __init__(self, march: _March, dtype: str, start_step: int, initial: State) -> None:
        self._march = march
        self._dtype = dtype
        self._mass = self._invariants(start_step, initial).get(MASS)

    def frame(self, step: int, state: State) -> Frame:
        """The frame of a step.

        Raises:
            InvalidField: its numbers mean nothing.
        """
        with np.errstate(over="ignore"):
            fields = {name: values.astype(self._dtype, order="C") for name, values in state.items()}
        for name, values in fields.items():
            finite = np.isfinite(values).all(axis=(1, 2))
            if not finite.all():
                why = f"{name} is not finite in {self._dtype}"
                raise self._march.diverged(step, int(np.argmin(finite)), why)
        invariants = self._invariants(step, fields)
        if self._mass is not None:
            invariants[MASS_DEFECT] = invariants[MASS] / self._mass - 1
        time_of_step = step * self._march.frame_interval
        error = calibrated_error(self._march.calibration, step - self._march.calibrated_from)
        return Frame(step, time_of_step, fields, invariants, error)

    def _invariants(self, step: int, fields: State) -> dict[str, NDArray[np.float64]]:
        problem, grid = self._march.problem, self._march.bucket.grid
        rows: list[Mapping[str, float]] = []
        for state in _rows(fields):
            try:
                # what overflows is no number in the answer either
                with np.errstate(all="ignore"):
                    rows.append(problem.invariants(state, grid))
            except BrokenRule as error:
                raise self._march.diverged(step, len(rows), error.message) from error
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}


async def _frames(
    march: _March, request: RolloutRequest, judge: _Judge, deadline: Deadline, block: State
) -> AsyncGenerator[Frame, None]:
    step = request.start_step
    while True:
        for offset in range(march.block):
            step += 1
            state = {name: values[:, offset] for name, values in block.items()}
            if step % request.every == 0:
                yield await asyncio.to_thread(judge.frame, step, state)
            if step == request.steps:
                return
        async with deadline.kept():
            block = await march.advance(state, step, admitted=True)


def _unwatched(_: str) -> Progress:
    return _Unwatched()


async def _watched(progress: Progress, frames: AsyncGenerator[Frame, None]) -> AsyncGenerator[Frame, None]:
    progress.began()
    try:
        async with aclosing(frames):
            async for frame in frames:
                progress.sent()
                yield frame
    finally:
        progress.ended()


def _check_span(request: RolloutRequest, limits: Limits) -> None:
    steps = request.steps - request.start_step
    if steps > limits.rollout_steps:
        message = f"steps: at most {limits.rollout_steps} a request, got {steps}; go on with start_step"
        raise InvalidField("steps", "maximum", message)
    if request.steps // request.every <= request.start_step // request.every:
        message = (
            f"steps: no multiple of every = {request.every} after start_step = {request.start_step} "
            f"up to steps = {request.steps}; steps counts from the initial state"
        )
        raise InvalidField("steps", "minimum", message)


def _copied(fields: State) -> State:
    return {name: np.array(values, order="C") for name, values in fields.items()}


def _in_distribution(march: _March, inputs: Inputs) -> tuple[bool, ...]:
    hull = march.hull
    if hull is None:
        return (True,) * inputs.rows
    problem, grid = march.problem, march.bucket.grid
    return tuple(within_hull(hull, problem.features(row, grid)) for row in _rows(inputs.fields))


def _rows(fields: State) -> Iterator[dict[str, NDArray[np.float64]]]:
    for row in range(len(next(iter(fields.values())))):
        yield {name: np.asarray(values[row], dtype=np.float64) for name, values in fields.items()}
