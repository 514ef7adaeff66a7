"""The one mapping of faults to HTTP: RFC 9457 problem documents, and the request's id on every response.

Under ``/v2`` errors have the form of the Open Inference Protocol instead: ``{"error": text}``.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from typing import Any, Final, final

import orjson
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import errors
from service.telemetry.logs import REQUEST_ID

__all__ = [
    "Refusal",
    "RequestScope",
    "answer_fault",
    "answer_http_exception",
    "answer_nobody",
    "answer_not_ready",
    "describe_fault",
    "early_refusal",
    "id_of",
    "is_open_inference",
    "new_request_id",
    "refuse",
    "slug_of",
    "unexpected",
]

log = logging.getLogger("mno.service")

_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
PROBLEM: Final = "application/problem+json"
JSON: Final = "application/json"

# fault -> slug, status; a subclass answers as its nearest ancestor in the table
PROBLEMS_BY_FAULT: Mapping[type[errors.ServiceFault], tuple[str, int]] = {
    errors.InvalidField: ("invalid-field", 422),
    errors.UnknownProblem: ("unknown-problem", 404),
    errors.UnknownModel: ("unknown-model", 404),
    errors.TooLarge: ("payload-too-large", 413),
    errors.UnsupportedMedia: ("unsupported-media-type", 415),
    errors.NotAcceptable: ("not-acceptable", 406),
    errors.NotAvailableYet: ("not-available-yet", 501),
    errors.Unauthenticated: ("unauthenticated", 401),
    errors.Forbidden: ("forbidden", 403),
    errors.Overloaded: ("overloaded", 429),
    errors.LoadFailed: ("load-failed", 409),
    errors.NotCertifiable: ("not-certifiable", 409),
    errors.DeadlineExceeded: ("deadline-exceeded", 504),
    errors.WorkerLost: ("worker-lost", 503),
    errors.WorkFailed: ("internal", 500),
}
# what is no fault of a request: paths, methods, connections, and a service that begins or ends
OTHER_PROBLEMS: Mapping[str, int] = {
    "bad-request": 400,
    "not-found": 404,
    "method-not-allowed": 405,
    "request-timeout": 408,
    "header-too-large": 431,
    "not-ready": 503,
}


@final
@dataclass(frozen=True)
class Refusal:
    """A fault as HTTP says it."""

    status: int
    media_type: str
    body: bytes
    headers: Mapping[str, str]


@final
class RequestScope:
    """Middleware: gives each request an id; what nobody caught becomes a 500 that names the id only."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = new_request_id(Headers(scope=scope).get("x-request-id"))
        scope.setdefault("state", {})["request_id"] = request_id
        REQUEST_ID.set(request_id)
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:  # the edge: the log gets the trace, the client gets the id
            refusal = unexpected(request_id, error, open_inference=is_open_inference(scope["path"]))
            if started:
                raise
            await _response(refusal)(scope, receive, send_with_id)


def new_request_id(given: str | None) -> str:
    """The client's own id where it can be one, else a new one: of this process, and counted."""
    return given if given and _ID.fullmatch(given) else f"{_process_id()}{next(_numbers):012x}"


@cache
def _process_id() -> str:
    return secrets.token_hex(10)


# two processes that share what was known before they were forked would share their ids
os.register_at_fork(after_in_child=_process_id.cache_clear)
_numbers: Final = itertools.count(1)


def is_open_inference(path: str) -> bool:
    """Whether this path speaks the Open Inference Protocol."""
    return path.startswith("/v2/") or path == "/v2"


def answer_fault(request: Request, fault: Exception) -> Response:
    """The refusal of a :class:`ServiceFault`, as a response."""
    open_inference = is_open_inference(request.scope["path"])
    return _response(refuse(id_of(request.scope), fault, open_inference=open_inference))


def refuse(request_id: str, fault: Exception, *, open_inference: bool = False) -> Refusal:
    """What HTTP says of a fault; whatever is no :class:`ServiceFault` is for the log alone."""
    document = _describe(request_id, fault)
    return _refusal(document, _headers_of(fault), open_inference=open_inference)


def unexpected(request_id: str, error: BaseException, *, open_inference: bool) -> Refusal:
    """What HTTP says of what nobody foresaw; the log says the rest."""
    log.error("request %s broke", request_id, exc_info=error)
    return _refusal(
        _document(request_id, "internal", 500, _broken(request_id)), {}, open_inference=open_inference
    )


