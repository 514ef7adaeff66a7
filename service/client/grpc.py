"""The clients' way over gRPC."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, final

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray

from problems import EVOLUTION_PROBLEMS, STEADY_PROBLEMS
from service.client.address import Address
from service.client.answers import (
    Answer,
    CalibratedEstimate,
    ErrorEstimate,
    Frame,
    Gradient,
    Quantity,
    Tangent,
)
from service.client.connection import (
    AsyncStream,
    AsyncTransport,
    Leg,
    Question,
    ServiceError,
    Stream,
    Transport,
    Unreachable,
)
from service.client.retrying import RETRIED, Retryable, seconds_of
from service.grpc.parts import entry, tagged
from service.pb import inference_pb2 as inference
from service.pb import solver_pb2 as pb

__all__ = ["AsyncGrpcTransport", "GrpcTransport"]

SOLVE: Final = "/mno.v1.Solver/Solve"
VJP: Final = "/mno.v1.Solver/VectorJacobianProduct"
JVP: Final = "/mno.v1.Solver/JacobianVectorProduct"
QUANTITIES: Final = "/mno.v1.Solver/Quantities"
ROLLOUT: Final = "/mno.v1.Solver/Rollout"
INDEX: Final = "/inference.GRPCInferenceService/RepositoryIndex"

LARGEST_MESSAGE: Final = 2**30
OPTIONS: Final = (
    ("grpc.max_receive_message_length", LARGEST_MESSAGE),
    ("grpc.max_send_message_length", LARGEST_MESSAGE),
    # nobody waits for permission within a field
    ("grpc.http2.lookahead_bytes", 4 * 2**20),
    ("grpc.http2.bdp_probe", 0),
    # a service that is gone without a word is found out [ms]
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # the clients ask again themselves; in between a call fails without being sent
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)
# a connection lasts: of several places each gets one, and the calls go to them in turn
BALANCED: Final = (("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),)

METHODS: Final = {
    "auto": pb.METHOD_AUTO,
    "surrogate": pb.METHOD_SURROGATE,
    "hybrid": pb.METHOD_HYBRID,
    "solver": pb.METHOD_SOLVER,
    "adjoint": pb.METHOD_ADJOINT,
}
ERRORS: Final = {
    "none": pb.ERROR_REQUEST_NONE,
    "bound": pb.ERROR_REQUEST_BOUND,
    "certified": pb.ERROR_REQUEST_CERTIFIED,
}
PRIORITIES: Final = {"interactive": pb.PRIORITY_INTERACTIVE, "bulk": pb.PRIORITY_BULK}
# of an error estimate
OPTIONAL: Final = ("l2_lower", "l2_upper", "max_lower", "max_upper")
METHOD_NAMES: Final = {number: name for name, number in METHODS.items()}

# more frames than any rollout has
ALL_DEFECTS: Final = 2**32 - 1
# tags: a field's number and 2, that its length comes next
SOLVE_FIELDS: Final = b"\x1a"  # SolveRequest.fields = 3
ROLLOUT_STATE: Final = b"\x12"  # RolloutRequest.state = 2
VJP_REQUEST, VJP_COTANGENTS = b"\x0a", b"\x12"  # VjpRequest: 1, 2; JvpRequest and QuantitiesRequest alike

# slug -> HTTP status; then by the status of gRPC
STATUSES: Final[Mapping[str, int]] = {
    "payload-too-large": 413,
    "not-acceptable": 406,
    "unsupported-media-type": 415,
    "load-failed": 409,
}
STATUSES_BY_CODE: Final[Mapping[grpc.StatusCode, int]] = {
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.INVALID_ARGUMENT: 422,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.FAILED_PRECONDITION: 409,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.UNAUTHENTICATED: 401,
}
# what the library says by itself, without a fault of the service
TOO_LARGE: Final = "larger than max"
# and where a connection broke while it sent
BROKEN: Final = "Internal error from Core"
SLUGS_BY_CODE: Final[Mapping[grpc.StatusCode, str]] = {
    grpc.StatusCode.DEADLINE_EXCEEDED: "deadline-exceeded",
    grpc.StatusCode.UNIMPLEMENTED: "not-available-yet",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "overloaded",
}


@final
class _Wire:
    """What is asked over a channel of either kind; what comes back is to be read, or awaited and read."""

    def __init__(self, library: Any, address: Address) -> None:
        """``library``: ``grpc``, or ``grpc.aio``."""
        options = (*OPTIONS, *BALANCED) if address.several else OPTIONS
        if address.secure:
            self.channel = library.secure_channel(address.host, _credentials(address), options)
        else:
            self.channel = library.insecure_channel(address.host, options)
        self._metadata = (("authorization", f"Bearer {address.token}"),) if address.token else ()
        self._timeout = address.timeout
        self._solve = self.channel.unary_unary(SOLVE, None, pb.SolveResponse.FromString)
        self._vjp = self.channel.unary_unary(VJP, None, pb.VjpResponse.FromString)
        self._jvp = self.channel.unary_unary(JVP, None, pb.JvpResponse.FromString)
        self._read = self.channel.unary_unary(QUANTITIES, None, pb.QuantitiesResponse.FromString)
        self._rollout = self.channel.unary_stream(ROLLOUT, None, pb.Frame.FromString)
        self._index = self.channel.unary_unary(INDEX, None, inference.RepositoryIndexResponse.FromString)

    def solve(self, question: Question) -> Any:
        timeout = _seconds(question.options, self._timeout)
        return self._solve(_solve_bytes(question), timeout=timeout, metadata=self._metadata)

    def pull_back(self, question: Question) -> Any:
        timeout = _seconds(question.options, self._timeout)
        return self._vjp(_vjp_bytes(question), timeout=timeout, metadata=self._metadata)

    def push_forward(self, question: Question) -> Any:
        timeout = _seconds(question.options, self._timeout)
        return self._jvp(_jvp_bytes(question), timeout=timeout, metadata=self._metadata)

    def read(self, question: Question) -> Any:
        timeout = _seconds(question.options, self._timeout)
        return self._read(_quantities_bytes(question), timeout=timeout, metadata=self._metadata)

    def index(self) -> Any:
        return self._index(b"", timeout=self._timeout, metadata=self._metadata)

    def roll_out(self, leg: Leg) -> Any:
        timeout = _seconds(leg.options, None)
        return self._rollout(_rollout_bytes(leg), timeout=timeout, metadata=self._metadata)


@contextmanager
def _reaching() -> Iterator[None]:
    """Around what goes over the network: the library's errors become ours."""
    try:
        yield
    except grpc.RpcError as error:
        raise _failure(error) from error


