"""gRPC at the rim: who may call what, when a call ends and how; the services have files of their own."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import secrets
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Final, final

import grpc
import grpc.aio

from service.access.gate import Guard
from service.access.rate import Entry
from service.access.stay import Stay
from service.errors import DeadlineExceeded, Forbidden, Overloaded, ServiceFault
from service.grpc.aio import AioCall, Handlers, options
from service.grpc.budget import Budget
from service.grpc.call import Method, Outcome
from service.grpc.faults import CANCELLED, outcome_of
from service.grpc.health import Health, health_methods, reflection_methods
from service.grpc.inference import SERVICE as INFERENCE
from service.grpc.inference import inference_methods
from service.grpc.solver import SERVICE as SOLVER
from service.grpc.solver import solver_methods
from service.oip.inference import Inference
from service.settings import Limits
from service.solver import Solver
from service.telemetry.logs import REQUEST_ID
from service.telemetry.metrics import RouteMetrics
from service.telemetry.tracing import Trace
from service.versions.repository import Repository

if TYPE_CHECKING:
    from service.access.tls import Tls

__all__ = ["GrpcServer", "create_grpc_server"]

PROTOCOL: Final = "grpc"
WELL_FORMED: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# of the ids that this process gives: quicker than a random one for each
FIRST_HALF: Final = secrets.token_hex(10)
COUNT: Final = itertools.count()
OK: Final = Outcome(grpc.StatusCode.OK)
WAY_OUT: Final = "the service is stopping; ask again, and a rollout goes on from its last step"
STOPPING: Final = Outcome(
    grpc.StatusCode.UNAVAILABLE, WAY_OUT, (("mno-fault", "not-ready"), ("retry-after", "1"))
)
# of the library, which share the port: each takes in one call in a turn of the event loop, and calls that are
# taken in together are computed together
SERVERS: Final = 8
# calls under way are short: whoever was refused may soon come again [s]
RETRY_AFTER: Final = 1
# the library drops calls that it has read and not handed over when it stops: they are told before [s]
NOTICE: Final = 0.2
# for the last statuses to leave, after those under way were ended [s]
LAST_WORDS: Final = 1.0


@final
class GrpcServer:
    """Answers the calls of some methods."""

    def __init__(self, methods: Iterable[Method], guard: Guard, limits: Limits, health: Health) -> None:
        self.health = health
        self._methods = tuple(methods)
        self._guard = guard
        self._limits = limits
        self._recorders: dict[str, RouteMetrics] = {}
        self._calls: set[AioCall] = set()
        # of them those that need a scope: who needs none (a watch of the health) takes nobody's place
        self._scoped = 0
        self._empty = asyncio.Event()
        self._servers: list[grpc.aio.Server] = []
        self._leaving = False

    async def start(self, address: str, tls: Tls | None = None) -> int:
        """Answer whoever connects to ``host:port``; returns the port, also where 0 was asked for."""
        handlers = Handlers(self._methods, self._run, Budget(self._limits.inflight_bytes), self._limits)
        host, _, wanted = address.rpartition(":")
        port = int(wanted)
        while len(self._servers) < SERVERS:
            server = grpc.aio.server(
                options=options(self._limits), maximum_concurrent_rpcs=self._limits.connections
            )
            server.add_generic_rpc_handlers((handlers,))
            if tls is None:
                port = server.add_insecure_port(f"{host}:{port}")
            else:
                port = server.add_secure_port(f"{host}:{port}", tls.grpc_credentials())
            self._servers.append(server)
            await server.start()
        return port

    async def drain(self, seconds: float) -> None:
        """Take no more calls and messages, answer those that came, and end the rest after so many seconds."""
        self.health.stop()
        if not self._servers:
            return
        self._leaving = True
        for call in list(self._calls):
            call.leave()
        notice = min(NOTICE, seconds)
        await asyncio.sleep(notice)
        seconds -= notice
        stopping = asyncio.gather(*(server.stop(seconds + LAST_WORDS) for server in self._servers))
        try:
            async with asyncio.timeout(seconds):
                while self._calls:
                    self._empty.clear()
                    await self._empty.wait()
        except TimeoutError:
            for call in list(self._calls):
                call.stop(STOPPING)
        await stopping

    async def _run(self, call: AioCall, method: Method) -> None:
        given = call.metadata.get("x-request-id")
        call.request_id = given if given and WELL_FORMED.fullmatch(given) else _new_id()
        REQUEST_ID.set(call.request_id)
        recorder = self._recorder(method.path)
        recorder.began()
        trace = self._begin_trace(call, method)
        self._calls.add(call)
        if self._leaving:
            call.leave()
        outcome = CANCELLED
        try:
            outcome = await self._answer(call, method)
        except asyncio.CancelledError:
            if call.stopped is None:
                raise
            outcome = call.stopped
        finally:
            self._calls.discard(call)
            if not self._calls:
                self._empty.set()
            call.release()
            seconds = time.perf_counter() - call.received
            recorder.ended(outcome.status.name, seconds)
            self._guard.access.note(
                PROTOCOL, "POST", method.path[1:], outcome.status.name, seconds, call.client
            )
            if trace is not None:
                trace.end(outcome.status.name, call.timing)
        call.end(outcome)

    async def _answer(self, call: AioCall, method: Method) -> Outcome:
        if self._leaving and method.scope is not None:
            return STOPPING
        entry: Entry | Stay | None = None
        counted = False
        try:
            if method.scope is not None:
                self._require_room()
                self._scoped += 1
                counted = True
                authorization = call.metadata.get("authorization")
                principal, entry = self._guard.enter(authorization, method.scope)
                call.client = principal.client
                if method.kind == "stream":
                    who = partial(self._guard.security.authenticate, authorization, method.scope)
                    call.stay = entry = Stay(self._guard.rate, who, entry)
                    call.refused = partial(self._guard.metrics.refuse, PROTOCOL)
            if call.deadline is None:
                await method.handler(call)
            else:
                await _before(call.deadline, method, call)
        except Exception as fault:  # the edge: the log gets the trace, the client the id
            outcome = outcome_of(fault, call.request_id)
            self._guard.metrics.refuse(PROTOCOL, str(outcome.metadata[0][1]))
            if method.scope == "admin" and isinstance(fault, Forbidden):
                await self._note_refused(call, method, fault)
            return outcome
        finally:
            self._scoped -= counted
            if entry is not None:
                entry.release()
        return STOPPING if call.cut else OK

    def _require_room(self) -> None:
        # of HTTP, a connection has one request at a time: so many calls at once are as much
        if self._scoped >= self._limits.connections:
            raise Overloaded(f"{self._limits.connections} calls are under way; try again later", RETRY_AFTER)

    async def _note_refused(self, call: AioCall, method: Method, fault: Forbidden) -> None:
        about = ""
        # nobody has looked at the message: it may be none, or too much
        with contextlib.suppress(ServiceFault):
            about = method.subject(await call.message() or b"")
        subject = f"{method.path[1:]} {about}".rstrip()
        self._guard.audit.note("refused", subject, fault.principal, "refused", reason="forbidden")

    def _begin_trace(self, call: AioCall, method: Method) -> Trace | None:
        if not self._guard.tracer.on:
            return None
        parent, state = call.metadata.get("traceparent"), call.metadata.get("tracestate")
        return self._guard.tracer.begin(method.path[1:], parent, call.received, state)

    def _recorder(self, path: str) -> RouteMetrics:
        known = self._recorders.get(path)
        if known is None:
            known = self._recorders[path] = self._guard.metrics.route(PROTOCOL, path[1:])
        return known


def _new_id() -> str:
    return f"{FIRST_HALF}{next(COUNT):012x}"


async def _before(deadline: float, method: Method, call: AioCall) -> None:
    try:
        async with asyncio.timeout(deadline - time.perf_counter()):
            await method.handler(call)
    except TimeoutError as error:
        message = "no answer within the call's deadline; allow more time or ask for less"
        raise DeadlineExceeded(message) from error


def create_grpc_server(
    solver: Solver,
    inference: Inference,
    repository: Repository,
    limits: Limits,
    guard: Guard,
    draining: Callable[[], bool] = lambda: False,
) -> GrpcServer:
    """The server of all services; whoever owns it starts and drains it.

    Args:
        solver: answers requests.
        inference: the loaded versions as models of the Open Inference Protocol.
        repository: loads and unloads them.
        limits: what one request may ask for.
        guard: who may ask, and what is noted of it.
        draining: the process is about to stop: not ready, still answering.
    """
    services = (SOLVER, INFERENCE)
    health = Health(services, draining)
    methods = [
        *solver_methods(solver),
        *inference_methods(inference, repository, health, guard.audit),
        *health_methods(health),
        *reflection_methods(services),
    ]
    return GrpcServer(methods, guard, limits, health)
