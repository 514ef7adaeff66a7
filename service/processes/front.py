"""A process that answers clients: ``python -m service.processes.front FD``. No torch, no numba, no SciPy.

Over its control socket FD (see ``service.processes.control``) it is told::

    {"start": {"number": 0, "settings": {...}}}  + 1 descriptor: what all fronts count together
    {"lane": "references"}                       + 1 descriptor: a lane to a process of reference solvers
    {"lane": "darcy@3#7", "version": {...},      + 1 descriptor: a lane to a process that holds a version,
     "costs": [[ny, nx, rows, seconds], ...]}    and what its batches took
    {"status": {"draining": false, "problems": []}}
    {"listen": {"grpc": "127.0.0.1:8081"}}       + 1 descriptor: a socket for HTTP
    {"abandon": "darcy@3#7"}                     its process is gone for good, or will be
    {"reload": true}                             read tokens and certificates again
    {"stop": {"grace": 30}}                      answer what was accepted, and end

and asked to ``route`` names, to ``retire`` a version and for its ``page`` of metrics. It says ``ready``, with
its arena, ``serving``, ``{"hung": "darcy@3#7"}`` of a process that does not answer, and ``{"failed": "why"}``
when it cannot start, or not go on. The end of the control socket means stop, too.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import math
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, final

from model_store.reference import Reference
from service.access.rate import Ledger
from service.batching.batcher import Batcher
from service.errors import WorkerLost
from service.processes.answering import Answering, Rim, batch_rules
from service.processes.control import Link, LinkLost
from service.processes.event_loop import FrontLoop
from service.processes.signals import ignore_stops
from service.settings import Settings
from service.solver import Queues, Solver
from service.telemetry.logs import set_up_logs
from service.telemetry.metrics import Metrics
from service.versions.models import Models, Retired
from service.versions.repository import ModelEntry, Readiness, Repository
from service.versions.routing import Route
from service.versions.served import ServedVersion
from service.workers.arena import Arena
from service.workers.process_worker import Patience, ProcessWorker
from service.workers.sample import Cost, plain_bucket

__all__ = ["Front", "main"]

log = logging.getLogger("mno.service")

# of a front whose supervisor is gone [s]
ORPHAN_GRACE: Final = 5
# glibc returns by itself only what lies at the end of its heap
TRIM_SECONDS: Final = 1.0
# a supervisor that does not answer by then hangs: it asks the other fronts for their pages, and the steward
# about the stores, each for a bounded time [s]
PAGES_SECONDS: Final = 5.0
STORES_SECONDS: Final = 60.0
# a reference solver may take minutes for one request
NUMERICS_PATIENCE: Final = Patience(silent=600.0)
_malloc_trim = ctypes.CDLL(None).malloc_trim


@final
class RemoteRepository(Repository):
    """The stores, as the supervisor and its steward see them."""

    def __init__(self, link: Link, load_seconds: float) -> None:
        """``load_seconds``: how long a version may take to be ready."""
        self._link = link
        self._load_seconds = load_seconds
        self.status = Readiness(ready=False)

    async def index(self) -> tuple[ModelEntry, ...]:
        """See ``Repository``."""
        return tuple(
            ModelEntry.model_validate(entry) for entry in await self._ask("index", {}, STORES_SECONDS)
        )

    async def describe(self, name: str) -> dict[str, Any]:
        """See ``Repository``."""
        found = await self._ask("describe", {"name": name}, STORES_SECONDS)
        return ModelEntry.model_validate(found["entry"]).summary() | {"cards": found["cards"]}

    async def load(self, name: str) -> None:
        """See ``Repository``."""
        await self._ask("load", {"name": name}, STORES_SECONDS + self._load_seconds)

    async def unload(self, name: str) -> None:
        """See ``Repository``."""
        await self._ask("unload", {"name": name}, STORES_SECONDS)

    async def readiness(self) -> Readiness:
        """See ``Repository``."""
        return self.status

    async def pages(self, accept: str) -> tuple[bytes, ...]:
        """See ``Repository``."""
        pages = await self._ask("pages", {"accept": accept}, PAGES_SECONDS)
        return tuple(page.encode() for page in pages)

    async def _ask(self, what: str, arguments: Mapping[str, Any], seconds: float) -> Any:
        try:
            async with asyncio.timeout(seconds):
                return await self._link.ask(what, arguments)
        except TimeoutError:
            log.error("the supervisor did not answer %s within %g s", what, seconds)
            raise WorkerLost(f"nobody knew within {seconds:g} s; try again") from None
        except LinkLost as error:
            raise WorkerLost("the service is stopping; ask another one") from error


@final
@dataclass(frozen=True)
class _Seat:
    """A version in this front: the worker's end here, and the name of its lane."""

    reference: Reference
    worker: ProcessWorker