@final
class GrpcTransport(Transport):
    """In a thread."""

    def __init__(self, address: Address) -> None:
        self._wire = _Wire(grpc, address)

    def solve(self, question: Question) -> Answer:
        """See ``Transport``."""
        with _reaching():
            return _answer(self._wire.solve(question))

    def pull_back(self, question: Question) -> Gradient:
        """See ``Transport``."""
        with _reaching():
            return _gradient(self._wire.pull_back(question))

    def push_forward(self, question: Question) -> Tangent:
        """See ``Transport``."""
        with _reaching():
            return _tangent(self._wire.push_forward(question), question)

    def read(self, question: Question) -> list[Quantity]:
        """See ``Transport``."""
        with _reaching():
            return _quantities(self._wire.read(question))

    def describe(self, path: str) -> Any:
        """See ``Transport``."""
        _require_models(path)
        with _reaching():
            return _models(self._wire.index())

    @contextmanager
    def stream(self, leg: Leg) -> Iterator[Stream]:
        """See ``Transport``."""
        call = self._wire.roll_out(leg)
        try:
            known = _begun(call.initial_metadata())
            if not known:
                # nothing but a status came: reading says which
                with _reaching():
                    next(call, None)
                raise _nothing()
            yield Stream(_block(known), self._frames(call, known))
        finally:
            call.cancel()

    def _frames(self, call: Any, known: Mapping[str, str]) -> Iterator[Frame]:
        with _reaching():
            for message in call:
                yield _frame(message, known)

    def close(self) -> None:
        """See ``Transport``."""
        self._wire.channel.close()


