"""The story of a rollout: validate the state, choose how to step, step block by block, judge every frame.

A block is what one call of the surrogate returns. The next one is asked for when half of the frames of this
one were taken (``course.py``), so that neither the worker nor the network waits for the other, and a slow
reader has at most a block and a half in memory and holds no thread. Blocks of several rollouts of one version
and grid share the worker's batches, and a rollout that nobody reads any more leaves the queue. It stays with
the version that it began with, also when another one takes over its name.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, final

from problems import EvolutionProblem, Grid
from service.batching.batcher import Batcher
from service.checked_march import CheckedMarch, check_comparable, chosen_steps
from service.course import Course, Progress, Stepper, Unwatched
from service.deadline import Deadline
from service.errors import LONGEST_QUOTE, InvalidField, NotAvailableYet
from service.frame_judge import Frame, FrameJudge, Judged, State, rows_of
from service.lookup import find_evolution
from service.march import March
from service.novelty import FAMILIAR, Novelty, outside, require_in_range, state_novelty
from service.settings import Limits
from service.shadow import Shadows
from service.shelf import Form
from service.ticket import ANYBODY, Ticket
from service.validate import Inputs, complete_state, validate_inputs, within_float32
from service.versions.models import Models, require_tested
from service.workers.worker import Bucket

__all__ = ["ALL", "Frame", "Progress", "Roller", "Rollout", "RolloutMethod", "RolloutRequest", "Sheet"]

RolloutMethod = Literal["auto", "surrogate", "solver", "hybrid"]
Features = Mapping[str, float]
# of ``defects``: as many as there are
ALL: Final = 2**32 - 1
OR_SOLVER: Final = " or method=solver"
# walls that nothing passes
CLOSED: Final = ("reflecting", "periodic", "zero_flux")


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
        defects: so many of the frames that are sent, or all if these are fewer, are compared with one step of
            the reference solver from the frame before.
        derived: a derivative is taken through it: a refusal names neither the reference solver nor a step to
            go on from as a way out.
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
    defects: int = 0
    derived: bool = False


@final
class Sheet(NamedTuple):
    """What is sent of a frame: bytes, of which some may be its fields where they are."""

    step: int
    parts: Sequence[bytes | memoryview]

    def own(self) -> Sheet:
        """The same in memory of its own."""
        return Sheet(self.step, (b"".join(self.parts),))


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
        novelty: of each row, whether its state resembles the training data.
        nbytes: what its frames take in memory: those of a block, and half of those of the one before [B].
        frames: in memory of their own; close it to stop the computation. Either these are read, or what is
            ``written``.
        course: steps it.
        march: by which queue, and in which bucket.
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
    novelty: tuple[Novelty, ...]
    nbytes: int
    frames: AsyncGenerator[Frame, None]
    course: Course
    march: March

    @property
    def in_distribution(self) -> tuple[bool, ...]:
        """Of each row, whether its state resembles the training data."""
        return tuple(each.in_distribution for each in self.novelty)

    def written(self, write: Callable[[Frame], Sequence[bytes | memoryview]]) -> AsyncGenerator[Sheet, None]:
        """What is sent of a frame after another; close it to stop the computation.

        Args:
            write: gives the bytes in parts, which may be the frame's fields where they are. Called for all
                frames of a block at once, perhaps in a thread.
        """
        return self.course.taken(Form(lambda frame: Sheet(frame.step, write(frame)), Sheet.own))

    async def close(self) -> None:
        """Compute no more."""
        await self.frames.aclose()
        await self.course.close()


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
            inputs = await asyncio.to_thread(_checked, problem, request, self._limits)
            # on the event loop, which changes what is served
            march = self._choose(problem, request, inputs)
            judge, features = await asyncio.to_thread(_looked_at, request, march, inputs)
            steps = range(request.start_step + 1, request.steps + 1)
            stepper = self._stepper(request, march)
            course = Course(stepper, judge, steps, request.every, deadline, self._progress(problem.name))
            await course.advance(inputs.fields, admitted=False)
        version, cells = march.bucket.version, next(iter(inputs.fields.values())).size
        return Rollout(
            names=tuple(spec.name for spec in problem.outputs),
            model=None if version is None else str(version),
            method="solver" if version is None else "surrogate",
            operator=march.bucket.scheme,
            walls=march.bucket.walls or problem.walls[0],
            grid=march.bucket.grid,
            frame_interval=march.judged.frame_interval,
            block=march.block,
            steps=request.steps,
            count=request.steps // request.every - request.start_step // request.every,
            novelty=_novelty(march, features, course.scores, inputs.rows),
            nbytes=(march.block + march.block // 2)
            * len(problem.outputs)
            * cells
            * (8 if request.dtype == "float64" else 4),
            frames=course.taken(_OWN),
            course=course,
            march=march,
        )

    def _choose(self, problem: EvolutionProblem, request: RolloutRequest, inputs: Inputs) -> March:
        if request.method == "hybrid":
            raise NotAvailableYet("method=hybrid is for steady problems; use surrogate, solver or auto")
        if request.walls is not None and request.walls not in problem.walls:
            message = f"walls: expected {' or '.join(problem.walls)}, got {request.walls[:LONGEST_QUOTE]!r}"
            raise InvalidField("walls", "unknown", message)
        if request.method == "solver":
            return self._reference(problem, request, inputs)
        return self._surrogate(problem, request, inputs)

    def _stepper(self, request: RolloutRequest, march: March) -> Stepper:
        if not request.defects:
            return march
        check_comparable(march)
        chosen = chosen_steps(request.start_step, request.steps, request.every, request.defects)
        return CheckedMarch(march, self._references, self._limits.cell_steps, chosen, request.start_step)

    def _surrogate(self, problem: EvolutionProblem, request: RolloutRequest, inputs: Inputs) -> March:
        key, solver = request.key or next(self._turns), not request.derived
        served = self._models.find(problem.name, request.model, key, solver=solver)
        version = served.version
        walls = version.walls or problem.walls[0]
        if request.walls not in (None, walls):
            message = f"{version} knows walls {walls!r} only; choose another model"
            raise InvalidField("walls", "model", message + OR_SOLVER * solver)
        require_tested(version, problem.inputs[0].name, inputs.grid, solver=solver)
        if version.history > 1:
            message = f"{version} starts from {version.history} frames, a rollout from one state"
            message = f"{message}; choose another model"
            raise InvalidField("model", "history", message + OR_SOLVER * solver)
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
        judged = Judged(
            problem,
            bucket.grid,
            version.frame_interval or problem.frame_interval,
            version.calibration,
            calibrated_from=min(request.start_step, version.first_frame),
            surrogate=True,
            single=inputs.single,
            dtype=request.dtype,
            closed=walls in CLOSED,
            solver=solver,
        )
        return March(
            served.queue, bucket, judged, version.training_hull, None, request.ticket, served, self._shadows
        )

    def _reference(self, problem: EvolutionProblem, request: RolloutRequest, inputs: Inputs) -> March:
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
        judged = Judged(
            problem,
            grid,
            problem.frame_interval,
            {},
            calibrated_from=0,
            surrogate=False,
            single=inputs.single,
            dtype=request.dtype,
            closed=walls in CLOSED,
        )
        most = self._limits.cell_steps
        return March(self._references, bucket, judged, None, most, request.ticket, None, self._shadows)


def _unwatched(_: str) -> Progress:
    return Unwatched()


def _same(frame: Frame) -> Frame:
    return frame


def _own(frame: Frame) -> Frame:
    return frame._replace(fields={name: values.copy() for name, values in frame.fields.items()})


_OWN: Final = Form(_same, _own)


def _check_span(request: RolloutRequest, limits: Limits) -> None:
    steps = request.steps - request.start_step
    if steps > limits.rollout_steps:
        way_out = "ask for fewer" if request.derived else "go on with start_step"
        message = f"steps: at most {limits.rollout_steps} a request, got {steps}; {way_out}"
        raise InvalidField("steps", "maximum", message)
    if request.steps // request.every <= request.start_step // request.every:
        message = (
            f"steps: no multiple of every = {request.every} after start_step = {request.start_step} "
            f"up to steps = {request.steps}; steps counts from the initial state"
        )
        raise InvalidField("steps", "minimum", message)


def _checked(problem: EvolutionProblem, request: RolloutRequest, limits: Limits) -> Inputs:
    return validate_inputs(problem, complete_state(problem, request.state, request.start_step), limits)


def _looked_at(
    request: RolloutRequest, march: March, inputs: Inputs
) -> tuple[FrameJudge, tuple[Features, ...]]:
    """What judges the frames, and for each row the numbers by which it is compared with the training data."""
    if march.bucket.dtype == "float32":
        within_float32(march.judged.problem, inputs, solver=not request.derived)
    judge = FrameJudge(march.judged, request.start_step, inputs.fields)
    if march.hull is None or march.served is None:
        return judge, ()
    problem, grid = march.judged.problem, march.bucket.grid
    features = tuple(problem.features(row, grid) for row in rows_of(inputs.fields))
    outside_of = [outside(march.hull, each) for each in features]
    require_in_range(march.served.version, problem.inputs[0].name, outside_of, single=inputs.single)
    return judge, features


def _novelty(
    march: March, features: Sequence[Features], scores: tuple[float, ...], rows: int
) -> tuple[Novelty, ...]:
    """Of each row; the first block is computed by then, which gives the scores."""
    return (FAMILIAR,) * rows if march.hull is None else state_novelty(march.hull, features, scores)