def describe_fault(scope: Scope, fault: Exception) -> dict[str, Any]:
    """The problem document of a fault; whatever is no :class:`ServiceFault` is for the log alone."""
    return _describe(id_of(scope), fault)


def _describe(request_id: str, fault: Exception) -> dict[str, Any]:
    kind = _kind_of(fault)
    slug, status = PROBLEMS_BY_FAULT[kind]
    if kind is errors.WorkFailed:
        log.error("request %s: %s", request_id, fault, exc_info=fault)
        return _document(request_id, slug, status, _broken(request_id))
    more: dict[str, Any] = {}
    if isinstance(fault, errors.InvalidField):
        more = {"field": fault.field, "rule": fault.rule, "index": fault.index}
    if isinstance(fault, errors.WorkerLost) and fault.step is not None:
        more = {"step": fault.step}
    return _document(request_id, slug, status, str(fault)) | more


def slug_of(fault: Exception) -> str:
    """The stable word for a fault."""
    return PROBLEMS_BY_FAULT[_kind_of(fault)][0]


def _kind_of(fault: Exception) -> type[errors.ServiceFault]:
    return next((kind for kind in type(fault).__mro__ if kind in PROBLEMS_BY_FAULT), errors.WorkFailed)


def _headers_of(fault: Exception) -> dict[str, str]:
    if isinstance(fault, errors.Overloaded | errors.WorkerLost):
        return {"Retry-After": str(fault.retry_after)}
    if isinstance(fault, errors.Unauthenticated):
        return {"WWW-Authenticate": "Bearer"}
    return {}


def _refusal(document: Mapping[str, Any], headers: Mapping[str, str], *, open_inference: bool) -> Refusal:
    status = document["status"]
    if not open_inference:
        return Refusal(status, PROBLEM, orjson.dumps(document), headers)
    # what is wrong with a request is 400 there
    body = orjson.dumps({"error": document["detail"]})
    return Refusal(400 if status == 422 else status, JSON, body, headers)


def answer_http_exception(request: Request, error: Exception) -> Response:
    """The refusal of what the router does not know: paths and methods."""
    assert isinstance(error, HTTPException)
    status = error.status_code
    asked = f"{request.method} {request.url.path}"[: errors.LONGEST_QUOTE]
    detail = f"{asked} is not served here; GET /docs lists what is"
    slug = HTTPStatus(status).phrase.lower().replace(" ", "-")
    document = _document(id_of(request.scope), slug, status, detail)
    open_inference = is_open_inference(request.scope["path"])
    headers = {"Allow": _allowed(request)} if status == HTTPStatus.METHOD_NOT_ALLOWED else error.headers or {}
    return _response(_refusal(document, headers, open_inference=open_inference))


def _allowed(request: Request) -> str:
    """The methods of a path: the router tells those of the first of its routes only."""
    path = request.scope["path"]
    routes = (route for route in request.app.routes if isinstance(route, Route))
    found = (route.methods or set() for route in routes if route.path_regex.match(path))
    return ", ".join(sorted(set().union(*found)))


def answer_nobody(_: Request, __: Exception) -> Response:
    """For a client who left; only a log will see the status."""
    return Response(status_code=499)


def answer_not_ready(scope: Scope, reasons: str) -> Response:
    """503: about to start or to stop."""
    document = _document(id_of(scope), "not-ready", 503, reasons)
    return _response(_refusal(document, {}, open_inference=is_open_inference(scope["path"])))


def early_refusal(status: int, slug: str, detail: str) -> tuple[bytes, bytes]:
    """Header lines and body that refuse what is no request yet."""
    request_id = new_request_id(None)
    body = orjson.dumps(_document(request_id, slug, status, detail))
    later = "retry-after: 1\r\n" if status == HTTPStatus.SERVICE_UNAVAILABLE else ""
    return f"content-type: {PROBLEM}\r\nx-request-id: {request_id}\r\n{later}".encode(), body


def _document(request_id: str, slug: str, status: int, detail: str) -> dict[str, Any]:
    title = slug.replace("-", " ").capitalize()
    return {"type": slug, "title": title, "status": status, "detail": detail, "request_id": request_id}


def _response(refusal: Refusal) -> Response:
    return Response(refusal.body, refusal.status, dict(refusal.headers), media_type=refusal.media_type)


def _broken(request_id: str) -> str:
    return f"the service failed; its log says why under request id {request_id}"


def id_of(scope: Scope) -> str:
    """The id of a request."""
    request_id: str = scope["state"]["request_id"]
    return request_id
