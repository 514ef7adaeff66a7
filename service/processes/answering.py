"""The servers of one process: HTTP on one socket, gRPC on another, one event loop, the same guards."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import final

import uvicorn

from model_store.reference import Reference
from service.access.audit import Audit
from service.access.gate import Guard
from service.access.rate import Ledger, RateLimits
from service.access.security import open_security
from service.access.tls import Tls
from service.batching.admission import BatchRules
from service.errors import InvalidSettings
from service.grpc.server import GrpcServer, create_grpc_server
from service.http.abortable import AbortableProtocol
from service.http.routes import create_app
from service.oip.inference import Inference
from service.oip.statistics import Statistics
from service.settings import Settings
from service.solver import Solver
from service.telemetry.logs import AccessLog
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import open_tracer
from service.versions.models import Models
from service.versions.repository import Repository

__all__ = ["Answering", "Rim", "batch_rules"]

log = logging.getLogger("mno.service")


def batch_rules(settings: Settings) -> BatchRules:
    """How requests are put together, as the settings say."""
    batching = settings.batching
    return BatchRules(
        max_batch=batching.max_batch,
        queue_bytes=batching.queue_bytes,
        queue_rows=batching.queue_rows,
        queue_seconds=batching.queue_seconds,
        linger_seconds=batching.linger_ms / 1000,
        sizes=tuple(sorted(batching.sizes)),
        reproducible_rows=batching.reproducible_batch,
        patience=batching.bulk_patience_seconds,
    )


@final
@dataclass(frozen=True)
class Rim:
    """What a process brings to its servers.

    Attributes:
        ledger: what it counts together with other processes.
        process: its name in logs and traces.
        draining: whether it is about to stop: not ready, still answering.
    """

    metrics: Metrics
    ledger: Ledger
    process: str
    draining: Callable[[], bool]


@final
class Answering:
    """Answers over HTTP and gRPC."""

    def __init__(
        self, solver: Solver, models: Models, repository: Repository, settings: Settings, rim: Rim
    ) -> None:
        """Read tokens and certificates; nobody is answered yet.

        Raises:
            InvalidSettings: tokens, certificates or an exporter of traces cannot be had.
        """
        self._tls = Tls.of(settings.tls)
        mutual_tls = settings.tls.client_ca is not None
        self._security = open_security(settings.security, settings.host, mutual_tls=mutual_tls)
        self._audit = Audit(settings.security.audit)
        self._tracer = open_tracer(settings.tracing, rim.process)
        limits, statistics = settings.limits, Statistics()
        self._statistics = statistics
        guard = Guard(
            self._security,
            RateLimits(settings.rate, rim.ledger, refused=rim.metrics.limit),
            rim.metrics,
            self._audit,
            AccessLog(settings.logs),
            self._tracer,
        )
        app = create_app(
            solver, models, repository, limits, guard=guard, draining=rim.draining, statistics=statistics
        )
        self._http = _Server(
            uvicorn.Config(
                app,
                http=AbortableProtocol,
                proxy_headers=False,
                access_log=False,
                log_config=None,
                lifespan="off",
                server_header=False,
                ws="none",
                ssl_context_factory=None if self._tls is None else self._tls.for_uvicorn,
            )
        )
        inference = Inference(solver, models, limits, statistics)
        self._grpc: GrpcServer = create_grpc_server(
            solver, inference, repository, limits, guard, rim.draining
        )
        self._running: asyncio.Task[None] | None = None

    async def start(self, http: socket.socket, grpc_address: str | None) -> None:
        """Answer whoever connects to the socket over HTTP, and to the address over gRPC."""
        self._running = asyncio.create_task(self._http.serve(sockets=[http]), name="http")
        while not self._http.started and not self._running.done():
            await asyncio.sleep(0)
        if grpc_address is not None:
            await self._grpc.start(grpc_address, self._tls)

    async def stop(self, grace: float) -> None:
        """Let nobody in, answer what was accepted, and end what is not answered within ``grace`` seconds."""
        self._http.config.timeout_graceful_shutdown = max(1, round(grace))
        self._http.should_exit = True
        running = [self._grpc.drain(grace)]
        if self._running is not None:
            running.append(asyncio.wait_for(self._running, None))
        await asyncio.gather(*running)
        self._tracer.close()
        self._audit.close()

    def changed(self) -> None:
        """``draining`` may say something else now: tell those who watch."""
        self._grpc.health.changed()

    def forget(self, version: Reference) -> None:
        """A version is not served any more: its statistics begin anew when it is loaded again."""
        self._statistics.forget(version.name, str(version.version))

    def reload(self) -> None:
        """Read tokens and certificates again; what is broken stays as it was."""
        reads = [self._security.reload, self._audit.reopen]
        if self._tls is not None:
            reads.append(self._tls.reload)
        for read in reads:
            try:
                read()
            except (InvalidSettings, OSError) as error:
                log.error("not read again, what holds stays: %s", error)


@final
class _Server(uvicorn.Server):
    """uvicorn's own, without its handlers for signals: the supervisor says when to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them alone."""
        yield