@final
class AsyncGrpcTransport(AsyncTransport):
    """In an event loop."""

    def __init__(self, address: Address) -> None:
        self._wire = _Wire(grpc.aio, address)

    async def solve(self, question: Question) -> Answer:
        """See ``Transport``."""
        with _reaching():
            return _answer(await self._wire.solve(question))

    async def pull_back(self, question: Question) -> Gradient:
        """See ``Transport``."""
        with _reaching():
            return _gradient(await self._wire.pull_back(question))

    async def push_forward(self, question: Question) -> Tangent:
        """See ``Transport``."""
        with _reaching():
            return _tangent(await self._wire.push_forward(question), question)

    async def read(self, question: Question) -> list[Quantity]:
        """See ``Transport``."""
        with _reaching():
            return _quantities(await self._wire.read(question))

    async def describe(self, path: str) -> Any:
        """See ``Transport``."""
        _require_models(path)
        with _reaching():
            return _models(await self._wire.index())

    @asynccontextmanager
    async def stream(self, leg: Leg) -> AsyncIterator[AsyncStream]:
        """See ``Transport``."""
        call = self._wire.roll_out(leg)
        try:
            known = _begun(await call.initial_metadata())
            if not known:
                # nothing but a status came: reading says which
                with _reaching():
                    await call.read()
                raise _nothing()
            yield AsyncStream(_block(known), self._frames(call, known))
        finally:
            call.cancel()

    async def _frames(self, call: Any, known: Mapping[str, str]) -> AsyncIterator[Frame]:
        with _reaching():
            async for message in call:
                yield _frame(message, known)

    async def close(self) -> None:
        """See ``Transport``."""
        await self._wire.channel.close(None)


# --- what is asked


def _credentials(address: Address) -> grpc.ChannelCredentials:
    ca = None if address.ca is None else address.ca.read_bytes()
    if address.cert is None:
        return grpc.ssl_channel_credentials(ca)
    certificate, key = (path.read_bytes() for path in address.cert)
    return grpc.ssl_channel_credentials(ca, key, certificate)


def _seconds(options: Mapping[str, Any], longest: float | None) -> float | None:
    wanted = options.get("timeout_ms")
    given = [each for each in (None if wanted is None else wanted / 1000, longest) if each is not None]
    return min(given, default=None)


def _solve_bytes(question: Question) -> bytes:
    return _request_bytes(question, {_input_name(question.problem): question.field})


def _request_bytes(question: Question, fields: Mapping[str, NDArray[Any]]) -> bytes:
    options = question.options
    rest = pb.SolveRequest(problem=question.problem, parameters=question.parameters, **_common(options))
    if "error" in options:
        rest.error = _number("error", ERRORS, options["error"])
    tolerance = options.get("tolerance")
    if tolerance == "discretization":
        rest.tolerance.discretization = True
    elif tolerance is not None:
        rest.tolerance.relative_energy = tolerance
    return b"".join([*_entries(SOLVE_FIELDS, fields), rest.SerializeToString()])


def _entries(tag: bytes, fields: Mapping[str, NDArray[Any]]) -> Iterator[bytes | memoryview]:
    for name, field in fields.items():
        yield from entry(tag, name, _floats(field))


def _vjp_bytes(question: Question) -> bytes:
    assert question.direction is not None
    if "steps" in question.options:
        return _through_rollout(pb.VjpRequest, question, question.direction)
    problem = STEADY_PROBLEMS.get(question.problem)
    output = problem.outputs[0].name if problem else "solution"
    return b"".join(
        [
            *tagged(VJP_REQUEST, [_solve_bytes(question)]),
            *entry(VJP_COTANGENTS, output, _floats(question.direction)),
            pb.VjpRequest(wrt=question.options.get("wrt", "")).SerializeToString(),
        ]
    )


def _through_rollout(
    kind: type[pb.VjpRequest] | type[pb.JvpRequest], question: Question, direction: NDArray[Any]
) -> bytes:
    options = question.options
    names = _channel_names(question.problem, options.get("fields"), len(question.field))
    directions = [np.ascontiguousarray(channel) for channel in np.moveaxis(direction, -3, 0)]
    said = ("wrt", "steps", "every", "start_step", "walls")
    rest = kind(**{name: options[name] for name in said if name in options})
    return b"".join(
        [
            *tagged(VJP_REQUEST, [_request_bytes(question, dict(zip(names, question.field, strict=True)))]),
            *_entries(VJP_COTANGENTS, dict(zip(names, directions, strict=True))),
            rest.SerializeToString(),
        ]
    )


def _jvp_bytes(question: Question) -> bytes:
    assert question.direction is not None
    if "steps" in question.options:
        return _through_rollout(pb.JvpRequest, question, question.direction)
    wrt = question.options.get("wrt") or _input_name(question.problem)
    return b"".join(
        [
            *tagged(VJP_REQUEST, [_solve_bytes(question)]),
            *entry(VJP_COTANGENTS, wrt, _floats(question.direction)),
        ]
    )


def _quantities_bytes(question: Question) -> bytes:
    return b"".join(
        [
            *tagged(VJP_REQUEST, [_solve_bytes(question)]),
            pb.QuantitiesRequest(quantities=question.wanted).SerializeToString(),
        ]
    )


