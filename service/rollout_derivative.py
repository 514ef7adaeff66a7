"""The story of a derivative through a rollout: roll out, and carry directions through each block of it.

The derivative is that of the version's network, and labelled as such: nothing bounds its error. The way is
the very rollout that a client gets (``rollout.py``), so that the frames are the served ones and a state that
diverges is refused alike. Gradients go back through its blocks (``rollout_gradient.py``), tangents forth with
them (``rollout_tangent.py``). Both ask the version's worker for one block after another: nobody waits behind
a long derivative for more than one block of each of its directions, and what nobody waits for any more is not
computed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, final

from service.deadline import Deadline
from service.errors import DeadlineExceeded, Overloaded, WorkerLost
from service.gradient import Derivative
from service.lookup import find_evolution
from service.march import March
from service.passage import off_loop, size_of
from service.rollout import Roller, Rollout
from service.rollout_gradient import Backward
from service.rollout_question import (
    Asked,
    RolloutJvpRequest,
    RolloutVjpRequest,
    checked,
    given_directions,
    require_surrogate,
    rollout_of,
)
from service.rollout_tangent import Forward
from service.rollout_way import Carried, Way, blocks_of
from service.settings import Limits
from service.telemetry.timing import Timing

__all__ = ["RolloutDifferentiator"]

WAY_OUT: Final = "allow more time or ask for fewer steps"
# of a forward pass, what a derivative takes at least: of gradients 2.1 of them were measured, of tangents 2.6
LEAST_DERIVATIVE: Final = 2.0
# derivatives are short: whoever was refused may soon come again [s]
RETRY_AFTER: Final = 5


@final
class RolloutDifferentiator:
    """Differentiates the rollouts of the served surrogates."""

    def __init__(self, roller: Roller, limits: Limits) -> None:
        self._roller = roller
        self._limits = limits
        # of all requests under way, what they hold between blocks [B]
        self._kept = 0

    async def differentiate(self, request: RolloutVjpRequest | RolloutJvpRequest) -> Derivative:
        """The gradient of the sum of cotangents times the frame of ``steps``, or the tangents of frames.

        Raises:
            ServiceFault: one of its kinds, when there is none to give.
        """
        problem = find_evolution(request.problem)
        require_surrogate(request)
        way: Way = Backward() if isinstance(request, RolloutVjpRequest) else Forward()
        async with Deadline(request.ticket.deadline, request.received, WAY_OUT).kept():
            size = size_of(request.state) + size_of(given_directions(request))
            asked = await off_loop(size, checked, problem, request, self._limits)
            with _asked_anew():
                rollout, carried = await self._carried(asked, way)
            return await _answer(asked, way, rollout, carried)

    async def _carried(self, asked: Asked, way: Way) -> tuple[Rollout, Carried]:
        began = time.perf_counter()
        rollout = await self._roller.start(rollout_of(asked.request))
        try:
            _require_time(asked, way, rollout.march)
            first = time.perf_counter() - began
            with self._keeping(rollout.nbytes + way.held(asked, rollout.march)):
                carried = await way.carry(asked, rollout)
            return rollout, carried._replace(seconds=carried.seconds + first)
        finally:
            await rollout.close()

    @contextmanager
    def _keeping(self, nbytes: int) -> Iterator[None]:
        """While so many bytes of states and directions are held.

        Raises:
            Overloaded: with those of other requests they are too many.
        """
        # alone, a request gets whatever the limits on one request let through
        if self._kept and self._kept + nbytes > self._limits.inflight_bytes:
            message = f"the states of other derivatives take {self._kept} bytes; try again in {RETRY_AFTER} s"
            raise Overloaded(message, RETRY_AFTER)
        self._kept += nbytes
        try:
            yield
        finally:
            self._kept -= nbytes


@contextmanager
def _asked_anew() -> Iterator[None]:
    """Where a worker is lost: a rollout goes on from a step, a derivative does not.

    Raises:
        WorkerLost: without a step.
    """
    try:
        yield
    except WorkerLost as lost:
        if lost.step is None:
            raise
        message = f"{lost.__cause__ or lost}; a derivative does not go on from a step, ask for it again"
        raise WorkerLost(message, lost.retry_after) from lost


def _require_time(asked: Asked, way: Way, march: March) -> None:
    """Refuse at once what cannot be had by the deadline, as far as is known.

    Raises:
        DeadlineExceeded: it cannot.
    """
    deadline, queue, blocks = asked.request.ticket.deadline, march.queue, blocks_of(asked, march)
    if deadline is None:
        return
    rows, number = asked.inputs.rows, asked.like.number
    there = queue.expected(march.bucket, rows)
    carried = (
        queue.expected(way.bucket(march, (march.block,)), rows * number) or LEAST_DERIVATIVE * number * there
    )
    # the first block was computed
    needed, left = (blocks - 1) * there + blocks * carried, deadline - time.perf_counter()
    if needed > left:
        through = f"a derivative through {blocks} blocks of {march.block} steps"
        took = f"takes another {needed:.1f} s or so, with {left:.1f} s to the deadline"
        raise DeadlineExceeded(f"{through} {took}; {WAY_OUT}")


async def _answer(asked: Asked, way: Way, rollout: Rollout, carried: Carried) -> Derivative:
    """The derivative with what is known about it."""
    request, outcomes = asked.request, carried.outcomes
    values = await off_loop(size_of(carried.fields), way.leaving, asked, carried.fields)
    compute = carried.seconds + sum(outcome.compute for outcome in outcomes)
    backward = isinstance(request, RolloutVjpRequest)
    return Derivative(
        values=values,
        name=way.name(asked),
        single=asked.inputs.single,
        model=rollout.model,
        method="surrogate",
        operator=rollout.operator,
        in_distribution=rollout.in_distribution,
        norm="directional" if backward else "energy",
        errors=None,
        batch_size=max(outcome.batch_size for outcome in outcomes),
        timing=Timing.of_seconds(
            sum(outcome.queue for outcome in outcomes), compute, 0.0, time.perf_counter() - request.received
        ),
        steps=() if backward else asked.steps,
    )
