"""The story of a gradient through a rollout: roll out, keep the states between blocks, go back through each.

The gradient is that of the version's network, and labelled as such: nothing bounds its error. The way there
is the very rollout that a client gets (``rollout.py``), so that the frame is the served one and a state that
diverges is refused alike. The way back asks the version's worker for one block after another, the last one
first (``workers/block_gradient.py``): nobody waits behind a long gradient for more than one block of each of
its cotangents, and what nobody waits for any more is not computed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from problems import EvolutionProblem
from service.batching.batcher import Outcome
from service.deadline import Deadline
from service.directions import Directions, check_directions
from service.errors import (
    LONGEST_QUOTE,
    DeadlineExceeded,
    InvalidField,
    NotAvailableYet,
    NotCertifiable,
    Overloaded,
)
from service.frame_judge import State
from service.gradient import Derivative, GradientMethod, chosen_input
from service.lookup import find_evolution
from service.march import March
from service.passage import leaving, off_loop, placed, size_of
from service.rollout import Roller, Rollout, RolloutRequest
from service.settings import Limits
from service.telemetry.timing import Timing
from service.ticket import ANYBODY, Ticket
from service.tolerance import check_tolerance
from service.validate import Inputs, complete_state, validate_inputs
from service.workers.worker import COTANGENT, GRADIENT, Batch, Bucket, Solutions

__all__ = ["RolloutDifferentiator", "RolloutVjpRequest"]

WAY_OUT: Final = "allow more time or ask for fewer steps"
# of a forward pass, what a way back takes at least: 2.1 of them were measured
LEAST_WAY_BACK: Final = 2.0
# gradients are short: whoever was refused may soon come again [s]
RETRY_AFTER: Final = 5
# an outcome is kept for its times: its numbers lie in memory that others wait for
NOTHING: Final = Solutions({}, ())


@final
@dataclass(frozen=True)
class RolloutVjpRequest:
    """A state, and cotangents of the frame that a rollout from it has at a step.

    Attributes:
        state: fields (ny, nx) or (batch, ny, nx) by name, as they came.
        cotangents: by name of the field, of the shape that the state has, or several on a leading axis; at
            least one name. A field without does not count.
        steps: the step of the frame, counted from the initial state.
        start_step: number of the step that ``state`` belongs to.
        wrt: the field of the state, or ``log_<field>`` for its logarithm; None: the problem's first.
        dtype: dtype of the gradient, float32 or float64.
        method: ``auto`` and ``surrogate``; there is no other.
        walls: boundary conditions; None: those of the model.
        tolerance: there is none that can be met; None.
        ticket: for whom, how urgently and until when.
        key: what decides whether a canary answers: equal keys get equal versions; empty: by chance.
        received: ``time.perf_counter()`` when the request arrived [s].
    """

    problem: str
    state: State
    cotangents: Mapping[str, Any]
    steps: int
    start_step: int = 0
    wrt: str | None = None
    dtype: Literal["float32", "float64"] = "float32"
    model: str | None = None
    method: GradientMethod = "auto"
    walls: str | None = None
    tolerance: float | None = None
    ticket: Ticket = ANYBODY
    key: str = ""
    received: float = field(default_factory=time.perf_counter)


@final
class _Asked(NamedTuple):
    """What a request comes to, once it is checked.

    Attributes:
        name: the field that the gradient is taken with respect to, in its logarithm if ``logarithmic``.
        cotangents: of all fields [batch direction y x] by name.
        like: the axes that the caller's cotangents have.
    """

    problem: EvolutionProblem
    request: RolloutVjpRequest
    inputs: Inputs
    name: str
    logarithmic: bool
    cotangents: State
    like: Directions


@final
class _Way(NamedTuple):
    """The way from the state to the frame.

    Attributes:
        states: [batch y x] by name, before each block.
        last: the frame of the last block that is meant, counted from 1.
    """

    states: Sequence[State]
    last: int


@final
class RolloutDifferentiator:
    """Differentiates the rollouts of the served surrogates."""

    def __init__(self, roller: Roller, limits: Limits) -> None:
        self._roller = roller
        self._limits = limits
        # states between blocks, of all requests under way [B]
        self._kept = 0

    async def differentiate(self, request: RolloutVjpRequest) -> Derivative:
        """The gradient of the sum of cotangents times the frame of ``steps``.

        Raises:
            ServiceFault: one of its kinds, when there is none to give.
        """
        problem = find_evolution(request.problem)
        _require_surrogate(request)
        async with Deadline(request.ticket.deadline, request.received, WAY_OUT).kept():
            size = size_of(request.state) + size_of(request.cotangents)
            asked = await off_loop(size, _checked, problem, request, self._limits)
            began = time.perf_counter()
            rollout = await self._roller.start(_there(request))
            try:
                march = rollout.march
                _require_time(asked, march)
                with self._keeping(rollout.nbytes + _blocks(asked, march) * size_of(asked.inputs.fields)):
                    way = await _followed(asked, rollout)
                    seconds = time.perf_counter() - began
                    gradients, outcomes = await _back(asked, march, way)
            finally:
                await rollout.close()
            return await _answer(asked, rollout, gradients, outcomes, seconds)

    @contextmanager
    def _keeping(self, nbytes: int) -> Iterator[None]:
        """While so many bytes of states are kept.

        Raises:
            Overloaded: with those of other requests they are too many.
        """
        # alone, a request gets whatever the limits on one request let through
        if self._kept and self._kept + nbytes > self._limits.inflight_bytes:
            message = f"the states of other gradients take {self._kept} bytes; try again in {RETRY_AFTER} s"
            raise Overloaded(message, RETRY_AFTER)
        self._kept += nbytes
        try:
            yield
        finally:
            self._kept -= nbytes


# --- what is asked


def _require_surrogate(request: RolloutVjpRequest) -> None:
    """Refuse what only an adjoint of the reference solver could give."""
    none = f"there is no adjoint of the reference solver of {request.problem}"
    if request.method not in ("auto", "surrogate"):
        message = f"method={request.method}: {none}; ask for surrogate, whose gradients nothing bounds"
        raise NotAvailableYet(message)
    check_tolerance(request.tolerance)
    if request.tolerance is not None:
        message = (
            f"tolerance: nothing is known of the error of a surrogate's gradient, and {none}; leave it out"
        )
        raise NotCertifiable(message)


def _checked(problem: EvolutionProblem, request: RolloutVjpRequest, limits: Limits) -> _Asked:
    state = complete_state(problem, request.state, request.start_step)
    inputs = validate_inputs(problem, state, limits)
    name, logarithmic = chosen_input(problem, request.wrt)
    directions = _directions(problem, request.cotangents, inputs, limits)
    like = next(iter(directions.values()))
    _check_steps(request, inputs.rows * like.number, limits)
    nothing = np.zeros(like.values.shape, np.float32)
    cotangents = {
        spec.name: directions[spec.name].values if spec.name in directions else nothing
        for spec in problem.outputs
    }
    return _Asked(problem, request, inputs, name, logarithmic, cotangents, like)


def _directions(
    problem: EvolutionProblem, given: Mapping[str, Any], inputs: Inputs, limits: Limits
) -> dict[str, Directions]:
    """The cotangents by the field that they are of.

    Raises:
        InvalidField: there is none, one of an unknown field, of another shape, or with numbers that are none.
        TooLarge: they are too many.
    """
    names = [spec.name for spec in problem.outputs]
    for name in (each[:LONGEST_QUOTE] for each in given if each not in names):
        message = f"cotangent of {name!r}: expected some of {', '.join(names)}"
        raise InvalidField("cotangents", "unknown", message)
    if not given:
        message = f"cotangents: expected some of {', '.join(names)}, got none"
        raise InvalidField("cotangents", "missing", message)
    found = {
        name: check_directions(inputs, f"cotangent.{name}", values, limits) for name, values in given.items()
    }
    for name, each in found.items():
        if each.values.any() and not each.values.astype(np.float32).any():
            message = f"cotangent.{name}: too small for float32; scale it, the gradient scales too"
            raise InvalidField(f"cotangent.{name}", "float32", message)
    shapes = {name: np.shape(values) for name, values in given.items()}
    if len(set(shapes.values())) > 1:
        message = f"cotangents: expected one shape for all fields, got {shapes}"
        raise InvalidField("cotangents", "shape", message)
    return found


def _check_steps(request: RolloutVjpRequest, directions: int, limits: Limits) -> None:
    steps = request.steps - request.start_step
    if steps < 1:
        message = (
            f"steps: expected more than start_step = {request.start_step}, got {request.steps}; "
            "steps counts from the initial state"
        )
        raise InvalidField("steps", "minimum", message)
    if steps * directions > limits.gradient_steps:
        got = f"got {steps} for {directions} cotangent{'s' if directions > 1 else ''}"
        message = f"steps: a gradient goes through at most {limits.gradient_steps}, {got}"
        raise InvalidField("steps", "maximum", f"{message}; ask for fewer, or for one after the other")


def _there(request: RolloutVjpRequest) -> RolloutRequest:
    """The rollout to the frame."""
    return RolloutRequest(
        request.problem,
        request.state,
        request.steps,
        start_step=request.start_step,
        model=request.model,
        method="surrogate",
        walls=request.walls,
        ticket=request.ticket,
        key=request.key,
        received=request.received,
    )


def _blocks(asked: _Asked, march: March) -> int:
    """Blocks from the state to the frame."""
    return -(-(asked.request.steps - asked.request.start_step) // march.block)


def _backward(march: March, frame: int) -> Bucket:
    """In which bucket a block is gone back through, from one of its frames."""
    return replace(march.bucket, task="vjp", frames=frame)


def _require_time(asked: _Asked, march: March) -> None:
    """Refuse at once what cannot be had by the deadline, as far as is known.

    Raises:
        DeadlineExceeded: it cannot.
    """
    deadline, queue, blocks = asked.request.ticket.deadline, march.queue, _blocks(asked, march)
    if deadline is None:
        return
    rows = asked.inputs.rows
    there = queue.expected(march.bucket, rows)
    directions = rows * asked.like.number
    back = (
        queue.expected(_backward(march, march.block), directions)
        or LEAST_WAY_BACK * directions * there / rows
    )
    # the first block was computed
    needed, left = (blocks - 1) * there + blocks * back, deadline - time.perf_counter()
    if needed > left:
        took = f"a gradient through {blocks} blocks of {march.block} steps takes another {needed:.1f} s or so"
        raise DeadlineExceeded(f"{took}, with {left:.1f} s to the deadline; {WAY_OUT}")


# --- there and back


async def _followed(asked: _Asked, rollout: Rollout) -> _Way:
    """The states before each block; a rollout that does not get to the frame raises what is wrong with it."""
    start, end = asked.request.start_step, asked.request.steps
    states = [asked.inputs.fields]
    async with aclosing(rollout.frames) as frames:
        states += [
            frame.fields
            async for frame in frames
            if (frame.step - start) % rollout.block == 0 and frame.step < end
        ]
    return _Way(states, end - start - (len(states) - 1) * rollout.block)


async def _back(asked: _Asked, march: March, way: _Way) -> tuple[State, list[Outcome]]:
    """The gradients [row y x] with respect to the given state, a row for each cotangent of each state."""
    grid = asked.inputs.grid
    cotangents: State = {name: values.reshape(-1, *grid) for name, values in asked.cotangents.items()}
    frame, outcomes = way.last, []
    for state in reversed(way.states):
        size = size_of(cotangents) * 2
        batch = await off_loop(size, _batch, march, frame, state, cotangents)
        outcome = await march.queue.submit(batch, asked.request.ticket, admitted=True)
        found = outcome.solutions.fields
        # a state has the fields that a frame has
        cotangents = {name: found[f"{GRADIENT}{name}"] for name in cotangents}
        frame = march.block
        outcomes.append(outcome._replace(solutions=NOTHING))
        del found, outcome, batch
    return cotangents, outcomes


def _batch(march: March, frame: int, state: State, cotangents: State) -> Batch:
    """A row for each cotangent."""
    rows = len(next(iter(cotangents.values())))
    many = {name: values.repeat(rows // len(values), axis=0) for name, values in state.items()}
    given = many | {f"{COTANGENT}{name}": values for name, values in cotangents.items()}
    return Batch(_backward(march, frame), placed(given, march.queue, march.bucket.dtype))


# --- the answer


async def _answer(
    asked: _Asked, rollout: Rollout, gradients: State, outcomes: Sequence[Outcome], seconds: float
) -> Derivative:
    """The gradient with what is known about it; ``seconds``: what the way there took [s]."""
    request, inputs = asked.request, asked.inputs
    values = await off_loop(size_of(gradients), _leaving, asked, gradients)
    compute = seconds + sum(outcome.compute for outcome in outcomes)
    return Derivative(
        values=values,
        name=request.wrt or asked.name,
        single=inputs.single,
        model=rollout.model,
        method="surrogate",
        operator=rollout.operator,
        in_distribution=rollout.in_distribution,
        norm="directional",
        errors=None,
        batch_size=max(outcome.batch_size for outcome in outcomes),
        timing=Timing.of_seconds(
            sum(outcome.queue for outcome in outcomes), compute, 0.0, time.perf_counter() - request.received
        ),
    )


def _leaving(asked: _Asked, gradients: State) -> NDArray[Any]:
    """The numbers that leave, with the caller's axes."""
    inputs, name = asked.inputs, asked.name
    values = gradients[name].reshape(inputs.rows, asked.like.number, *inputs.grid)
    if asked.logarithmic:
        values = values * inputs.fields[name].astype(np.float64)[:, None]
    if not np.isfinite(values).all():
        grown = f"the gradient of {name} is not finite: it grew through the steps"
        message = f"{grown}; ask for fewer steps, or scale the cotangents"
        raise InvalidField(asked.problem.outputs[0].name, "diverged", message)
    (leaves,) = leaving({f"gradient of {name}": values}, asked.request.dtype, copy=True).values()
    # whoever writes them would else copy them
    return np.ascontiguousarray(asked.like.as_given(leaves, single=inputs.single))
