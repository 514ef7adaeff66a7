"""The story of numbers that are read off a solution: a mean, what flows out, the value at a point.

Each comes with a half-width that is guaranteed: two solves, one of the problem and one of its adjoint, give
the number, correct it, and bound what is left.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, cast, final

import numpy as np
from numpy.typing import NDArray

from problems import Mean, Outflow, Quantity, Reading, SteadyProblem
from problems.quantity import Wall
from service.batching.batcher import Batcher
from service.deadline import Deadline
from service.errors import InvalidField, TooLarge, quoted
from service.lookup import find_steady
from service.passage import off_loop, placed, size_of
from service.route import Router
from service.settings import Limits
from service.start import answered
from service.telemetry.timing import Timing
from service.ticket import ANYBODY, Ticket
from service.tolerance import check_tolerance, met_in_time, refuse_unsolved
from service.validate import Inputs, validate_inputs
from service.workers.sensitivities import row_of
from service.workers.worker import ANY, DEADLINE, QUANTITIES, TOLERANCE, Batch, Bucket

__all__ = ["QuantitiesRequest", "QuantitiesResponse", "Reader", "quantity_named"]

WAY_OUT: Final = "allow more time or ask for fewer"
# of one solution
MOST: Final = 64
LONGEST: Final = 80
_NUMBER: Final = r"[ ]*([-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]{1,3})?)[ ]*"
_READING: Final = re.compile(rf"reading\({_NUMBER},{_NUMBER}\)")
_OUTFLOW: Final = re.compile(r"outflow(?:\.([a-z+]+))?")
_EXPECTED: Final = (
    "'mean', 'outflow', 'outflow.left' (right, bottom, top, or some with +), or 'reading(y, x)'"
)


def quantity_named(name: str) -> Quantity:
    """What a client calls a quantity.

    Raises:
        InvalidField: there is none of this name.
    """
    try:
        if name == "mean":
            return Mean()
        if len(name) <= LONGEST and (found := _OUTFLOW.fullmatch(name)):
            walls = found[1]
            return Outflow() if walls is None else Outflow(cast("tuple[Wall, ...]", tuple(walls.split("+"))))
        if len(name) <= LONGEST and (found := _READING.fullmatch(name)):
            return Reading(float(found[1]), float(found[2]))
    except ValueError as error:
        raise InvalidField(QUANTITIES, "unknown", f"{QUANTITIES}: {error}") from error
    raise InvalidField(QUANTITIES, "unknown", f"{QUANTITIES}: expected {_EXPECTED}, got {quoted(name)}")


@final
@dataclass(frozen=True)
class QuantitiesRequest:
    """Inputs as for a solution, and what is to be read off it.

    Attributes:
        wanted: names; see :func:`quantity_named`.
        model: whose answer the solves start from; None: none.
        tolerance: each half-width is to be no more than this part of its value; None: whatever a few steps
            of the solver give.
    """

    problem: str
    given: Mapping[str, Any]
    wanted: Sequence[str]
    model: str | None = None
    tolerance: float | None = None
    ticket: Ticket = ANYBODY
    key: str = ""
    received: float = field(default_factory=time.perf_counter)


@final
class QuantitiesResponse(NamedTuple):
    """Numbers that were read off solutions.

    Attributes:
        names: as they were asked for.
        units: of each name.
        values: [batch quantity], or [quantity] of a single field.
        half_widths: guaranteed, of the same shape.
        operator: id of the discrete operator whose solution they are read off.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    values: NDArray[np.float64]
    half_widths: NDArray[np.float64]
    single: bool
    model: str | None
    operator: str
    timing: Timing
    batch_size: int

    @property
    def certified(self) -> tuple[bool, ...]:
        """Of each field, whether no half-width of its quantities is infinite."""
        rows = 1 if self.single else len(self.values)
        known = np.isfinite(self.half_widths).reshape(rows, -1)
        return tuple(bool(each.all()) for each in known)


