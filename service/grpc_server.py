"""gRPC at the rim: who may call what, when a call ends and how; the services themselves are in `grpc_*.py`."""

from __future__ import annotations

import asyncio
import functools
import re
import socket
import ssl
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

from service.errors import DeadlineExceeded, ServiceFault
from service.grpc_call import Method, Outcome, Status
from service.grpc_faults import CANCELLED, UnknownMethod, outcome_of
from service.grpc_health import Health, health_methods, reflection_methods
from service.grpc_inference import SERVICE as INFERENCE
from service.grpc_inference import inference_methods
from service.grpc_solver import SERVICE as SOLVER
from service.grpc_solver import solver_methods
from service.grpc_stream import Budget, RpcStream, deadline_of, refusal
from service.http2 import Bounds, Connection, Refused
from service.http2_frames import Code
from service.logs import REQUEST_ID
from service.metrics import Metrics, RouteMetrics
from service.oip import Inference
from service.rate import RateLimits
from service.repository import Repository
from service.security import Security
from service.settings import Limits
from service.solver import Solver

__all__ = ["GrpcServer", "Guards", "create_grpc_server"]

WELL_FORMED: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
BACKLOG: Final = 2048
STOPPING: Final = Outcome(Status.UNAVAILABLE, "the service is stopping; ask another one, or go on there")
UNKNOWN: Final = "unknown"


@final
@dataclass(frozen=True)
class Guards:
    """Who may ask, and how much; shared with the other protocols of a front."""

    security: Security
    rates: RateLimits
    metrics: Metrics


@final
class GrpcServer:
    """Answers the calls of some methods."""

    def __init__(self, methods: Iterable[Method], guards: Guards, limits: Limits, health: Health) -> None:
        self.health = health
        self._methods: Mapping[str, Method] = {method.path: method for method in methods}
        self._guards = guards
        self._bounds = Bounds(
            header_seconds=limits.header_seconds,
            idle_seconds=limits.idle_seconds,
            stall_seconds=limits.stall_seconds,
        )
        self._most_connections = limits.connections
        # a message is as long as the body of a request
        self._limits = (limits.body_bytes, limits.body_stall_seconds, Budget(limits.inflight_bytes))
        self._connections: set[Connection] = set()
        self._calls: set[RpcStream] = set()
        self._servers: list[asyncio.Server] = []
        self._recorders: dict[str, RouteMetrics] = {}
        self._empty = asyncio.Event()

    async def start(self, listeners: Sequence[socket.socket], tls: ssl.SSLContext | None = None) -> None:
        """Answer whoever connects; with TLS, the context has to offer ``h2`` by ALPN."""
        loop = asyncio.get_running_loop()
        for listener in listeners:
            self._servers.append(
                await loop.create_server(self._connection, sock=listener, ssl=tls, backlog=BACKLOG)
            )

    def _connection(self) -> Connection:
        return Connection(self._bounds, self._accept, self._connections, self._most_connections)

    # --- the end

    async def drain(self, seconds: float) -> None:
        """Take no more calls, answer those under way, and end what is not answered after so many seconds."""
        self.health.stop()
        for server in self._servers:
            server.close()
        for connection in list(self._connections):
            connection.leave()
        try:
            async with asyncio.timeout(seconds):
                while self._calls:
                    self._empty.clear()
                    await self._empty.wait()
        except TimeoutError:
            for call in list(self._calls):
                call.stop(STOPPING)
        # their tasks end at their next step
        while self._calls:
            self._empty.clear()
            await self._empty.wait()
        for connection in list(self._connections):
            connection.close()

    # --- a call

    def _accept(self, connection: Connection, number: int, fields: list[tuple[str, str]]) -> RpcStream:
        metadata = dict(fields)
        if not metadata.get("content-type", "").startswith("application/grpc") or (
            metadata.get(":method") != "POST"
        ):
            connection.write([refusal(number, 415)])
            raise Refused(Code.NO_ERROR)
        path = metadata.get(":path", "")
        method = self._methods.get(path) or _unknown(path)
        call = RpcStream(connection, number, method, metadata, self._run, self._limits)
        given = metadata.get("x-request-id")
        call.request_id = given if given and WELL_FORMED.fullmatch(given) else uuid.uuid4().hex
        try:
            if method.scope is not None:
                # before the body is read
                guard = self._guards.security
                call.principal = guard.authenticate(metadata.get("authorization"), method.scope)
                call.client = call.principal.client
            call.deadline = deadline_of(metadata, call.received)
        except ServiceFault as fault:
            call.refuse(fault)
        return call

    async def _run(self, call: RpcStream, method: Method) -> None:
        REQUEST_ID.set(call.request_id)
        recorder = self._recorder(method.path)
        recorder.began()
        self._calls.add(call)
        outcome = CANCELLED
        try:
            outcome = await self._answer(call, method)
        except asyncio.CancelledError:
            # the client left, or the service stops: whoever cancelled has said what there was to say
            pass
        finally:
            self._calls.discard(call)
            if not self._calls:
                self._empty.set()
            recorder.ended(outcome.status.name, time.perf_counter() - call.received)
        call.finish(outcome)

    async def _answer(self, call: RpcStream, method: Method) -> Outcome:
        try:
            if call.fault is not None:
                raise call.fault
            with self._guards.rates.enter(call.principal):
                if call.deadline is None:
                    await method.handler(call)
                else:
                    await _before(call.deadline, method, call)
        except Exception as fault:  # the edge: the log gets the trace, the client the id
            outcome = outcome_of(fault, call.request_id)
            reason = next((value for name, value in outcome.metadata if name == "mno-fault"), UNKNOWN)
            self._guards.metrics.refuse("grpc", str(reason))
            return outcome
        return Outcome(Status.OK)

    def _recorder(self, path: str) -> RouteMetrics:
        known = self._recorders.get(path)
        if known is None:
            # a client may invent any number of paths
            name = path[1:] if path in self._methods else UNKNOWN
            known = self._guards.metrics.route("grpc", name)
            if path in self._methods:
                self._recorders[path] = known
        return known


async def _before(deadline: float, method: Method, call: RpcStream) -> None:
    seconds = deadline - time.perf_counter()
    try:
        async with asyncio.timeout(seconds):
            await method.handler(call)
    except TimeoutError as error:
        raise DeadlineExceeded("no answer within the call's deadline; allow more time or ask for less") from error


@functools.lru_cache(maxsize=64)
def _unknown(path: str) -> Method:
    async def refuse(_: object) -> None:
        raise UnknownMethod(f"{path[:200]} is not served here; server reflection lists what is")

    return Method(path, refuse, scope=None, one_message=False)


def create_grpc_server(
    solver: Solver,
    inference: Inference,
    repository: Repository,
    limits: Limits,
    guards: Guards,
    draining: Callable[[], bool] = lambda: False,
) -> GrpcServer:
    """The server of all services; whoever owns it starts and drains it.

    Args:
        solver: answers requests.
        inference: the loaded versions as models of the Open Inference Protocol.
        repository: loads and unloads them.
        limits: what one request may ask for.
        guards: who may ask.
        draining: the process is about to stop: not ready, still answering.
    """
    services = (SOLVER, INFERENCE)
    health = Health(services, draining)
    methods = [
        *solver_methods(solver),
        *inference_methods(inference, repository, health),
        *health_methods(health),
        *reflection_methods(services),
    ]
    return GrpcServer(methods, guards, limits, health)
