"""Messages of `proto/mno/v1` <-> requests and answers of the domain.

An answer is written as parts: the elements of an array are sent from where they are, and only what stands
around them is new. A message is the concatenation of its fields, so that the rest may follow as one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from problems import ErrorBound, FieldSpec, Problem
from service.errors import LONGEST_QUOTE, InvalidField
from service.frame_trust import CalibratedError
from service.gradient import VjpRequest, VjpResponse
from service.grpc.call import Call
from service.grpc.parts import DTYPES, Parts, entry, tagged, tensor_parts
from service.lookup import find_steady
from service.pb import solver_pb2 as pb
from service.rollout import Frame, Rollout, RolloutRequest
from service.solver import SolveRequest, SolveResponse
from service.ticket import Priority, Ticket

__all__ = [
    "read_rollout",
    "read_solve",
    "read_vjp",
    "rollout_metadata",
    "write_frame",
    "write_solution",
    "write_vjp",
]

Dtype = Literal["float32", "float64"]

# metadata: requests with equal keys are answered by equal versions
KEY_NAME: Final = "mno-key"
HIGHEST_RANK: Final = 3
# more elements than any limit lets through
MOST_ELEMENTS: Final = 2**48
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
FRAME_FIELDS: Final = b"\x1a"  # Frame.fields = 3
GRADIENT: Final = b"\x0a"  # VjpResponse.gradient = 1


# --- requests


def read_solve(message: pb.SolveRequest, call: Call) -> SolveRequest:
    """The request of a call.

    Raises:
        InvalidField: something that a message can say and a request cannot.
    """
    given = _given(message)
    tolerance = _tolerance(message)
    fallback = "float64" if tolerance is not None else _common_dtype(given)
    return SolveRequest(
        message.problem,
        {**given, **message.parameters},
        dtype=_dtype(message.dtype, fallback),
        model=message.model or None,
        method=_choice("method", METHODS, message.method),
        error=_choice("error", ERRORS, message.error),
        tolerance=tolerance,
        ticket=_ticket(message, call),
        key=call.metadata.get(KEY_NAME, ""),
        received=call.received,
    )


def read_rollout(message: pb.RolloutRequest, call: Call) -> RolloutRequest:
    """See ``read_solve``."""
    state = _fields("state", message.state)
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
        dtype=_dtype(message.dtype, _common_dtype(state)),
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
    given = _given(request)
    return VjpRequest(
        request.problem,
        {**given, **request.parameters},
        _fields("cotangents", message.cotangents),
        wrt=message.wrt or None,
        dtype=_dtype(request.dtype, _common_dtype(given)),
        model=request.model or None,
        method=_choice("method", METHODS, request.method),
        ticket=_ticket(request, call),
        key=call.metadata.get(KEY_NAME, ""),
        received=call.received,
    )


def _fields(what: str, tensors: Mapping[str, pb.Tensor]) -> dict[str, NDArray[Any]]:
    if not tensors:
        raise InvalidField(what, "missing", f"{what}: expected an array by name, got none")
    return {name: _array(name[:LONGEST_QUOTE], tensor) for name, tensor in tensors.items()}


def _array(name: str, tensor: pb.Tensor) -> NDArray[Any]:
    """The elements where they lie in the message, read only."""
    dtype = DTYPES.get(tensor.dtype)
    if dtype is None:
        got = repr(tensor.dtype[:LONGEST_QUOTE])
        raise InvalidField(name, "dtype", f"{name}: expected dtype float32 or float64, got {got}")
    # a forged shape may have any number of axes
    shape = tuple(tensor.shape[: HIGHEST_RANK + 1])
    if not 0 < len(shape) <= HIGHEST_RANK:
        axes = len(tensor.shape)
        raise InvalidField(name, "rank", f"{name}: expected (y, x) or (batch, y, x), got {axes} axes")
    if min(shape) <= 0 or math.prod(shape) > MOST_ELEMENTS:
        raise InvalidField(name, "shape", f"{name}: no array has shape {shape}; send the lengths of its axes")
    data = tensor.data
    if len(data) != math.prod(shape) * dtype.itemsize:
        expected = f"expected {math.prod(shape) * dtype.itemsize} bytes for {tensor.dtype} of shape {shape}"
        raise InvalidField(name, "bytes", f"{name}: {expected}, got {len(data)}")
    return np.frombuffer(data, dtype).reshape(shape)


def _given(message: pb.SolveRequest) -> dict[str, NDArray[Any]]:
    """The fields of a request, if the problem has all that it names."""
    problem = find_steady(message.problem)
    _refuse_unknown(problem, "input field", message.fields, problem.inputs)
    _refuse_unknown(problem, "parameter", message.parameters, problem.parameters)
    return _fields("fields", message.fields)


def _refuse_unknown(problem: Problem, kind: str, given: Iterable[str], specs: Sequence[FieldSpec]) -> None:
    known = [spec.name for spec in specs]
    for name in given:
        if name not in known:
            what, expected = name[:LONGEST_QUOTE], ", ".join(known) or "none"
            raise InvalidField(
                what, "unknown", f"{what!r} is no {kind} of {problem.name}: expected {expected}"
            )


def _common_dtype(given: Mapping[str, NDArray[Any]]) -> Dtype:
    return "float64" if any(values.dtype == np.float64 for values in given.values()) else "float32"


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
        parts += entry(SOLVE_FIELDS, field, values)
    return [*parts, _rest(response, name).SerializeToString()]


def write_vjp(response: VjpResponse) -> Parts:
    """A ``VjpResponse``; of the solution it has what is known, not the numbers."""
    rows = len(response.in_distribution)
    solution = pb.SolveResponse(
        model=response.model,
        method=METHOD_NUMBERS[response.method],
        operator=response.operator,
        in_distribution=response.in_distribution,
        certified=[False] * rows,
        timing=_timing(response),
        batch_size=response.batch_size,
    )
    known = pb.VjpResponse(solution=solution, wrt=response.wrt).SerializeToString()
    return [*tagged(GRADIENT, tensor_parts(response.gradient)), known]


def write_frame(frame: Frame, rollout: Rollout) -> Parts:
    """A ``Frame`` of a rollout of one state."""
    parts: list[bytes | memoryview] = []
    for name in rollout.names:
        parts += entry(FRAME_FIELDS, name, frame.fields[name][0])
    rest = pb.Frame(
        step=frame.step,
        time=frame.time,
        invariants={name: float(values[0]) for name, values in frame.invariants.items()},
        error=None if frame.error is None else _calibrated(frame.error),
        model=rollout.model or "",
        in_distribution=rollout.in_distribution[0],
    )
    return [*parts, rest.SerializeToString()]


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


def _rest(response: SolveResponse, name: str) -> pb.SolveResponse:
    known = response.in_distribution
    return pb.SolveResponse(
        model=response.model or "",
        method=METHOD_NUMBERS[response.method],
        operator=response.operator,
        errors=[_bound(error) for error in response.errors or ()],
        in_distribution=known or (),
        certified=[False] * len(response.iterations),
        iterations=response.iterations,
        timing=_timing(response),
        id=name,
        batch_size=response.batch_size,
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


def _calibrated(error: CalibratedError) -> pb.ErrorEstimate:
    return pb.ErrorEstimate(kind=error.kind, norm=error.norm, upper=error.upper, coverage=error.coverage)