@final
class Reader:
    """Reads quantities off the solutions of discrete problems."""

    def __init__(self, router: Router, limits: Limits, references: Batcher) -> None:
        self._router = router
        self._limits = limits
        self._queue = references

    async def read(self, request: QuantitiesRequest) -> QuantitiesResponse:
        """The quantities of each field, each with its half-width.

        Raises:
            ServiceFault: one of its kinds, when there is nothing to give.
        """
        problem = find_steady(request.problem)
        check_tolerance(request.tolerance)
        wanted = _wanted(request.wanted)
        with met_in_time(request.tolerance):
            async with Deadline(request.ticket.deadline, request.received, WAY_OUT).kept():
                return await self._read(problem, request, wanted)

    async def _read(
        self, problem: SteadyProblem, request: QuantitiesRequest, wanted: Sequence[Quantity]
    ) -> QuantitiesResponse:
        size, ticket = size_of(request.given), request.ticket
        inputs = await off_loop(size, validate_inputs, problem, request.given, self._limits)
        if request.model is None:
            chosen = self._router.reference(problem, None, request.key, inputs.grid)
        else:
            chosen = self._router.surrogate(problem, request.model, request.key, inputs.grid, ticket)
        of = chosen.bucket
        bucket = Bucket(
            *(of.problem, of.version, of.scheme, of.grid, "float64"),
            task="quantities",
            directions=len(wanted),
        )
        self._queue.require_room(bucket, inputs.rows, inputs.nbytes, ticket)
        start = await answered(problem, chosen, inputs, ticket)
        batch = await off_loop(size, self._batch, request, inputs, bucket, wanted)
        batch = Batch(bucket, {**batch.fields, **start.answers})
        outcome = await self._queue.submit(batch, ticket, admitted=bool(start.fields))
        refuse_unsolved(problem, inputs, outcome.solutions.unsolved, request.tolerance)
        found = outcome.solutions.fields[QUANTITIES]
        numbers = np.array(found[0] if inputs.single else found)
        total = time.perf_counter() - request.received
        return QuantitiesResponse(
            names=tuple(request.wanted),
            units=tuple(_unit(problem, each) for each in wanted),
            values=numbers[..., 0],
            half_widths=numbers[..., 1],
            single=inputs.single,
            model=None if chosen.served is None else str(of.version),
            operator=of.scheme,
            timing=Timing.of_seconds(
                start.queue + outcome.queue, start.compute + outcome.compute, 0.0, total
            ),
            batch_size=outcome.batch_size,
        )

    def _batch(
        self, request: QuantitiesRequest, inputs: Inputs, bucket: Bucket, wanted: Sequence[Quantity]
    ) -> Batch:
        _require_points_inside(bucket, wanted)
        deadline = math.inf if request.ticket.deadline is None else request.ticket.deadline
        tolerance = ANY if request.tolerance is None else request.tolerance
        rows = np.array([row_of(each) for each in wanted])
        asked = {QUANTITIES: np.broadcast_to(rows, (inputs.rows, *rows.shape))}
        numbers = {TOLERANCE: np.full(inputs.rows, tolerance), DEADLINE: np.full(inputs.rows, deadline)}
        return Batch(bucket, placed({**inputs.fields, **asked}, self._queue, "float64") | numbers)


def _unit(problem: SteadyProblem, quantity: Quantity) -> str:
    # per length of the third axis
    return "m^2/s" if isinstance(quantity, Outflow) else problem.outputs[0].unit


def _wanted(names: Sequence[str]) -> list[Quantity]:
    if not names:
        raise InvalidField(QUANTITIES, "missing", f"{QUANTITIES}: expected some of {_EXPECTED}, got none")
    if len(names) > MOST:
        raise TooLarge(f"{QUANTITIES}: a request has at most {MOST}, got {len(names)}; send several")
    return [quantity_named(name) for name in names]


def _require_points_inside(bucket: Bucket, wanted: Sequence[Quantity]) -> None:
    (oy, ox), (ly, lx) = bucket.grid.origin, bucket.grid.extent
    for each in wanted:
        if isinstance(each, Reading) and not (0 <= each.y - oy <= ly and 0 <= each.x - ox <= lx):
            message = f"reading: expected {oy:g} <= y <= {oy + ly:g} m and {ox:g} <= x <= {ox + lx:g} m"
            raise InvalidField(QUANTITIES, "outside", f"{message}, got y = {each.y:g}, x = {each.x:g}")
