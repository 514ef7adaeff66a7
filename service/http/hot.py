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
from service.codec import npy_header, raw_bytes
from service.errors import ServiceFault
from service.http.abortable import Buffer, HotHead, HotPath, HotRequest
from service.http.faults import Refusal, early_refusal, new_request_id, refuse, unexpected
from service.http.in_flight import Budget, Share
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
from service.oip.http import binary_answer, binary_request
from service.oip.inference import Inference
from service.options import Asker
from service.settings import Limits
from service.solver import Solver, SolveResponse
from service.telemetry.logs import REQUEST_ID
from service.telemetry.timing import Timing

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


@final
class Answer(NamedTuple):
    """The body of an answer in parts, its header lines without length and id, and where the time went."""

    headers: bytes
    parts: Sequence[Buffer]
    length: int
    timing: Timing | None


class Route(ABC):
    """One kind of request."""

    template: str
    open_inference: bool

    @abstractmethod
    async def answer(self, request: HotRequest, asker: Asker) -> Answer:
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

    async def answer(self, request: HotRequest, asker: Asker) -> Answer:
        response = await self._solver.solve(npy_request(self._problem, self._query, request.body, asker))
        # a problem with several output fields would need a container; none has
        ((_, array),) = response.fields.items()
        head, data = npy_header(array.dtype, array.shape), raw_bytes(array)
        if response.errors is None and response.in_distribution is None:
            lines = _bare_lines(next(iter(response.fields)), response)
        else:
            lines = _lines(answer_headers(response, NPY), NPY)
        return Answer(lines, (head, data), len(head) + len(data), response.timing)


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

    async def answer(self, request: HotRequest, asker: Asker) -> Answer:
        body = bytes(request.body)
        given = (self._problem, JSON_HEADERS, self._query, body, self._limits, asker)
        wanted = await computed(len(body) > SMALL_BODY, read_request, *given)
        response = await self._solver.solve(wanted)
        headers, written = await written_json(response, gzip=self._gzip)
        return Answer(_lines(headers, JSON), (written,), len(written), response.timing)


@final
class InferRoute(Route):
    """A request of the Open Inference Protocol with binary tensors."""

    template = "/v2/models/{model}/infer"
    open_inference = True

    def __init__(self, inference: Inference, model: str, version: str) -> None:
        self._inference = inference
        self._model = model
        self._version = version

    async def answer(self, request: HotRequest, asker: Asker) -> Answer:
        length = request.head.headers[LENGTH_OF_JSON].decode("latin-1")
        asked = binary_request(self._model, self._version, request.body, length, asker)
        response = await self._inference.infer(asked.request)
        headers, parts = binary_answer(response, asked)
        media = headers.pop("Content-Type")
        return Answer(_lines(headers, media), parts, sum(map(len, parts)), response.timing)


