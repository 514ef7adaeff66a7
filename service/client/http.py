"""The clients' way over HTTP: ``.npy`` bodies there and back, what is known beside them in the headers."""

from __future__ import annotations

import io
import json
import math
import struct
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, fields
from typing import Any, Final, final

import httpx
import numpy as np
from numpy.typing import NDArray

from service.client.address import Address
from service.client.answers import (
    Answer,
    CalibratedEstimate,
    ErrorEstimate,
    ErrorSummary,
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
)
from service.client.retrying import RETRIED, Retryable, seconds_of

__all__ = ["AsyncHttpTransport", "HttpTransport", "network_options"]

JSON: Final = "application/json"
NPY: Final = "application/x-npy"
NPY_STREAM: Final = "application/x-npy-stream"
# how a service is lost that dies, or is not there
LOST: Final = (httpx.NetworkError, httpx.RemoteProtocolError)
# frames that do not come are asked for again, an answer is not
SILENT: Final = (*LOST, httpx.TimeoutException)


def network_options(address: Address, transport: object | None) -> dict[str, Any]:
    """What ``httpx`` is told about a service; a transport of a test needs no certificates."""
    return {
        "base_url": address.url,
        "headers": {"Authorization": f"Bearer {address.token}"} if address.token else {},
        "timeout": address.timeout,
        "verify": address.context() if address.secure and transport is None else True,
    }


