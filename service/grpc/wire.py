"""Messages of `proto/mno/v1` <-> requests and answers of the domain.

An answer is written as parts: the elements of an array are sent from where they are, and only what stands
around them is new. A message is the concatenation of its fields, so that the rest may follow as one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from problems import ErrorBound, FieldSpec, Problem
from service.codec import raw_bytes
from service.errors import LONGEST_QUOTE, InvalidField
from service.grpc.call import Call
from service.grpc.layout import Dtype, Layout, arrays, common_dtype, layouts
from service.grpc.parts import Parts, entry
from service.lookup import find_steady
from service.pb import solver_pb2 as pb
from service.pb.usual import ELEMENTS, ID, Cuts, Form, Wanted
from service.request import ErrorKind, Method
from service.rollout import Rollout, RolloutRequest
from service.solver import SolveRequest, SolveResponse
from service.telemetry.timing import Timing
from service.ticket import Priority, Ticket

__all__ = [
    "SOLVE_FORM",
    "SolveOrder",
    "check_steps",
    "choice",
    "dtype_of",
    "read_rollout",
    "read_solve",
    "refuse_parameters",
    "refuse_unknown_names",
    "rollout_metadata",
    "state_of",
    "ticket_of",
    "timing_of",
    "tolerance_of",
    "write_solution",
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
    refuse_unknown_names(message)
    fields, tolerance = layouts("fields", message.fields), tolerance_of(message)
    fallback: Dtype = "float64" if tolerance is not None else common_dtype(field.dtype for field in fields)
    dtype = dtype_of(message.dtype, fallback)
    if tolerance is not None and dtype == "float32":
        expected = "answers with a tolerance are float64: what is certified are the numbers that leave"
        raise InvalidField("dtype", "tolerance", f"dtype: {expected}; leave it out")
    return SolveOrder(
        message.problem,
        fields,
        dict(message.parameters),
        dtype,
        message.model or None,
        choice("method", METHODS, message.method),
        choice("error", ERRORS, message.error),
        tolerance,
        choice("priority", PRIORITIES, message.priority),
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
    state = state_of("state", message.state)
    refuse_parameters(message.parameters)
    if message.error == pb.ERROR_REQUEST_CERTIFIED:
        raise InvalidField("error", "unknown", "error: frames are never certified; leave it out")
    choice("error", ERRORS, message.error)
    check_steps(message.steps, message.start_step)
    return RolloutRequest(
        message.problem,
        state,
        message.steps,
        every=max(message.every, 1),
        start_step=message.start_step,
        dtype=dtype_of(message.dtype, common_dtype(values.dtype for values in state.values())),
        model=message.model or None,
        method=choice("method", METHODS, message.method),
        walls=message.walls or None,
        ticket=ticket_of(message, call),
        key=call.metadata.get(KEY_NAME, ""),
        received=call.received,
        defects=message.defects,
    )


def state_of(name: str, tensors: Mapping[str, pb.Tensor]) -> dict[str, NDArray[Any]]:
    """The fields (y, x) of one state, which came as ``name``."""
    state = arrays(name, tensors)
    for field, values in state.items():
        if values.ndim != 2:
            got = f"got shape {values.shape}; a rollout starts from one state, send a request for each"
            raise InvalidField(
                field[:LONGEST_QUOTE], "rank", f"{field[:LONGEST_QUOTE]}: expected (y, x), {got}"
            )
    return state


def refuse_parameters(given: Mapping[str, float]) -> None:
    """Refuse parameters of a problem that evolves: none has any."""
    if given:
        name = sorted(given)[0][:LONGEST_QUOTE]
        raise InvalidField(name, "unknown", f"{name!r}: no problem that evolves has parameters; leave it out")


def check_steps(steps: int, start_step: int) -> None:
    """Refuse steps that are not counted."""
    if not 1 <= steps <= LAST_STEP or start_step > LAST_STEP:
        got = f"got steps = {steps}, start_step = {start_step}"
        raise InvalidField("steps", "range", f"steps: expected 1 to {LAST_STEP}, {got}")


def refuse_unknown_names(message: pb.SolveRequest) -> None:
    """Refuse fields and parameters that the problem does not have."""
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


def dtype_of(wanted: str, fallback: Dtype) -> Dtype:
    """The dtype that a message names, or else ``fallback``."""
    if wanted == "":
        return fallback
    if wanted == "float32":
        return "float32"
    if wanted == "float64":
        return "float64"
    got = repr(wanted[:LONGEST_QUOTE])
    raise InvalidField("dtype", "unknown", f"dtype: expected float32 or float64, got {got}")


def choice(name: str, table: Mapping[int, Any], number: int) -> Any:
    """What a number of an enumeration means."""
    # a newer client may know numbers that this service does not
    if number not in table:
        known = sorted(set(table.values()))
        raise InvalidField(name, "unknown", f"{name}: expected one of {known}, got number {number}")
    return table[number]


def tolerance_of(message: pb.SolveRequest) -> float | str | None:
    """What is said of the error that is allowed."""
    match message.tolerance.WhichOneof("kind"):
        case "relative_energy":
            return float(message.tolerance.relative_energy)
        case "discretization":
            return "discretization" if message.tolerance.discretization else None
    return None


def ticket_of(message: pb.SolveRequest | pb.RolloutRequest, call: Call) -> Ticket:
    """For whom, how urgently and until when."""
    priority = choice("priority", PRIORITIES, message.priority)
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
        _said(
            response.model, response.method, response.operator, known, response.iterations, response.certified
        ),
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
    model: str | None,
    method: str,
    operator: str,
    known: tuple[bool, ...] | None,
    iterations: tuple[int, ...],
    certified: bool,
) -> bytes:
    """What is said of a solution, whatever its numbers are."""
    return pb.SolveResponse(
        model=model or "",
        method=METHOD_NUMBERS[method],
        operator=operator,
        in_distribution=known or (),
        certified=[certified] * len(iterations),
        iterations=iterations,
    ).SerializeToString()


def _found(response: SolveResponse, name: str) -> pb.SolveResponse:
    """What is said of this solution."""
    novelty = response.novelty or ()
    scores = [each.score for each in novelty if each.score is not None]
    return pb.SolveResponse(
        errors=[_bound(error) for error in response.errors or ()],
        timing=timing_of(response.timing),
        id=name,
        batch_size=response.batch_size,
        ood_scores=scores if len(scores) == len(novelty) else (),
        explanations=[each.explanation for each in novelty],
    )


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


def timing_of(timing: Timing) -> pb.Timing:
    """Where the time went."""
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
        reference=error.reference,
        **_known_sides(error),
    )


def _known_sides(error: ErrorBound) -> dict[str, float]:
    """The bounds in other norms, by name, where there are any; what is left out is unknown."""
    known: dict[str, float] = {}
    if math.isfinite(error.l2_upper):
        known |= {"l2_lower": error.l2_lower, "l2_upper": error.l2_upper}
    if math.isfinite(error.max_upper):
        known |= {"max_lower": error.max_lower, "max_upper": error.max_upper}
    return known