def _rollout_bytes(leg: Leg) -> bytes:
    options = leg.options
    rest = pb.RolloutRequest(
        problem=leg.problem,
        steps=options["steps"],
        every=options["every"],
        start_step=options["start_step"],
        walls=options.get("walls", ""),
        defects=ALL_DEFECTS if options.get("defects") == "all" else options.get("defects", 0),
        **_common(options),
    )
    names = _channel_names(leg.problem, leg.channels, len(leg.state))
    state = dict(zip(names, leg.state, strict=True))
    return b"".join([*_entries(ROLLOUT_STATE, state), rest.SerializeToString()])


def _common(options: Mapping[str, Any]) -> dict[str, Any]:
    """What all requests may say."""
    common: dict[str, Any] = {"model": options.get("model", ""), "reproducible": "reproducible" in options}
    if "method" in options:
        common["method"] = _number("method", METHODS, options["method"])
    if "priority" in options:
        common["priority"] = _number("priority", PRIORITIES, options["priority"])
    return common


def _number(name: str, table: Mapping[str, Any], value: str) -> Any:
    if value not in table:
        raise ValueError(f"{name}: expected {', '.join(table)}, got {value!r}")
    return table[value]


def _floats(field: NDArray[Any]) -> NDArray[Any]:
    """As float32 or float64, which are all that travels."""
    return field if field.dtype in (np.float32, np.float64) else field.astype(np.float64)


def _input_name(problem: str) -> str:
    known = STEADY_PROBLEMS.get(problem)
    # the service says what is wrong with a problem that nobody knows
    return known.inputs[0].name if known else "field"


def _channel_names(problem: str, given: str | None, count: int) -> list[str]:
    if given is not None:
        return given.split(",")
    known = EVOLUTION_PROBLEMS.get(problem)
    names = [spec.name for spec in known.inputs] if known else []
    # those that are zero at rest come last, and may be left out
    return (names + [f"channel{number}" for number in range(len(names), count)])[:count]


# --- what comes back


def _answer(message: pb.SolveResponse) -> Answer:
    fields = {name: _array(tensor) for name, tensor in message.fields.items()}
    single = next(iter(fields.values())).ndim == 2
    errors = tuple(_estimate(each) for each in message.errors)
    return Answer(
        fields=fields,
        model=message.model or None,
        method=METHOD_NAMES[message.method],
        operator=message.operator,
        error=_one_or_all(errors, single=single),
        in_distribution=_one_or_all(tuple(message.in_distribution), single=single),
        certified=all(message.certified),
        iterations=max(message.iterations, default=0),
        timing_ms=_timing(message.timing),
        ood_score=_one_or_all(tuple(message.ood_scores), single=single),
    )


def _estimate(message: pb.ErrorEstimate) -> ErrorEstimate:
    names = [known.name for known in dataclasses.fields(ErrorEstimate)]
    # of what is left out nothing is known, as the defaults say
    told = [name for name in names if name not in OPTIONAL or message.HasField(name)]
    return ErrorEstimate(**{name: getattr(message, name) for name in told})


def _one_or_all(values: tuple[Any, ...], *, single: bool) -> Any:
    if not values:
        return None
    return values[0] if single else values


def _gradient(message: pb.VjpResponse) -> Gradient:
    gradient = _array(message.gradient)
    errors = _errors(message.errors, gradient)
    return Gradient(gradient=gradient, wrt=message.wrt, error=errors, **_derivative(message.solution))


def _tangent(message: pb.JvpResponse, question: Question) -> Tangent:
    # a map has no order, the channels of a problem have one
    known = EVOLUTION_PROBLEMS.get(question.problem)
    order = [spec.name for spec in known.outputs] if known else []
    names = sorted(message.tangents, key=lambda name: order.index(name) if name in order else len(order))
    channels = [_array(message.tangents[name]) for name in names]
    tangent = np.stack(channels, axis=-3) if message.steps else channels[0]
    errors = _errors(message.errors, tangent)
    told = _derivative(message.solution)
    return Tangent(tangent=tangent, of=",".join(names), error=errors, steps=tuple(message.steps), **told)


def _errors(errors: Sequence[float], values: NDArray[Any]) -> Any:
    """One for each field (ny, nx) of ``values``."""
    if not errors:
        return None
    return errors[0] if values.ndim == 2 else np.array(errors).reshape(values.shape[:-2])