@final
class Front:
    """One front, from the moment it knows its settings."""

    def __init__(self, link: Link, number: int, settings: Settings, ledger: Ledger) -> None:
        self._link = link
        self._settings = settings
        self._arena = Arena(settings.arena_bytes)
        self._metrics = Metrics(f"front-{number}")
        self._metrics.watch_arena(lambda: (self._arena.used, self._arena.size))
        self._models = Models()
        self._seats: dict[str, _Seat] = {}
        self._retired: dict[str, Retired] = {}
        self.repository = RemoteRepository(link, settings.load_seconds)
        lanes = ("references", "marches", "bounds")
        self._numerics = {lane: self._worker(lane, lane, NUMERICS_PATIENCE) for lane in lanes}
        queues = {lane: self._queue(worker, lane) for lane, worker in self._numerics.items()}
        self._solver = Solver(self._models, Queues(**queues), settings.limits, self._metrics)
        rim = Rim(self._metrics, ledger, f"front-{number}", lambda: not self.repository.status.ready)
        self._answering = Answering(self._solver, self._models, self.repository, settings, rim)
        self._work, self._worked = 0.0, -math.inf
        link.tell({"ready": {}}, [self._arena.fd])

    def _worker(self, lane: str, name: str, patience: Patience | None = None) -> ProcessWorker:
        on_hung = partial(self._link.tell, {"hung": lane})
        return ProcessWorker(self._arena, name, patience=patience, on_hung=on_hung)

    def _queue(self, worker: ProcessWorker, model: str, version: str = "") -> Batcher:
        return Batcher(worker, batch_rules(self._settings), self._metrics.queue(model, version))

    def attach(
        self, lane: str, version: Mapping[str, Any] | None, end: socket.socket, costs: Sequence[Cost] = ()
    ) -> None:
        """Send what comes to a process: a new one, or the next one in the place of one that died."""
        if version is None:
            self._numerics[lane].attach(end)
        else:
            self._seat(lane, ServedVersion.model_validate(version), costs).worker.attach(end)

    def _seat(self, lane: str, version: ServedVersion, costs: Sequence[Cost]) -> _Seat:
        known = self._seats.get(lane)
        if known is None:
            worker = self._worker(lane, str(version))
            queue = self._queue(worker, version.name, str(version.version))
            for ny, nx, rows, seconds in costs:
                worker.learn(rows, seconds)
                queue.learn(plain_bucket(version, (ny, nx)), rows, seconds)
            known = self._seats[lane] = _Seat(version.reference, worker)
            self._models.add(version, queue)
        return known

    def route(self, table: Mapping[str, Any]) -> None:
        """Let the names mean what ``table`` says."""
        self._models.route({name: Route.model_validate(route) for name, route in table.items()})

    async def retire(self, lane: str) -> None:
        """Serve a version no more; returns when it has answered everything."""
        seat = self._seats.pop(lane, None)
        if seat is None:
            return
        retired = self._retired[lane] = self._models.remove(seat.reference)
        try:
            await retired.released()
            await retired.queue.drain()
        finally:
            del self._retired[lane]
            await retired.queue.close()
            # it may be served again by now
            if seat.reference not in {version.reference for version in self._models.versions}:
                self._metrics.forget(seat.reference.name, str(seat.reference.version))
                self._answering.forget(seat.reference)

    async def abandon(self, lane: str) -> None:
        """Have those who still wait for a retired version come again."""
        if (retired := self._retired.get(lane)) is not None:
            await retired.queue.close()

    async def page(self, accept: str) -> str:
        """The metrics of this process."""
        page, _ = await asyncio.to_thread(self._metrics.render, accept)
        return page.decode()

    def status(self, status: Mapping[str, Any]) -> None:
        """Know what ``/healthz/ready`` is to say."""
        self.repository.status = Readiness(ready=not status["draining"], problems=tuple(status["problems"]))
        self._metrics.draining(status["draining"])
        self._answering.changed()

    def reload(self) -> None:
        """Read tokens and certificates again."""
        self._answering.reload()

    async def listen(self, http: socket.socket, grpc_address: str | None) -> None:
        """Answer whoever connects."""
        await self._answering.start(http, grpc_address)
        self._give_back()
        self._link.tell({"serving": {}})

    def _give_back(self) -> None:
        """Return what bodies took to the system, now and then, while there is work and some time after."""
        loop = asyncio.get_running_loop()
        if (work := self._metrics.work) != self._work:
            self._work, self._worked = work, loop.time()
        # a connection holds its last request until it is closed, at the latest when it was idle for too long
        if loop.time() - self._worked <= self._settings.limits.idle_seconds + TRIM_SECONDS:
            # connections refer to their requests and these to them; what is frozen is not looked at
            gc.collect()
            _malloc_trim(0)
        loop.call_later(TRIM_SECONDS, self._give_back)

    async def stop(self, grace: float) -> None:
        """Let nobody in, and return when everybody is answered."""
        self.repository.status = Readiness(ready=False)
        await self._answering.stop(grace)


