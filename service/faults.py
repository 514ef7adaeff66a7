"""The one mapping of faults to HTTP: RFC 9457 problem documents, and the request's id on every response."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, final

import orjson
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import errors

__all__ = [
    "RequestScope",
    "answer_fault",
    "answer_http_exception",
    "answer_nobody",
    "answer_not_ready",
    "describe_fault",
]

log = logging.getLogger("mno.service")

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

# fault -> slug, status; a subclass answers as its nearest ancestor in the table
PROBLEMS_BY_FAULT: Mapping[type[errors.ServiceFault], tuple[str, int]] = {
    errors.InvalidField: ("invalid-field", 422),
    errors.UnknownProblem: ("unknown-problem", 404),
    errors.UnknownModel: ("unknown-model", 404),
    errors.TooLarge: ("payload-too-large", 413),
    errors.UnsupportedMedia: ("unsupported-media-type", 415),
    errors.NotAcceptable: ("not-acceptable", 406),
    errors.NotAvailableYet: ("not-available-yet", 501),
    errors.Overloaded: ("overloaded", 429),
    errors.DeadlineExceeded: ("deadline-exceeded", 504),
    errors.WorkFailed: ("internal", 500),
}


@final
class RequestScope:
    """Middleware: gives each request an id; what nobody caught becomes a 500 that names the id only."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope).get("x-request-id"))
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:  # the edge: the log gets the trace, the client gets the id
            log.exception("request %s broke", request_id)
            if started:
                raise
            document = _document(request_id, "internal", 500, _broken(request_id))
            await _response(document)(scope, receive, send_with_id)


def answer_fault(request: Request, fault: Exception) -> Response:
    """The problem document of a :class:`ServiceFault`, as a response."""
    headers = {"Retry-After": str(fault.retry_after)} if isinstance(fault, errors.Overloaded) else None
    return _response(describe_fault(request.scope, fault), headers)


def describe_fault(scope: Scope, fault: Exception) -> dict[str, Any]:
    """The problem document of a fault; whatever is no :class:`ServiceFault` is for the log alone."""
    request_id = _id_of(scope)
    kind = next((kind for kind in type(fault).__mro__ if kind in PROBLEMS_BY_FAULT), errors.WorkFailed)
    slug, status = PROBLEMS_BY_FAULT[kind]
    if kind is errors.WorkFailed:
        log.error("request %s: %s", request_id, fault, exc_info=fault)
        return _document(request_id, slug, status, _broken(request_id))
    more: dict[str, Any] = {}
    if isinstance(fault, errors.InvalidField):
        more = {"field": fault.field, "rule": fault.rule, "index": fault.index}
    return _document(request_id, slug, status, str(fault)) | more


def answer_http_exception(request: Request, error: Exception) -> Response:
    """The problem document of what the router refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    status = error.status_code
    detail = f"{request.method} {request.url.path} is not served here; GET /docs lists what is"
    slug = HTTPStatus(status).phrase.lower().replace(" ", "-")
    return _response(_document(_id_of(request.scope), slug, status, detail), error.headers)


def answer_nobody(_: Request, __: Exception) -> Response:
    """For a client who left; only a log will see the status."""
    return Response(status_code=499)


def answer_not_ready(request: Request) -> Response:
    """503: about to stop."""
    detail = "the service is stopping; ask another one"
    return _response(_document(_id_of(request.scope), "not-ready", 503, detail))


def _document(request_id: str, slug: str, status: int, detail: str) -> dict[str, Any]:
    title = slug.replace("-", " ").capitalize()
    return {"type": slug, "title": title, "status": status, "detail": detail, "request_id": request_id}


def _response(document: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    body = orjson.dumps(document)
    return Response(body, document["status"], headers, media_type="application/problem+json")


def _broken(request_id: str) -> str:
    return f"the service failed; its log says why under request id {request_id}"


def _request_id(given: str | None) -> str:
    return given if given and REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _id_of(scope: Scope) -> str:
    request_id: str = scope["state"]["request_id"]
    return request_id