def _derivative(known: pb.SolveResponse) -> dict[str, Any]:
    """What is known of a gradient or a tangent."""
    flags = tuple(known.in_distribution)
    return {
        "model": known.model or None,
        "method": METHOD_NAMES[known.method],
        "operator": known.operator,
        "in_distribution": _one_or_all(flags, single=len(flags) == 1),
        "certified": all(known.certified),
        "timing_ms": _timing(known.timing),
    }


def _quantities(message: pb.QuantitiesResponse) -> list[Quantity]:
    return [
        Quantity(each.quantity, each.unit, _numbers(each.values), _numbers(each.half_widths))
        for each in message.quantities
    ]


def _numbers(values: Sequence[float]) -> Any:
    return values[0] if len(values) == 1 else np.array(values)


def _array(tensor: pb.Tensor) -> NDArray[Any]:
    # the caller may write into what they get
    data = bytearray(tensor.data)
    return np.frombuffer(data, np.dtype(tensor.dtype).newbyteorder("<")).reshape(tuple(tensor.shape))


def _timing(timing: pb.Timing) -> dict[str, float]:
    return {name: getattr(timing, f"{name}_ms") for name in ("queue", "compute", "certify", "total")}


def _begun(metadata: Any) -> Mapping[str, str]:
    """What holds for all frames; nothing, if there will be none."""
    known = dict(metadata or ())
    return known if "mno-block" in known else {}


def _block(known: Mapping[str, str]) -> int:
    return int(known["mno-block"])


def _frame(message: pb.Frame, known: Mapping[str, str]) -> Frame:
    error = None
    if message.HasField("error"):
        given = message.error
        error = CalibratedEstimate(given.kind, given.norm, given.upper, given.coverage)
    return Frame(
        step=message.step,
        time=message.time,
        fields={name: _array(message.fields[name]) for name in known["mno-fields"].split(",")},
        invariants=dict(message.invariants),
        error=error,
        in_distribution=message.in_distribution,
        model=message.model or None,
        ood_score=message.ood_score if message.HasField("ood_score") else None,
        defect=message.defect if message.HasField("defect") else None,
        exponential_bound=message.exponential_bound if message.HasField("exponential_bound") else None,
    )


def _require_models(path: str) -> None:
    if path != "/v1/models":
        detail = "descriptions of problems are served over HTTP; ask Client('http://...')"
        raise ServiceError(501, {"type": "not-available-yet", "status": 501, "detail": detail})


def _models(message: inference.RepositoryIndexResponse) -> dict[str, Any]:
    models: dict[str, dict[str, Any]] = {}
    for each in message.models:
        entry_of = models.setdefault(each.name, {"name": each.name, "versions": [], "loaded": []})
        if not each.version:
            entry_of["error"] = each.reason
            continue
        entry_of["versions"].append(int(each.version))
        if each.state == "READY":
            entry_of["loaded"].append(int(each.version))
    return {"models": list(models.values())}


# --- what goes wrong


def _nothing() -> Retryable:
    """A stream has ended that had no frames, as if that were all."""
    return Retryable(Unreachable("the stream ended before it began"))


def _failure(error: Any) -> Exception:
    """What a status means to the caller."""
    trailing = dict(error.trailing_metadata() or ())
    code = error.code()
    if "mno-fault" not in trailing and _is_connection_lost(code, str(error.details())):
        return Retryable(Unreachable(f"the service cannot be reached: {error.details()}"))
    found = _service_error(code, str(error.details()), trailing)
    if found.status in RETRIED:
        return Retryable(found, seconds_of(trailing.get("retry-after")))
    return found


def _is_connection_lost(code: grpc.StatusCode, details: str) -> bool:
    """Whether it is gRPC that ended the call, or a service that stops and cancels what it has not begun."""
    return code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED) or (
        code is grpc.StatusCode.INTERNAL and details == BROKEN
    )


def _service_error(code: grpc.StatusCode, details: str, trailing: Mapping[str, Any]) -> ServiceError:
    fault = pb.Fault.FromString(trailing.get("mno-fault-bin", b""))
    slug = fault.type or trailing.get("mno-fault") or SLUGS_BY_CODE.get(code, "internal")
    if "mno-fault" not in trailing and TOO_LARGE in details:
        slug = "payload-too-large"
    status = STATUSES.get(slug, STATUSES_BY_CODE.get(code, 500))
    problem: dict[str, Any] = {"type": slug, "status": status, "detail": details}
    if "x-request-id" in trailing:
        problem["request_id"] = trailing["x-request-id"]
    if slug == "invalid-field":
        index = list(fault.index) or None
        problem |= {"field": fault.field, "rule": fault.rule, "index": index}
    return ServiceError(status, problem)