@final
class _Process:
    """What the control socket says becomes calls of a :class:`Front`."""

    def __init__(self, control: socket.socket) -> None:
        self._over = asyncio.Event()
        self._broken = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._front: Front | None = None
        self._link = Link(control, self._told, self._asked, self._orphaned)

    async def run(self) -> int:
        """Until stopped; returns the exit status."""
        await self._over.wait()
        return int(self._broken)

    @property
    def _started(self) -> Front:
        if self._front is None:
            raise RuntimeError("expected start first")
        return self._front

    def _told(self, message: Mapping[str, Any], fds: Sequence[int]) -> None:
        match message:
            case {"start": {"number": int(number), "settings": settings}}:
                self._start(number, Settings.model_validate(settings), fds[0])
            case {"lane": str(lane)}:
                end = socket.socket(fileno=fds[0])
                self._started.attach(lane, message.get("version"), end, message.get("costs", ()))
            case {"status": status}:
                self._started.status(status)
            case {"listen": {"grpc": grpc_address}}:
                self._do(self._listen(socket.socket(fileno=fds[0]), grpc_address))
            case {"abandon": str(lane)}:
                self._do(self._started.abandon(lane))
            case {"reload": _}:
                self._started.reload()
            case {"stop": {"grace": grace}}:
                self._do(self._stop(grace))

    def _start(self, number: int, settings: Settings, ledger: int) -> None:
        set_up_logs(settings.logs, f"front-{number}")
        try:
            self._front = Front(self._link, number, settings, Ledger.mapped(ledger, number))
        except Exception as error:  # the edge of the process
            log.exception("the front cannot start")
            self._fail(error)
        # now, while the workers load: what is left for later takes no time
        _freeze()

    def _fail(self, error: BaseException) -> None:
        self._link.tell({"failed": f"{type(error).__name__}: {error}"})
        self._broken = True
        self._over.set()

    async def _asked(self, what: str, arguments: Mapping[str, Any]) -> Any:
        match what:
            case "route":
                return self._started.route(arguments)
            case "retire":
                return await self._started.retire(arguments["lane"])
            case "page":
                return await self._started.page(arguments["accept"])
        raise ValueError(f"expected route, retire or page, got {what!r}")

    def _do(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the front cannot go on", exc_info=error)
            self._fail(error)

    async def _listen(self, http: socket.socket, grpc_address: str | None) -> None:
        await self._started.listen(http, grpc_address)
        _freeze()

    async def _stop(self, grace: float) -> None:
        if self._front is not None:
            await self._front.stop(grace)
        self._over.set()

    def _orphaned(self) -> None:
        self._do(self._stop(ORPHAN_GRACE))


def _freeze() -> None:
    """What is there by now stays: the collector need not look at it again and again."""
    gc.collect()
    gc.freeze()


def main(descriptor: int) -> int:
    """Be a front until stopped; returns the exit status."""
    ignore_stops()

    async def be() -> int:
        return await _Process(socket.socket(fileno=descriptor)).run()

    with asyncio.Runner(loop_factory=FrontLoop) as runner:
        return runner.run(be())


if __name__ == "__main__":
    status = main(int(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    # threads that still wait for somebody keep nobody else waiting
    os._exit(status)
