"""What every request passes, whichever way it takes: who asks, how much they may, and that it is counted."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, final

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.access.audit import Audit
from service.access.rate import Entry, RateLimits, RateSettings
from service.access.security import ANYBODY, Principal, Security
from service.access.tokens import Scope as Right
from service.errors import Forbidden, ServiceFault
from service.http.faults import answer_fault, slug_of
from service.telemetry.logs import AccessLog, LogSettings
from service.telemetry.metrics import Metrics
from service.telemetry.timing import Timing
from service.telemetry.tracing import NO_TRACER, Trace, Tracer

__all__ = ["Guard", "Passage", "Visit", "principal_of", "visit_of"]

HTTP: Final = "http"
UNKNOWN: Final = "unknown"
LEFT: Final = "499"

# who keeps the service running asks for these again and again, and has no token
HEALTH: Final = frozenset({"/healthz/live", "/healthz/ready", "/v2/health/live", "/v2/health/ready"})
# a browser has none to send, and what is written there everybody may read
PAGES: Final = frozenset({"/", "/docs", "/openapi.json"})
OPEN: Final = HEALTH | PAGES
# changes what is served, or how
CONTROL: Final = re.compile(
    r"/v2/repository/models/.+|/v2/logging|/v2/(models/[^/]+/)?trace/setting",
    re.DOTALL,  # a line break is a character of a path like any other
)


def _anybody() -> Security:
    return Security(None, ANYBODY, local=False)


@final
@dataclass(frozen=True)
class Guard:
    """Who may ask, how much, and what is noted of it."""

    security: Security = field(default_factory=_anybody)
    rate: RateLimits = field(default_factory=lambda: RateLimits(RateSettings()))
    metrics: Metrics = field(default_factory=Metrics)
    audit: Audit = field(default_factory=Audit)
    access: AccessLog = field(default_factory=lambda: AccessLog(LogSettings()))
    tracer: Tracer = NO_TRACER

    def enter(self, authorization: str | None, right: Right) -> tuple[Principal, Entry]:
        """Who asks, and their entry, to be released when the answer is sent.

        Raises:
            ServiceFault: they may not, or not now.
        """
        principal = self.security.authenticate(authorization, right)
        return principal, self.rate.enter(principal)

    def refused(self, fault: Exception) -> None:
        """Count a fault."""
        self.metrics.refuse(HTTP, slug_of(fault))


@final
class Visit:
    """One request, from its head to the last byte of its answer.

    Attributes:
        route: a template, never what a client wrote.
        client: whose it is, once they are let in.
        status: of the answer.
    """

    __slots__ = (
        "_began",
        "_entry",
        "_facts",
        "_guard",
        "_method",
        "_recorder",
        "_timing",
        "_trace",
        "client",
        "route",
        "status",
    )

    def __init__(
        self, guard: Guard, method: str, route: str, headers: Mapping[str, str], received: float
    ) -> None:
        """``headers`` name the trace that it belongs to; ``received`` is when they were there [s]."""
        self._guard = guard
        self._method = method
        self._began = received
        self._entry: Entry | None = None
        self._recorder = guard.metrics.route(HTTP, route)
        self._recorder.began()
        self._trace: Trace | None = None
        if guard.tracer.on:
            parent, state = headers.get("traceparent"), headers.get("tracestate")
            self._trace = guard.tracer.begin(f"{method} {route}", parent, received, state)
        self._timing: Timing | None = None
        self._facts: Mapping[str, Any] = {}
        self.route = route
        self.client = ""
        self.status = LEFT

    def enter(self, authorization: str | None, right: Right) -> Principal:
        """Let them in, until the end.

        Raises:
            ServiceFault: they may not, or not now.
        """
        principal, self._entry = self._guard.enter(authorization, right)
        self.client = principal.client
        return principal

    def note(self, timing: Timing | None, model: str | None, batch_size: int) -> None:
        """What computed the answer, with how many others, and where the time went."""
        if self._trace is not None:
            self._timing = timing
            self._facts = {"mno.batch_size": batch_size} | ({"mno.model": model} if model else {})

    def end(self) -> None:
        """The answer was read, or its client left."""
        if self._entry is not None:
            self._entry.release()
        seconds = time.perf_counter() - self._began
        self._recorder.ended(self.status, seconds)
        self._guard.access.note(HTTP, self._method, self.route, self.status, seconds, self.client)
        if self._trace is not None:
            self._trace.end(self.status, self._timing, self._facts)


def right_for(method: str, path: str) -> Right | None:
    """What a request needs; None: nothing."""
    if path in OPEN:
        return None
    if path == "/metrics":
        return "metrics"
    return "admin" if method == "POST" and CONTROL.fullmatch(path) else "solve"


@final
class Passage:
    """Middleware: lets each request in, and notes it when its answer is written."""

    def __init__(self, app: ASGIApp, guard: Guard, routes: Iterable[BaseRoute]) -> None:
        """``routes`` are those whose paths name what is counted."""
        self._app = app
        self._guard = guard
        self._routes = routes
        self._known: Mapping[str, re.Pattern[str]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        route = self._template(scope["path"])
        visit = Visit(self._guard, scope["method"], route, headers, time.perf_counter())
        scope["state"]["visit"] = visit

        async def send_and_note(message: Message) -> None:
            if message["type"] == "http.response.start":
                visit.status = str(message["status"])
            await send(message)

        try:
            await self._let_in(scope, headers, visit, receive, send_and_note)
        finally:
            visit.end()

    async def _let_in(
        self, scope: Scope, headers: Headers, visit: Visit, receive: Receive, send: Send
    ) -> None:
        right = right_for(scope["method"], scope["path"])
        if right is None:
            await self._app(scope, receive, send)
            return
        try:
            if right == "admin":
                self._guard.security.refuse_foreign_page(headers.get("host"), headers.get("origin"))
            scope["state"]["principal"] = visit.enter(headers.get("authorization"), right)
        except ServiceFault as fault:
            self._guard.refused(fault)
            # whoever has no token is counted only: nobody may fill the audit log from outside
            if right == "admin" and isinstance(fault, Forbidden):
                # the path, not its template: it names the model
                subject = f"{scope['method']} {scope['path']}"
                self._guard.audit.note("refused", subject, fault.principal, "refused", reason=slug_of(fault))
            await answer_fault(Request(scope), fault)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _template(self, path: str) -> str:
        if not self._known:
            self._known = {each.path: each.path_regex for each in self._routes if isinstance(each, Route)}
        return next((name for name, pattern in self._known.items() if pattern.match(path)), UNKNOWN)


def principal_of(scope: Scope) -> Principal:
    """Who asks, once they are let in."""
    principal: Principal = scope["state"]["principal"]
    return principal


def visit_of(scope: Scope) -> Visit:
    """What is noted of a request."""
    visit: Visit = scope["state"]["visit"]
    return visit