@final
@dataclass(frozen=True)
class _Post:
    """What is posted."""

    path: str
    body: bytes
    options: Mapping[str, Any]
    accept: str = NPY

    def build(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        given = {name: _text(value) for name, value in self.options.items() if value is not None}
        headers = {"Content-Type": NPY, "Accept": self.accept}
        return http.build_request("POST", self.path, content=self.body, params=given, headers=headers)


def _text(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


def _solve_post(question: Question) -> _Post:
    options = {**question.options, **question.parameters}
    return _Post(f"/v1/problems/{question.problem}/solve", _npy(question.field), options)


def _derivative_post(operation: str, question: Question) -> _Post:
    assert question.direction is not None
    field, directions = question.field, question.direction
    if directions.ndim == field.ndim:
        directions = directions[None]
    stack = np.concatenate([field[None], directions])
    options = {**question.options, **question.parameters}
    return _Post(f"/v1/problems/{question.problem}/{operation}", _npy(stack), options)


def _quantities_post(question: Question) -> _Post:
    options = {**question.options, **question.parameters, "quantities": ",".join(question.wanted)}
    return _Post(f"/v1/problems/{question.problem}/quantities", _npy(question.field), options, JSON)


def _rollout_post(leg: Leg) -> _Post:
    options = {**leg.options, "fields": leg.channels}
    return _Post(f"/v1/problems/{leg.problem}/rollout", _npy(leg.state), options, NPY_STREAM)


def _npy(field: NDArray[Any]) -> bytes:
    """What ``numpy.save`` writes."""
    stream = io.BytesIO()
    np.save(stream, field, allow_pickle=False)
    return stream.getvalue()


def _loaded(data: bytes) -> NDArray[Any]:
    array: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    return array


@contextmanager
def _reaching(kinds: tuple[type[httpx.TransportError], ...]) -> Iterator[None]:
    """Around what goes over the network: what may work in a moment is said to."""
    try:
        yield
    except kinds as error:
        raise Retryable(error) from error


def _failure(response: httpx.Response) -> Retryable | ServiceError:
    """What an answer says that is none; its body has been read."""
    error = ServiceError(response.status_code, _problem(response))
    if error.status in RETRIED:
        return Retryable(error, seconds_of(response.headers.get("Retry-After")))
    return error


def _problem(response: httpx.Response) -> Mapping[str, Any]:
    try:
        document = response.json()
    except ValueError:
        document = None
    # something between client and service may answer in its own words
    return document if isinstance(document, dict) else {"detail": response.text[:200]}


@final
class HttpTransport(Transport):
    """In a thread."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def solve(self, question: Question) -> Answer:
        """See ``Transport``."""
        return _answer(self._ask(_solve_post(question).build(self._http)))

    def pull_back(self, question: Question) -> Gradient:
        """See ``Transport``."""
        response = self._ask(_derivative_post("vjp", question).build(self._http))
        return _gradient(response, question)

    def push_forward(self, question: Question) -> Tangent:
        """See ``Transport``."""
        response = self._ask(_derivative_post("jvp", question).build(self._http))
        return _tangent(response, question)

    def read(self, question: Question) -> list[Quantity]:
        """See ``Transport``."""
        return _quantities(self._ask(_quantities_post(question).build(self._http)))

    def describe(self, path: str) -> Any:
        """See ``Transport``."""
        return self._ask(self._http.build_request("GET", path)).json()

    def _ask(self, request: httpx.Request) -> httpx.Response:
        with _reaching(LOST):
            response = self._open(request)
            response.read()
        response.close()
        return response

    def _open(self, request: httpx.Request) -> httpx.Response:
        response = self._http.send(request, stream=True)
        if not response.is_error:
            return response
        response.read()
        response.close()
        raise _failure(response)

    @contextmanager
    def stream(self, leg: Leg) -> Iterator[Stream]:
        """See ``Transport``."""
        with _reaching(SILENT):
            response = self._open(_rollout_post(leg).build(self._http))
        try:
            yield Stream(int(response.headers["Mno-Block"]), self._frames(response))
        finally:
            response.close()

    def _frames(self, response: httpx.Response) -> Iterator[Frame]:
        reader = _FrameReader(response.headers)
        with _reaching(SILENT):
            for chunk in response.iter_bytes():
                yield from reader.feed(chunk)
            reader.check_end()

    def close(self) -> None:
        """See ``Transport``."""
        self._http.close()


@final
class AsyncHttpTransport(AsyncTransport):
    """In an event loop."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def solve(self, question: Question) -> Answer:
        """See ``Transport``."""
        return _answer(await self._ask(_solve_post(question).build(self._http)))

    async def pull_back(self, question: Question) -> Gradient:
        """See ``Transport``."""
        response = await self._ask(_derivative_post("vjp", question).build(self._http))
        return _gradient(response, question)

    async def push_forward(self, question: Question) -> Tangent:
        """See ``Transport``."""
        response = await self._ask(_derivative_post("jvp", question).build(self._http))
        return _tangent(response, question)

    async def read(self, question: Question) -> list[Quantity]:
        """See ``Transport``."""
        return _quantities(await self._ask(_quantities_post(question).build(self._http)))

    async def describe(self, path: str) -> Any:
        """See ``Transport``."""
        return (await self._ask(self._http.build_request("GET", path))).json()

    async def _ask(self, request: httpx.Request) -> httpx.Response:
        with _reaching(LOST):
            response = await self._open(request)
            await response.aread()
        await response.aclose()
        return response

    async def _open(self, request: httpx.Request) -> httpx.Response:
        response = await self._http.send(request, stream=True)
        if not response.is_error:
            return response
        await response.aread()
        await response.aclose()
        raise _failure(response)

    @asynccontextmanager
    async def stream(self, leg: Leg) -> AsyncIterator[AsyncStream]:
        """See ``Transport``."""
        with _reaching(SILENT):
            response = await self._open(_rollout_post(leg).build(self._http))
        try:
            yield AsyncStream(int(response.headers["Mno-Block"]), self._frames(response))
        finally:
            await response.aclose()

    async def _frames(self, response: httpx.Response) -> AsyncIterator[Frame]:
        reader = _FrameReader(response.headers)
        with _reaching(SILENT):
            async for chunk in response.aiter_bytes():
                for frame in reader.feed(chunk):
                    yield frame
            reader.check_end()

    async def close(self) -> None:
        """See ``Transport``."""
        await self._http.aclose()


# --- what comes back


def _answer(response: httpx.Response) -> Answer:
    headers = response.headers
    return Answer(
        fields={headers["Mno-Field"]: _loaded(response.content)},
        model=headers["Mno-Model"] or None,
        method=headers["Mno-Method"],
        operator=headers["Mno-Operator"],
        error=_error(json.loads(headers["Mno-Error-Estimate"])),
        in_distribution=_flags(headers["Mno-In-Distribution"]),
        certified=json.loads(headers["Mno-Certified"]),
        iterations=int(headers["Mno-Iterations"]),
        timing_ms=_timing(headers["Server-Timing"]),
        ood_score=_flags(headers.get("Mno-Ood-Score", "null")),
    )


def _gradient(response: httpx.Response, question: Question) -> Gradient:
    values, known = _derivative(response, question)
    return Gradient(gradient=values, wrt=response.headers["Mno-Field"], **known)


def _tangent(response: httpx.Response, question: Question) -> Tangent:
    values, known = _derivative(response, question)
    steps = response.headers.get("Mno-Steps", "")
    told = tuple(map(int, steps.split(","))) if steps else ()
    return Tangent(tangent=values, of=response.headers["Mno-Field"], steps=told, **known)


def _derivative(response: httpx.Response, question: Question) -> tuple[NDArray[Any], dict[str, Any]]:
    """The numbers of a gradient or a tangent, and what is known of it."""
    headers = response.headers
    values, error = _loaded(response.content), json.loads(headers["Mno-Error-Estimate"])
    bounds = None if error is None else _bounds(error["upper"])
    if _is_one_of_several(question):
        values, bounds = values[None], None if bounds is None else np.asarray(bounds)[None]
    return values, {
        "model": headers["Mno-Model"] or None,
        "method": headers["Mno-Method"],
        "operator": headers["Mno-Operator"],
        "in_distribution": _flags(headers["Mno-In-Distribution"]),
        "timing_ms": _timing(headers["Server-Timing"]),
        "error": bounds,
        "certified": json.loads(headers["Mno-Certified"]),
    }


def _is_one_of_several(question: Question) -> bool:
    """Whether one direction has an axis of its own: a stack of it and the field does not tell."""
    direction = question.direction
    return direction is not None and direction.ndim > question.field.ndim and len(direction) == 1


def _bounds(upper: Any) -> Any:
    """A number, or an array of them; JSON has no number for what is infinite."""
    if not isinstance(upper, list):
        return math.inf if upper is None else upper
    numbers = np.array(upper, np.float64)
    return np.where(np.isnan(numbers), np.inf, numbers)


def _quantities(response: httpx.Response) -> list[Quantity]:
    return [
        Quantity(each["quantity"], each["unit"], _numbers(each["value"]), _bounds(each["half_width"]))
        for each in response.json()["quantities"]
    ]


def _numbers(value: Any) -> Any:
    return np.array(value, np.float64) if isinstance(value, list) else value


def _flags(header: str) -> Any:
    known = json.loads(header)
    return tuple(known) if isinstance(known, list) else known


def _error(document: Any) -> ErrorEstimate | ErrorSummary | tuple[ErrorEstimate, ...] | None:
    if document is None:
        return None
    if "upper_max" in document:
        return ErrorSummary(**_known(ErrorSummary, document))
    estimate = _known(ErrorEstimate, document)
    if not isinstance(estimate["upper"], list):
        return ErrorEstimate(**estimate)
    arrays = (estimate.pop(name) for name in ("lower", "upper", "l2_estimate"))
    return tuple(
        ErrorEstimate(**estimate, lower=lower, upper=upper, l2_estimate=l2_estimate)
        for lower, upper, l2_estimate in zip(*arrays, strict=True)
    )


def _known(kind: type[Any], document: Mapping[str, Any]) -> dict[str, Any]:
    # a newer service may say more than this client knows, and need not say what has a default
    return {known.name: document[known.name] for known in fields(kind) if known.name in document}


def _timing(header: str) -> dict[str, float]:
    entries = (entry.partition(";dur=") for entry in header.split(", "))
    return {name: float(duration) for name, _, duration in entries}


@final
class _FrameReader:
    """Frames out of the bytes of a stream, which come in any pieces."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._names = headers["Mno-Fields"].split(",")
        self._model = headers["Mno-Model"] or None
        self._buffer = bytearray()
        self._known: dict[str, Any] | None = None
        self._ended = False

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are whole with these bytes."""
        self._buffer += data
        while not self._ended and (record := self._next()) is not None:
            if self._known is not None:
                yield self._frame(self._known, record)
                self._known = None
            elif record:
                self._known = self._told(record)
            else:
                self._ended = True

    def check_end(self) -> None:
        """Refuse a stream that has no end."""
        if not self._ended:
            raise httpx.RemoteProtocolError("the end of the stream is missing")

    def _next(self) -> bytes | None:
        if len(self._buffer) < 8:
            return None
        (length,) = struct.unpack_from("<Q", self._buffer)
        if len(self._buffer) < 8 + length:
            return None
        record = bytes(memoryview(self._buffer)[8 : 8 + length])
        del self._buffer[: 8 + length]
        return record

    def _told(self, record: bytes) -> dict[str, Any]:
        known: dict[str, Any] = json.loads(record)
        if "step" in known:
            return known
        error = ServiceError(int(known["error"]["status"]), known["error"])
        if error.status in RETRIED:
            raise Retryable(error)
        raise error

    def _frame(self, known: Mapping[str, Any], record: bytes) -> Frame:
        # JSON has no number for what overflowed
        invariants = {n: math.nan if value is None else value for n, value in known["invariants"].items()}
        return Frame(
            step=known["step"],
            time=known["time"],
            fields=dict(zip(self._names, _loaded(record), strict=True)),
            invariants=invariants,
            error=_estimate(known["error"]),
            in_distribution=known["in_distribution"],
            model=self._model,
            ood_score=known.get("ood_score"),
            defect=known.get("defect"),
            exponential_bound=known.get("exponential_bound"),
        )


def _estimate(document: Mapping[str, Any] | None) -> CalibratedEstimate | None:
    if document is None:
        return None
    # a newer service may say more than this client knows
    return CalibratedEstimate(document["kind"], document["norm"], document["upper"], document["coverage"])