@final
class HotRoutes(HotPath):
    """Who answers what."""

    def __init__(
        self, solver: Solver, inference: Inference, limits: Limits, guard: Guard, budget: Budget
    ) -> None:
        self.limits = limits
        self._solver = solver
        self._solving: Mapping[bytes, SteadyProblem] = {
            f"/v1/problems/{problem.name}/solve".encode(): problem
            for problem in STEADY_PROBLEMS.values()
            if len(problem.inputs) == len(problem.outputs) == 1
        }
        self._inference = inference
        self._guard = guard
        self._budget = budget
        self._most_bytes = min(MOST_BYTES, limits.body_bytes, limits.json_bytes)

    def accept(self, url: bytes, headers: list[tuple[bytes, bytes]]) -> HotHead | None:
        """See ``HotPath``."""
        named = dict(headers)
        length = named.get(b"content-length", b"")
        if not (length.isdigit() and len(length) < 9 and 0 < int(length) <= self._most_bytes):
            return None
        if not ELSEWHERE.isdisjoint(named):
            return None
        route = self._route(url, named)
        if route is None:
            return None
        weight = JSON_WEIGHT if isinstance(route, JsonRoute) else 1
        return HotHead(route, named, int(length), weight)

    def hold(self) -> Share:
        """See ``HotPath``."""
        return Share(self._budget)

    def _route(self, url: bytes, headers: Mapping[bytes, bytes]) -> Route | None:
        path, _, query = url.partition(b"?")
        problem = self._solving.get(path)
        if problem is not None:
            return self._solve_route(problem, query.decode("latin-1"), headers)
        found = INFER.fullmatch(path) if _is_short(headers.get(LENGTH_OF_JSON, b"")) else None
        if found is None:
            return None
        model, version = (each.decode() if each else "" for each in found.groups())
        return InferRoute(self._inference, model, version)

    def _solve_route(
        self, problem: SteadyProblem, query: str, headers: Mapping[bytes, bytes]
    ) -> Route | None:
        media, accept = headers.get(b"content-type"), headers.get(b"accept", b"*/*")
        if media == accept == NPY_BYTES:
            return SolveRoute(problem, self._solver, query)
        if media == JSON_BYTES and accept in ANY_OR_JSON:
            gzip = accepts_gzip({"accept-encoding": _text(headers, b"accept-encoding") or ""})
            return JsonRoute(problem, self._solver, self.limits, query=query, gzip=gzip)
        return None

    async def answer(self, request: HotRequest) -> None:
        """See ``HotPath``."""
        route: Route = request.head.target
        headers = request.head.headers
        request_id = new_request_id(_text(headers, b"x-request-id"))
        REQUEST_ID.set(request_id)
        visit = Visit(self._guard, "POST", route.template, _text(headers, b"traceparent"))
        status = "499"
        try:
            principal, entry = self._guard.enter(_text(headers, b"authorization"), "solve")
            visit.client = principal.client
            with entry:
                if request.fault is not None:
                    raise request.fault
                asker = Asker(principal.client, _text(headers, b"mno-key") or "", request.received)
                answer = await route.answer(request, asker)
            status = "200"
            visit.timing = answer.timing
            lines = b"%bx-request-id: %b\r\n" % (answer.headers, request_id.encode())
            request.respond(200, lines, answer.parts, answer.length)
        except ServiceFault as fault:
            self._guard.refused(fault)
            status = _refuse(
                request, refuse(request_id, fault, open_inference=route.open_inference), request_id
            )
        except Exception as error:  # the edge: the log gets the trace, the client gets the id
            refusal = unexpected(request_id, error, open_inference=route.open_inference)
            status = _refuse(request, refusal, request_id)
        finally:
            visit.end(status)

    def refusal(self, status: int, slug: str, detail: str) -> tuple[bytes, bytes]:
        """See ``HotPath``."""
        return early_refusal(status, slug, detail)


def _is_short(length: bytes) -> bool:
    return length.isdigit() and len(length) < 6 and int(length) <= MOST_JSON_BYTES


def _refuse(request: HotRequest, refusal: Refusal, request_id: str) -> str:
    lines = _lines({**refusal.headers, "X-Request-Id": request_id}, refusal.media_type)
    request.respond(refusal.status, lines, (refusal.body,), len(refusal.body))
    return str(refusal.status)


def _text(headers: Mapping[bytes, bytes], name: bytes) -> str | None:
    value = headers.get(name)
    return None if value is None else value.decode("latin-1")


def _bare_lines(field: str, response: SolveResponse) -> bytes:
    """The header lines of an answer without any word of its error: most of them are always the same."""
    known = _known_lines(field, response.model, response.method, response.operator)
    iterations, timing, size = max(response.iterations), timing_header(response.timing), response.batch_size
    return f"{known}{iterations}\r\nServer-Timing: {timing}\r\nMno-Batch-Size: {size}\r\n".encode()


@lru_cache(maxsize=256)
def _known_lines(field: str, model: str | None, method: str, operator: str) -> str:
    return (
        f"content-type: {NPY}\r\nMno-Field: {field}\r\nMno-Model: {model or ''}\r\nMno-Method: {method}\r\n"
        f"Mno-Operator: {operator}\r\nMno-Error-Estimate: null\r\nMno-In-Distribution: null\r\n"
        "Mno-Certified: false\r\nMno-Iterations: "
    )


def _lines(headers: Mapping[str, str], media_type: str) -> bytes:
    named = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    return f"content-type: {media_type}\r\n{named}".encode("latin-1")
