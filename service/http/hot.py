"""The short way: small binary requests, from the connection to the solver and back, without ASGI between.

What an ASGI server and a web framework do for a request takes several times as long as all that has to be
done for 64 KiB in and 64 KiB out. So whole ``.npy`` requests to solve, and inference requests with binary
tensors, come here from ``AbortableProtocol``; they pass the same gate, are counted and refused in the same
words, and everything else takes the long way through ``routes.py``, with the same answers.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple, final

from problems import STEADY_PROBLEMS, SteadyProblem
from service.access.gate import Guard, Visit
from service.codec import Buffer, npy_header, raw_bytes
from service.errors import ServiceFault
from service.http.faults import early_refusal, new_request_id, refuse, unexpected
from service.http.hot_path import HotHead, HotPath, HotRequest, Reply
from service.http.in_flight import Budget
from service.http.wire import (
    JSON,
    JSON_WEIGHT,
    NPY,
    accepts_gzip,
    answer_headers,
    npy_request,
    read_request,
    timing_header,
)
from service.http.written import SMALL_BODY, computed, written_json
from service.oip.http import binary_request, written_answer
from service.oip.inference import Inference
from service.options import Asker
from service.settings import Limits
from service.solver import Solver, SolveResponse
from service.telemetry.logs import REQUEST_ID

__all__ = ["HotRoutes"]

# what is decoded on the event loop; larger bodies take the long way, and threads [B]
MOST_BYTES: Final = 2**20
NPY_BYTES: Final = NPY.encode()
JSON_BYTES: Final = JSON.encode()
JSON_HEADERS: Final = {"content-type": JSON}
ANY_OR_JSON: Final = (b"*/*", JSON_BYTES)
INFER: Final = re.compile(rb"/v2/models/([A-Za-z0-9@_.-]{1,130})(?:/versions/([A-Za-z0-9_-]{1,64}))?/infer")
LENGTH_OF_JSON: Final = b"inference-header-content-length"
MOST_JSON_BYTES: Final = 2**13
# what only the long way knows
ELSEWHERE: Final = frozenset({b"content-encoding", b"transfer-encoding", b"expect", b"upgrade"})


# header lines of an answer, all but its length and id, and its body in parts
Answer = tuple[str, Sequence[Buffer]]


class Route(ABC):
    """One kind of request."""

    template: str
    open_inference: bool

    @abstractmethod
    async def answer(self, body: Buffer, asker: Asker, visit: Visit) -> Answer:
        """The answer.

        Raises:
            ServiceFault: there is none.
        """


@final
class SolveRoute(Route):
    """``.npy`` in, ``.npy`` out."""

    template = "/v1/problems/{problem}/solve"
    open_inference = False

    def __init__(self, problem: SteadyProblem, solver: Solver, query: str) -> None:
        self._problem = problem
        self._solver = solver
        self._query = query

    async def answer(self, body: Buffer, asker: Asker, visit: Visit) -> Answer:
        response = await self._solver.solve(npy_request(self._problem, self._query, body, asker))
        visit.note(response.timing, response.model, response.batch_size)
        # a problem with several output fields would need a container; none has
        ((name, array),) = response.fields.items()
        parts = npy_header(array.dtype, array.shape), raw_bytes(array)
        if response.errors is None and response.in_distribution is None:
            return _bare_lines(name, response), parts
        return _lines(answer_headers(response, NPY), NPY), parts


@final
class JsonRoute(Route):
    """JSON in, JSON out; what takes long is done in a thread."""

    template = "/v1/problems/{problem}/solve"
    open_inference = False

    def __init__(
        self, problem: SteadyProblem, solver: Solver, limits: Limits, *, query: str, gzip: bool
    ) -> None:
        self._problem = problem
        self._solver = solver
        self._limits = limits
        self._query = query
        self._gzip = gzip

    async def answer(self, body: Buffer, asker: Asker, visit: Visit) -> Answer:
        given = (self._problem, JSON_HEADERS, self._query, bytes(body), self._limits, asker)
        wanted = await computed(len(body) > SMALL_BODY, read_request, *given)
        response = await self._solver.solve(wanted)
        visit.note(response.timing, response.model, response.batch_size)
        headers, written = await written_json(response, gzip=self._gzip)
        return _lines(headers, JSON), (written,)


@final
class InferRoute(Route):
    """A request of the Open Inference Protocol with binary tensors."""

    template = "/v2/models/{model}/infer"
    open_inference = True

    def __init__(self, inference: Inference, model: str, version: str, json_length: str) -> None:
        self._inference = inference
        self._model = model
        self._version = version
        self._json_length = json_length

    async def answer(self, body: Buffer, asker: Asker, visit: Visit) -> Answer:
        asked = binary_request(self._model, self._version, body, self._json_length, asker)
        response = await self._inference.infer(asked.request)
        visit.note(response.timing, f"{response.model}@{response.version}", response.batch_size)
        headers, parts = await written_answer(response, asked)
        media = headers.pop("Content-Type")
        return _lines(headers, media), parts


# what the head says of who asks
TRACE: Final = (b"traceparent", b"tracestate")
OF_THE_ASKER: Final = frozenset({b"authorization", b"x-request-id", b"mno-key", *TRACE})


@final
class Arrival(NamedTuple):
    """What the head of a request says, whatever its body is."""

    route: Route
    authorization: str | None
    request_id: str | None
    key: str
    trace: Mapping[str, str]


@final
class HotRoutes(HotPath):
    """Who answers what."""

    def __init__(
        self, solver: Solver, inference: Inference, limits: Limits, guard: Guard, budget: Budget
    ) -> None:
        self.limits = limits
        self.budget = budget
        self._solver = solver
        self._solving: Mapping[bytes, SteadyProblem] = {
            f"/v1/problems/{problem.name}/solve".encode(): problem
            for problem in STEADY_PROBLEMS.values()
            if len(problem.inputs) == len(problem.outputs) == 1
        }
        self._inference = inference
        self._guard = guard
        self._most_bytes = min(MOST_BYTES, limits.body_bytes, limits.json_bytes)

    def accept(self, url: bytes, headers: Mapping[bytes, bytes]) -> HotHead | None:
        """See ``HotPath``."""
        length = headers.get(b"content-length", b"")
        if not (length.isdigit() and len(length) < 9 and 0 < int(length) <= self._most_bytes):
            return None
        if b"#" in url or not ELSEWHERE.isdisjoint(headers):
            return None
        route = self._route(url, headers)
        if route is None:
            return None
        named = {name: value.decode("latin-1") for name, value in headers.items() if name in OF_THE_ASKER}
        arrival = Arrival(
            route,
            named.get(b"authorization"),
            named.get(b"x-request-id"),
            named.get(b"mno-key", ""),
            {name.decode(): named[name] for name in TRACE if name in named},
        )
        return HotHead(arrival, int(length), JSON_WEIGHT if isinstance(route, JsonRoute) else 1)

    def _route(self, url: bytes, headers: Mapping[bytes, bytes]) -> Route | None:
        path, _, query = url.partition(b"?")
        problem = self._solving.get(path)
        if problem is not None:
            return self._solve_route(problem, query.decode("latin-1"), headers)
        length = headers.get(LENGTH_OF_JSON, b"")
        found = INFER.fullmatch(path) if _is_short(length) else None
        if found is None:
            return None
        model, version = (each.decode() if each else "" for each in found.groups())
        return InferRoute(self._inference, model, version, length.decode())

    def _solve_route(
        self, problem: SteadyProblem, query: str, headers: Mapping[bytes, bytes]
    ) -> Route | None:
        media, accept = headers.get(b"content-type"), headers.get(b"accept", b"*/*")
        if media == accept == NPY_BYTES:
            return SolveRoute(problem, self._solver, query)
        if media == JSON_BYTES and accept in ANY_OR_JSON:
            gzip = accepts_gzip({"accept-encoding": headers.get(b"accept-encoding", b"").decode("latin-1")})
            return JsonRoute(problem, self._solver, self.limits, query=query, gzip=gzip)
        return None

    def enter(self, request: HotRequest) -> None:
        """See ``HotPath``."""
        arrival: Arrival = request.head.target
        visit = Visit(self._guard, "POST", arrival.route.template, arrival.trace, request.received)
        request.visit = visit
        try:
            visit.enter(arrival.authorization, "solve")
        except ServiceFault as fault:
            request.fault = fault

    async def answer(self, request: HotRequest) -> Reply:
        """See ``HotPath``."""
        arrival: Arrival = request.head.target
        visit: Visit = request.visit
        request_id = new_request_id(arrival.request_id)
        REQUEST_ID.set(request_id)
        if request.fault is not None:
            return self._refuse(request.fault, request_id, arrival.route, visit)
        try:
            asker = Asker(visit.client, arrival.key, request.received)
            headers, parts = await arrival.route.answer(request.body, asker, visit)
        except Exception as fault:  # the edge: the log gets the trace, the client gets the id
            return self._refuse(fault, request_id, arrival.route, visit)
        visit.status = "200"
        return Reply(200, f"{headers}x-request-id: {request_id}\r\n", parts)

    def _refuse(self, fault: Exception, request_id: str, route: Route, visit: Visit) -> Reply:
        if isinstance(fault, ServiceFault):
            self._guard.refused(fault)
            refusal = refuse(request_id, fault, open_inference=route.open_inference)
        else:
            refusal = unexpected(request_id, fault, open_inference=route.open_inference)
        visit.status = str(refusal.status)
        lines = _lines({**refusal.headers, "X-Request-Id": request_id}, refusal.media_type)
        return Reply(refusal.status, lines, (refusal.body,))

    def end(self, request: HotRequest) -> None:
        """See ``HotPath``."""
        request.visit.end()

    def refusal(self, status: int, slug: str, detail: str) -> Reply:
        """See ``HotPath``."""
        self._guard.metrics.refuse("http", slug)
        lines, body = early_refusal(status, slug, detail)
        return Reply(status, lines.decode("latin-1"), (body,))


def _is_short(length: bytes) -> bool:
    return length.isdigit() and len(length) < 6 and int(length) <= MOST_JSON_BYTES


def _bare_lines(field: str, response: SolveResponse) -> str:
    """The header lines of an answer without any word of its error: most of them are always the same."""
    said = response.model, response.method, response.operator, response.certified
    known = _known_lines(field, *said)
    iterations, timing, size = max(response.iterations), timing_header(response.timing), response.batch_size
    return f"{known}{iterations}\r\nServer-Timing: {timing}\r\nMno-Batch-Size: {size}\r\n"


@lru_cache(maxsize=256)
def _known_lines(field: str, model: str | None, method: str, operator: str, certified: bool) -> str:
    return (
        f"content-type: {NPY}\r\nMno-Field: {field}\r\nMno-Model: {model or ''}\r\nMno-Method: {method}\r\n"
        f"Mno-Operator: {operator}\r\nMno-Error-Estimate: null\r\nMno-In-Distribution: null\r\n"
        f"Mno-Certified: {str(certified).lower()}\r\nMno-Iterations: "
    )


def _lines(headers: Mapping[str, str], media_type: str) -> str:
    named = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    return f"content-type: {media_type}\r\n{named}"
