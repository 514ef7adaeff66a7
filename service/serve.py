"""Puts the service together from its settings, and runs it until it is asked to stop.

With ``processes="workers"`` that is ``supervisor.py``'s work; here is the service of one process, whose
models compute in threads: for tests, for small machines, and for the commands that solve files.
"""

from __future__ import annotations

import asyncio
import functools
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import torch

from model_store import Catalog, LoadedVersion, Reference, StoreError, open_catalog
from operators.scan import set_default_backend
from service.access.rate import Ledger
from service.batching.batcher import Batcher
from service.check import check_imported
from service.processes.answering import Answering, Rim, batch_rules
from service.processes.cores import model_threads
from service.processes.event_loop import FrontLoop
from service.processes.ports import Ports
from service.processes.supervisor import Announce, addresses_of
from service.settings import InvalidSettings, Settings
from service.solver import Queues, Solver
from service.telemetry.metrics import Metrics
from service.versions import stores
from service.versions.local import LocalRepository, MakeQueue, load_models
from service.versions.models import Models
from service.workers.compute import Surrogates, choose_device
from service.workers.reference import advance_reference, bound_errors, solve_reference
from service.workers.worker import Compute, ThreadWorker

__all__ = ["Service", "build_solver", "open_models", "serve"]


def open_models(settings: Settings) -> Models:
    """Load what the settings name, from the user's store or the built-in one.

    Raises:
        InvalidSettings: a model does not load.
    """
    return load_models(_catalog(settings), settings.models, _make_queue(settings, Metrics()))


def build_solver(settings: Settings, models: Models, metrics: Metrics | None = None) -> Solver:
    """A solver whose reference solvers have threads of their own."""
    metrics = metrics or Metrics()

    def queue(name: str, compute: Compute) -> Batcher:
        return Batcher(ThreadWorker(compute), batch_rules(settings), metrics.queue(name, ""))

    queues = Queues(
        references=queue("references", solve_reference),
        marches=queue("marches", advance_reference),
        bounds=queue("bounds", bound_errors),
    )
    return Solver(models, queues, settings.limits, metrics)


def _catalog(settings: Settings) -> Catalog:
    try:
        return open_catalog(settings.store, settings.kept)
    except StoreError as error:
        raise InvalidSettings(f"store: {error}") from error


def _require_atomic_writes(catalog: Catalog) -> None:
    try:
        stores.require_atomic_writes(catalog)
    except StoreError as error:
        raise InvalidSettings(f"store: {error}") from error


def _make_queue(settings: Settings, metrics: Metrics) -> MakeQueue:
    device = choose_device(settings.device)
    _choose_scan_backend(settings.scan_backend)
    threads = settings.threads or model_threads()
    prepare = functools.partial(torch.set_num_threads, threads)

    def make(version: LoadedVersion) -> Batcher:
        reference = version.reference
        observer = metrics.queue(reference.name, str(reference.version))
        return Batcher(ThreadWorker(Surrogates([version], device), prepare), batch_rules(settings), observer)

    return make


def _choose_scan_backend(name: str | None) -> None:
    try:
        set_default_backend(name)
    except ValueError as error:
        raise InvalidSettings(f"scan_backend: {error}") from error


@final
class Service:
    """The models, the solver and the servers of one process, on addresses of its own."""

    def __init__(self, settings: Settings) -> None:
        """Load the models and listen on the addresses; whoever connects is answered after the warm-up.

        Raises:
            InvalidSettings: the models or the addresses cannot be had.
        """
        check_imported(settings)
        self._settings = settings
        self._stopping = False
        self._metrics = metrics = Metrics("front-0")
        catalog = _catalog(settings)
        _require_atomic_writes(catalog)
        make_queue = _make_queue(settings, metrics)
        self._models = load_models(catalog, settings.models, make_queue)
        self._solver = build_solver(settings, self._models, metrics)
        repository = LocalRepository(catalog, self._models, make_queue, settings.retire_seconds, self._forget)
        rim = Rim(metrics, Ledger.private(), "front-0", lambda: self._stopping)
        self._answering = Answering(self._solver, self._models, repository, settings, rim)
        self._ports = Ports(settings.model_copy(update={"fronts": 1}))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = threading.Event()
        self._stopped = asyncio.Event()

    def run(self, announce: Announce) -> None:
        """Warm up, announce the addresses, and answer until stopped."""
        with asyncio.Runner(loop_factory=FrontLoop) as runner:
            runner.run(self._answer(announce))

    def stop(self) -> None:
        """Let nobody in, and return from ``run`` when those accepted are answered; from any thread."""
        self._stop.set()
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stopped.set)

    def _forget(self, version: Reference) -> None:
        self._metrics.forget(version.name, str(version.version))
        self._answering.forget(version)

    async def _answer(self, announce: Announce) -> None:
        self._loop = asyncio.get_running_loop()
        with self._ports as ports, self._signals():
            async with self._solver:
                await self._solver.warm_up()
                await self._answering.start(ports.http(0), ports.grpc_address)
                announce(addresses_of(self._settings, ports), self._models.versions)
                if not self._stop.is_set():
                    await self._stopped.wait()
                self._stopping = True
                self._answering.changed()
                await asyncio.sleep(self._settings.drain_delay_seconds)
                await self._answering.stop(self._settings.grace_seconds)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT drain, a second one ends the process; SIGHUP reads tokens and keys again.

        In a thread, there are none.
        """
        numbers = (signal.SIGTERM, signal.SIGINT)
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (*numbers, signal.SIGHUP)}

        def drain(*_: object) -> None:
            for number in numbers:
                signal.signal(number, signal.SIG_DFL)
            self.stop()

        def reload(*_: object) -> None:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._answering.reload)

        for number in numbers:
            signal.signal(number, drain)
        signal.signal(signal.SIGHUP, reload)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def serve(settings: Settings, announce: Announce) -> int:
    """Answer until SIGTERM or SIGINT; ``announce`` is called once the service is warm."""
    Service(settings).run(announce)
    return 0
