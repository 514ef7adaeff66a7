"""Messages of `proto/mno/v1` <-> requests and answers of the domain.

An answer is written as parts: the elements of an array are sent from where they are, and only what stands
around them is new. A message is the concatenation of its fields, so that the rest may follow as one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, final

import numpy as np

from problems import ErrorBound, FieldSpec, Problem
from service.codec import raw_bytes
from service.errors import LONGEST_QUOTE, InvalidField
from service.gradient import VjpRequest, VjpResponse
from service.grpc.call import Call
from service.grpc.layout import Dtype, Layout, arrays, common_dtype, layouts
from service.grpc.parts import Parts, entry, tagged, tensor_parts
from service.lookup import find_steady
from service.pb import solver_pb2 as pb
from service.pb.usual import ELEMENTS, ID, Cuts, Form, Wanted
from service.request import ErrorKind, Method
from service.rollout import Rollout, RolloutRequest
from service.solver import SolveRequest, SolveResponse
from service.ticket import Priority, Ticket

__all__ = [
    "SOLVE_FORM",
    "SolveOrder",
    "read_rollout",
    "read_solve",
    "read_vjp",
    "rollout_metadata",
    "write_solution",
    "write_vjp",
]

# metadata: requests with equal keys are answered by equal versions
KEY_NAME: Final = "mno-key"
LAST_STEP: Final = 2**31 - 1

METHODS: Final = {0: "auto", 1: "auto", 2: "surrogate", 3: "hybrid", 4: "solver"}
METHOD_NUMBERS: Final = {
    "surrogate": pb.METHOD_SURROGATE,
    "hybrid": pb.METHOD_HYBRID,
    "solver": pb.METHOD_SOLVER,
}
ERRORS: Final = {0: "bound", 1: "none", 2: "bound", 3: "certified"}
PRIORITIES: Final[Mapping[int, Priority]] = {0: "interactive", 1: "interactive", 2: "bulk"}

# tags: a field's number and 2, that its length comes next
SOLVE_FIELDS: Final = b"\x0a"  # SolveResponse.fields = 1
GRADIENT: Final = b"\x0a"  # VjpResponse.gradient = 1


# --- requests


@final
class SolveOrder(NamedTuple):
    """What a ``SolveRequest`` says beside its id and the elements of its fields."""

    problem: str
    fields: Sequence[Layout]
    parameters: Mapping[str, float]
    dtype: Dtype
    model: str | None
    method: Method
    error: ErrorKind
    tolerance: float | str | None
    priority: Priority
    reproducible: bool


def _order(message: pb.SolveRequest) -> SolveOrder:
    _refuse_unknown_names(message)
    fields, tolerance = layouts("fields", message.fields), _tolerance(message)
    fallback = "float64" if tolerance is not None else common_dtype(field.dtype for field in fields)
    return SolveOrder(
        message.problem,
        fields,
        dict(message.parameters),
        _dtype(message.dtype, fallback),
        message.model or None,
        _choice("method", METHODS, message.method),
        _choice("error", ERRORS, message.error),
        tolerance,
        _choice("priority", PRIORITIES, message.priority),
        message.reproducible,
    )


def _elements(message: pb.SolveRequest) -> Sequence[bytes]:
    return [tensor.data for tensor in message.fields.values()]


# SolveRequest.id = 1, and .fields = 3, whose entries have a value = 2, which has data = 3; a map has no order
SOLVE_CUTS: Final[Cuts] = {0x0A: ID, 0x1A: {0x12: {0x1A: ELEMENTS}}}
SOLVE_FORM: Final = Form(pb.SolveRequest, SOLVE_CUTS, range(1, 2), _order, _elements)


def read_solve(wanted: Wanted[SolveOrder], call: Call, received: float) -> SolveRequest:
    """The request of a call.

    Args:
        wanted: what came.
        call: with or in which it came.
        received: when, on the clock of ``time.perf_counter`` [s].

    Raises:
        InvalidField: something that a message can say and a request cannot.
    """
    order = wanted.said()
    fields = {
        field.name: field.filled(data) for field, data in zip(order.fields, wanted.elements, strict=True)
    }
    return SolveRequest(
        order.problem,
        {**fields, **order.parameters},
        order.dtype,
        order.model,
        order.method,
        order.error,
        order.tolerance,
        Ticket(call.client, order.priority, order.reproducible, call.deadline),
        call.metadata.get(KEY_NAME, ""),
        received,
    )


def read_rollout(message: pb.RolloutRequest, call: Call) -> RolloutRequest:
    """See ``read_solve``."""
    state = arrays("state", message.state)
    for name, values in state.items():
        if values.ndim != 2:
            got = f"got shape {values.shape}; a rollout starts from one state, send a request for each"
            raise InvalidField(
                name[:LONGEST_QUOTE], "rank", f"{name[:LONGEST_QUOTE]}: expected (y, x), {got}"
            )
    if message.parameters:
        name = sorted(message.parameters)[0][:LONGEST_QUOTE]
        raise InvalidField(name, "unknown", f"{name!r}: no problem that evolves has parameters; leave it out")
    if message.error == pb.ERROR_REQUEST_CERTIFIED:
        raise InvalidField("error", "unknown", "error: frames are never certified; leave it out")
    _choice("error", ERRORS, message.error)
    if not 1 <= message.steps <= LAST_STEP or message.start_step > LAST_STEP:
        got = f"got steps = {message.steps}, start_step = {message.start_step}"
        raise InvalidField("steps", "range", f"steps: expected 1 to {LAST_STEP}, {got}")
    return RolloutRequest(
        message.problem,
        state,
        message.steps,
        every=max(message.every, 1),
        start_step=message.start_step,
        dtype=_dtype(message.dtype, common_dtype(values.dtype for values in state.values())),
        model=message.model or None,
        method=_choice("method", METHODS, message.method),
        walls=message.walls or None,
        ticket=_ticket(message, call),
        key=call.metadata.get(KEY_NAME, ""),
        received=call.received,
    )


def read_vjp(message: pb.VjpRequest, call: Call) -> VjpRequest:
    """See ``read_solve``."""
    request = message.request
    _refuse_unknown_names(request)
    if _tolerance(request) is not None:
        raise InvalidField("tolerance", "unknown", "tolerance: gradients are never certified; leave it out")
    if request.error not in (pb.ERROR_REQUEST_UNSPECIFIED, pb.ERROR_REQUEST_NONE):
        raise InvalidField("error", "unknown", "error: of gradients none is estimated; leave it out")
    given = arrays("fields", request.fields)
    return VjpRequest(
        request.problem,
        {**given, **request.parameters},
        arrays("cotangents", message.cotangents),
        wrt=message.wrt or None,
        dtype=_dtype(request.dtype, common_dtype(values.dtype for values in given.values())),
        model=request.model or None,
        method=_choice("method", METHODS, request.method),
        ticket=_ticket(request, call),
        key=call.metadata.get(KEY_NAME, ""),
        received=call.received,
    )


def _refuse_unknown_names(message: pb.SolveRequest) -> None:
    problem = find_steady(message.problem)
    _refuse_unknown(problem, "input field", message.fields, problem.inputs)
    _refuse_unknown(problem, "parameter", message.parameters, problem.parameters)


def _refuse_unknown(problem: Problem, kind: str, given: Iterable[str], specs: Sequence[FieldSpec]) -> None:
    known = [spec.name for spec in specs]
    for name in given:
        if name not in known:
            what, expected = name[:LONGEST_QUOTE], ", ".join(known) or "none"
            raise InvalidField(
                what, "unknown", f"{what!r} is no {kind} of {problem.name}: expected {expected}"
            )


def _dtype(wanted: str, fallback: Dtype) -> Dtype:
    if wanted == "":
        return fallback
    if wanted == "float32":
        return "float32"
    if wanted == "float64":
        return "float64"
    got = repr(wanted[:LONGEST_QUOTE])
    raise InvalidField("dtype", "unknown", f"dtype: expected float32 or float64, got {got}")


def _choice(name: str, table: Mapping[int, Any], number: int) -> Any:
    # a newer client may know numbers that this service does not
    if number not in table:
        known = sorted(set(table.values()))
        raise InvalidField(name, "unknown", f"{name}: expected one of {known}, got number {number}")
    return table[number]


def _tolerance(message: pb.SolveRequest) -> float | str | None:
    match message.tolerance.WhichOneof("kind"):
        case "relative_energy":
            return float(message.tolerance.relative_energy)
        case "discretization":
            return "discretization" if message.tolerance.discretization else None
    return None


def _ticket(message: pb.SolveRequest | pb.RolloutRequest, call: Call) -> Ticket:
    priority = _choice("priority", PRIORITIES, message.priority)
    return Ticket(call.client, priority, message.reproducible, call.deadline)


# --- answers


def write_solution(response: SolveResponse, name: str = "") -> Parts:
    """A ``SolveResponse``; ``name`` is the id of its request."""
    parts: list[bytes | memoryview] = []
    for field, values in response.fields.items():
        parts += (_before(field, values.dtype, values.shape), raw_bytes(values))
    known = response.in_distribution
    return [
        *parts,
        _said(response.model, response.method, response.operator, known, response.iterations),
        _found(response, name).SerializeToString(),
    ]


# the same again and again, with other elements
@lru_cache(maxsize=256)
def _before(field: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """What lies before the elements of a solution."""
    *head, _ = entry(SOLVE_FIELDS, field, np.empty(shape, dtype))
    return b"".join(head)


@lru_cache(maxsize=256)
def _said(
    model: str | None, method: str, operator: str, known: tuple[bool, ...] | None, iterations: tuple[int, ...]
) -> bytes:
    """What is said of a solution, whatever its numbers are."""
    return pb.SolveResponse(
        model=model or "",
        method=METHOD_NUMBERS[method],
        operator=operator,
        in_distribution=known or (),
        certified=[False] * len(iterations),
        iterations=iterations,
    ).SerializeToString()


def _found(response: SolveResponse, name: str) -> pb.SolveResponse:
    """What is said of this solution."""
    return pb.SolveResponse(
        errors=[_bound(error) for error in response.errors or ()],
        timing=_timing(response),
        id=name,
        batch_size=response.batch_size,
    )


def write_vjp(response: VjpResponse, name: str = "") -> Parts:
    """A ``VjpResponse``; of the solution it has what is known, not the numbers."""
    rows = len(response.in_distribution)
    solution = pb.SolveResponse(
        model=response.model,
        method=METHOD_NUMBERS[response.method],
        operator=response.operator,
        in_distribution=response.in_distribution,
        certified=[False] * rows,
        timing=_timing(response),
        id=name,
        batch_size=response.batch_size,
    )
    known = pb.VjpResponse(solution=solution, wrt=response.wrt).SerializeToString()
    return [*tagged(GRADIENT, tensor_parts(response.gradient)), known]


def rollout_metadata(rollout: Rollout) -> tuple[tuple[str, str], ...]:
    """What holds for all frames; the names are those of the HTTP headers."""
    return (
        ("mno-model", rollout.model or ""),
        ("mno-method", rollout.method),
        ("mno-operator", rollout.operator),
        ("mno-walls", rollout.walls),
        ("mno-fields", ",".join(rollout.names)),
        ("mno-frame-interval", repr(rollout.frame_interval)),
        ("mno-steps", str(rollout.steps)),
        ("mno-frames", str(rollout.count)),
        ("mno-block", str(rollout.block)),
    )


def _timing(response: SolveResponse | VjpResponse) -> pb.Timing:
    timing = response.timing
    return pb.Timing(
        queue_ms=timing.queue, compute_ms=timing.compute, certify_ms=timing.certify, total_ms=timing.total
    )


def _bound(error: ErrorBound) -> pb.ErrorEstimate:
    return pb.ErrorEstimate(
        kind=error.kind,
        norm=error.norm,
        lower=error.lower,
        upper=error.upper,
        l2_estimate=error.l2_estimate,
        steps=error.steps,
    )
