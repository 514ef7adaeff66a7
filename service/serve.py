"""Puts the service together from its settings, and runs it until it is asked to stop."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import final

import torch
import uvicorn

from model_store import open_catalog
from operators.scan import set_default_backend
from service.abortable import AbortableProtocol
from service.batcher import Batcher
from service.compute import Surrogates, advance_reference, choose_device, solve_reference
from service.http import create_app
from service.models import Models, load_models
from service.settings import InvalidSettings, Settings
from service.solver import Queues, Solver
from service.worker import ThreadWorker, Worker

__all__ = ["Service", "build_solver", "listen_on", "open_models", "serve"]

# connections that the kernel holds until they are accepted
BACKLOG = 2048

# called with the service's address and its models when it is ready
Announce = Callable[[str, Models], None]


def open_models(settings: Settings) -> Models:
    """Load what the settings name, from the user's store or the built-in one."""
    return load_models(open_catalog(settings.store), settings.models)


def build_solver(settings: Settings, models: Models) -> Solver:
    """A solver with one worker thread for the surrogates and two for the reference solvers."""
    device = choose_device(settings.device)
    _choose_scan_backend(settings.scan_backend)
    # threads of the model that have to wait for a core spin: one core stays for everything else
    threads = settings.threads or max(1, (os.cpu_count() or 1) - 1)
    prepare = functools.partial(torch.set_num_threads, threads)
    workers = (
        ThreadWorker(Surrogates(models.versions, device), prepare),
        ThreadWorker(solve_reference),
        ThreadWorker(advance_reference),
    )
    return Solver(models, Queues(*(_queue(worker, settings) for worker in workers)), settings.limits)


def _choose_scan_backend(name: str | None) -> None:
    try:
        set_default_backend(name)
    except ValueError as error:
        raise InvalidSettings(f"scan_backend: {error}") from error


def _queue(worker: Worker, settings: Settings) -> Batcher:
    return Batcher(worker, **dict(settings.batching))


@final
class Service:
    """The models, the solver and the server of one process, on an address of its own."""

    def __init__(self, settings: Settings) -> None:
        """Load the models and listen on the address; whoever connects is answered after the warm-up.

        Raises:
            InvalidSettings: the models or the address cannot be had.
        """
        self._models = open_models(settings)
        self._solver = build_solver(settings, self._models)
        app = create_app(
            self._solver, self._models, settings.limits, draining=lambda: self._server.should_exit
        )
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=AbortableProtocol,
                access_log=False,
                log_level="warning",
                lifespan="off",
                server_header=False,
                timeout_graceful_shutdown=settings.grace_seconds,
            )
        )
        self._listener = listen_on(settings.host, settings.http_port)

    def run(self, announce: Announce) -> None:
        """Warm up, announce the address, and answer until stopped."""
        with asyncio.Runner(loop_factory=self._server.config.get_loop_factory()) as runner:
            runner.run(self._answer(announce))

    def stop(self) -> None:
        """Take no more requests, and return from ``run`` when those accepted are answered."""
        self._server.should_exit = True

    async def _answer(self, announce: Announce) -> None:
        with self._listener:
            async with self._solver:
                await self._solver.warm_up()
                announce(_address(self._listener), self._models)
                _ignore_repeated_signals()
                await self._server.serve(sockets=[self._listener])


def serve(settings: Settings, announce: Announce) -> None:
    """Answer until SIGTERM or SIGINT; ``announce`` is called once the service is warm."""
    Service(settings).run(announce)


def _ignore_repeated_signals() -> None:
    """Let a drained service end well: uvicorn drains at a signal, and then raises it again."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)


def listen_on(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        InvalidSettings: the address cannot be had.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        # at once: two sockets may be bound to one address, but only one can listen there
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise InvalidSettings(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another port"
        ) from error
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
