"""The process that keeps all others: takes the addresses, starts and restarts, follows the aliases, drains.

It computes nothing and answers nobody, so that nothing a request does can stop it::

    mno serve            this
      ├─ zygote          imports torch once and forks
      │    ├─ workers    one a version
      │    └─ steward    reads the stores
      ├─ numerics        reference solvers and error bounds
      └─ fronts          HTTP and gRPC
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, final

from model_store.reference import Reference
from service.access.audit import Audit
from service.access.rate import Ledger
from service.check import check_files
from service.errors import ServiceFault, WorkerLost
from service.processes.control import Link, LinkLost
from service.processes.cores import model_threads
from service.processes.kept_zygote import KeptZygote
from service.processes.ports import Ports, bracketed
from service.processes.signals import ignore_stops
from service.processes.supervised import Events, Kept, StartFailed
from service.processes.switchboard import Plug, Switchboard
from service.processes.zygote import Child, Launched, spawn
from service.settings import InvalidSettings, Settings
from service.telemetry.metrics import Metrics
from service.versions.following import Versions
from service.versions.places import without_places
from service.versions.repository import ModelEntry
from service.versions.served import ServedVersion

__all__ = ["Addresses", "Announce", "addresses_of", "in_time", "supervise"]

log = logging.getLogger("mno.service")

# how long a process other than a front may take to end when nobody asks it anything any more [s]
END_SECONDS: Final = 5.0
# how long whoever asks waits for a steward, and how long that may take to answer [s]
STEWARD_PATIENCE: Final = 10.0
STEWARD_SECONDS: Final = 30.0
# a signal to all processes of a group comes a second time from whoever passes it on, such as make [s]
SAME_SECONDS: Final = 1.0
# what libraries of a front read as they are loaded, and nowhere else
FRONT_ENVIRONMENT: Final[Mapping[str, str]] = {
    # glibc keeps what large bodies took, each thread for itself, unless it is told how much to keep
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": str(256 * 2**10),
    "MALLOC_TRIM_THRESHOLD_": str(2 * 2**20),
    # gRPC reads sockets as it once did, with two threads and not four: a call takes less processor time
    "GRPC_EXPERIMENTS": "-event_engine_listener",
}
# each of its lanes is one thread: those of a BLAS would wait for one another and for whoever has the cores,
# which on two busy ones makes a bound of 2 ms one of 30
NUMERICS_ENVIRONMENT: Final[Mapping[str, str]] = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"
)
# how long the other fronts may take for their page of metrics [s]
PAGE_SECONDS: Final = 1.0


@final
@dataclass(frozen=True)
class Addresses:
    """Where a service answers; ``grpc`` is None where it answers no gRPC."""

    http: str
    grpc: str | None = None


# called with the addresses and what is served when the service is ready
Announce = Callable[[Addresses, Sequence[ServedVersion]], None]


def addresses_of(settings: Settings, ports: Ports) -> Addresses:
    """Where clients find a service."""
    scheme = "http" if settings.tls.cert is None else "https"
    grpc = ports.grpc_address
    return Addresses(
        f"{scheme}://{bracketed(settings.host)}:{ports.http_port}", None if grpc is None else f"grpc://{grpc}"
    )


def supervise(settings: Settings, announce: Announce, zygote: Launched | None = None) -> int:
    """Run a service until SIGTERM or SIGINT; returns the exit status.

    Args:
        settings: of the service.
        announce: called when it is ready.
        zygote: runs already.

    Raises:
        InvalidSettings: an address or a model cannot be had.
    """
    check_files(settings)
    ports = Ports(settings)
    try:
        return asyncio.run(_Supervisor(settings, ports, zygote).run(announce))
    finally:
        ports.close()


@final
class _Supervisor:
    def __init__(self, settings: Settings, ports: Ports, zygote: Launched | None) -> None:
        self._launched = zygote
        self._settings = settings
        self._ports = ports
        self._metrics = Metrics("supervisor")
        self._audit = Audit(settings.security.audit)
        self._board = Switchboard()
        # what the fronts count together
        self._ledger = Ledger.shared(settings.fronts)
        self._numerics_lanes: Mapping[str, str] = {}
        self._draining = False
        self._look = asyncio.Event()
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._stop_asked = 0.0
        # all that should live does: whoever comes from now on takes the place of one that died
        self._started = False
        self._letting: set[asyncio.Task[None]] = set()

    async def run(self, announce: Announce) -> int:
        """From the start to the exit status."""
        self._begin()
        try:
            with self._signals():
                return await self._run(announce)
        finally:
            # nothing is left that a signal could stop; the exit status is to be this one
            ignore_stops()

    async def _run(self, announce: Announce) -> int:
        hurry = asyncio.ensure_future(self._stop_now.wait())
        story = asyncio.ensure_future(self._story(announce))
        await asyncio.wait({hurry, story}, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if story.done():
            return story.result()
        log.warning("asked to stop a second time: everything ends now")
        story.cancel()
        self._kill()
        self._zygote.kill()
        await asyncio.gather(story, return_exceptions=True)
        await self._zygote.close(END_SECONDS)
        return 1

    def _begin(self) -> None:
        settings, board = self._settings, self._board
        seconds = settings.load_seconds
        restarted = partial(self._metrics.restarted, "zygote")
        self._zygote = KeptZygote(self._launched, restarted, seconds)
        self._zygote.start()
        logs = settings.logs.model_dump_json()
        spec = {**_store(settings), "logs": settings.logs.model_dump(mode="json")}
        self._steward = Kept(
            "steward", lambda: self._zygote.fork("steward", spec), self._steward_events(), seconds
        )
        numerics = partial(spawn, "service.workers.numerics", logs, environment=NUMERICS_ENVIRONMENT)
        self._numerics = Kept("numerics", numerics, self._numerics_events(), seconds)
        self._versions = Versions(
            settings, self._ask_steward, self._fork_worker, board, self._metrics, self._audit
        )
        self._versions.when_changed(self._tell_status)
        loop = asyncio.get_running_loop()
        self._serving: list[asyncio.Future[None]] = [loop.create_future() for _ in range(settings.fronts)]
        front = partial(spawn, "service.processes.front", environment=FRONT_ENVIRONMENT)
        self._fronts = [
            Kept(f"front {number}", front, self._front_events(number), seconds)
            for number in range(settings.fronts)
        ]

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        stops = (signal.SIGTERM, signal.SIGINT)
        for number in stops:
            loop.add_signal_handler(number, self._asked_to_stop)
        loop.add_signal_handler(signal.SIGHUP, self._look_again)
        try:
            yield
        finally:
            for number in (*stops, signal.SIGHUP):
                loop.remove_signal_handler(number)

    def _asked_to_stop(self) -> None:
        now = asyncio.get_running_loop().time()
        if not self._stop.is_set():
            self._stop_asked = now
            self._stop.set()
        elif now - self._stop_asked > SAME_SECONDS:
            self._stop_now.set()

    def _look_again(self) -> None:
        """At the aliases, and at the files of tokens and certificates."""
        self._look.set()
        self._board.tell({"reload": True})
        try:
            self._audit.reopen()
            with self._audit.noting("reload", "tokens, certificates"):
                check_files(self._settings)
        except (InvalidSettings, OSError) as error:
            log.error("not read again, what holds stays: %s", error)

    async def _story(self, announce: Announce) -> int:
        try:
            if await self._unless_stopped(self._start()):
                self._audit.note("start", "service")
                self._announce(announce)
                await self._unless_stopped(self._follow_aliases())
        except Exception as error:
            # whatever it is, nobody is left behind
            await self._drain(delay=0.0)
            if isinstance(error, (StartFailed, ServiceFault)):
                raise InvalidSettings(str(error)) from error
            raise
        clean = await self._drain(self._settings.drain_delay_seconds)
        return 0 if clean else 1

    def _announce(self, announce: Announce) -> None:
        try:
            announce(addresses_of(self._settings, self._ports), self._versions.served)
        except OSError as error:
            # whoever started the service reads no more; its clients are still there
            log.warning("nobody hears that the service is ready: %s", error)

    async def _unless_stopped(self, work: Awaitable[None]) -> bool:
        """Do ``work``; False when it was given up because the service is to stop."""
        task, stop = asyncio.ensure_future(work), asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
                return True
            return False
        finally:
            task.cancel()
            stop.cancel()
            await asyncio.gather(task, stop, return_exceptions=True)

    # --- start

    async def _start(self) -> None:
        """Everything at the same time, as far as it does not need each other."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._numerics.start())
                group.create_task(self._start_versions())
                for front in self._fronts:
                    group.create_task(front.start())
        except* (StartFailed, ServiceFault) as failures:
            raise failures.exceptions[0] from None
        self._started = True
        for number, front in enumerate(self._fronts):
            self._begin_to_serve(number, front.link)
        seconds = self._settings.load_seconds
        try:
            async with asyncio.timeout(seconds):
                await asyncio.gather(*self._serving)
        except TimeoutError:
            raise StartFailed(f"the fronts did not answer within {seconds:g} s") from None

    async def _start_versions(self) -> None:
        await self._steward.start()
        await self._versions.start()

    def _begin_to_serve(self, number: int, link: Link | None) -> None:
        if link is None:
            # it has died; the next one is let serve when it comes
            return
        task = asyncio.get_running_loop().create_task(self._let_serve(number, link))
        self._letting.add(task)
        task.add_done_callback(partial(self._lets_serve, number))

    def _lets_serve(self, number: int, task: asyncio.Task[None]) -> None:
        self._letting.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fronts[number].renew(f"cannot be let serve: {error}")

    async def _let_serve(self, number: int, link: Link) -> None:
        """Route a front, and let it answer."""
        self._tell_status(link)
        table = {name: route.model_dump() for name, route in self._versions.table.items()}
        await self._board.route(table, only=link)
        if self._draining:
            return
        link.tell({"listen": {"grpc": self._ports.grpc_address}}, [self._ports.http(number).fileno()])

    async def _fork_worker(self, reference: Reference) -> Child:
        settings = self._settings
        imported = settings.imported.get(reference.name)
        what: dict[str, Any] = (
            {**_store(settings), "model": str(reference)}
            if imported is None
            else {"factory": imported.function, "arguments": dict(imported.arguments)}
        )
        threads = settings.threads or model_threads()
        common = {
            "device": settings.device,
            "threads": threads,
            "scan_backend": settings.scan_backend,
            "max_batch": settings.batching.max_batch,
            "logs": settings.logs.model_dump(mode="json"),
        }
        return await self._zygote.fork("model", {**what, **common})

    def _numerics_events(self) -> Events:
        recorder = self._metrics.worker("numerics", "", "cpu")

        def ready(link: Link, message: Mapping[str, Any], _: Sequence[int]) -> None:
            recorder.ready(True)
            lanes = self._numerics_lanes = {lane: lane for lane in message["ready"]["lanes"]}
            self._board.add_worker("numerics", Plug(link, lanes))
            self._tell_status()

        def died() -> None:
            recorder.ready(False)
            recorder.restarted()
            self._metrics.restarted("numerics")
            self._board.remove_worker("numerics")
            self._tell_status()

        def told(message: Mapping[str, Any]) -> None:
            if "memory" in message:
                recorder.memory(**message["memory"])

        return Events(_ignore, ready, told, _refuse, died, self._tell_status)

    def _steward_events(self) -> Events:
        """It is asked, and does nothing by itself."""

        def changed(*_: object) -> None:
            self._tell_status()

        def died() -> None:
            self._metrics.restarted("steward")
            self._tell_status()

        return Events(_ignore, changed, _ignore, _refuse, died, changed)

    def _front_events(self, number: int) -> Events:
        def began(link: Link) -> None:
            settings = self._settings.model_dump(mode="json")
            link.tell({"start": {"number": number, "settings": settings}}, [self._ledger.fileno()])

        def ready(link: Link, _: Mapping[str, Any], fds: Sequence[int]) -> None:
            self._board.add_front(number, link, fds, self._fronts[number].renew)
            if self._started:
                self._begin_to_serve(number, link)

        def told(message: Mapping[str, Any]) -> None:
            if "serving" in message:
                if not self._serving[number].done():
                    self._serving[number].set_result(None)
            elif "failed" in message:
                self._cannot_serve(number, message["failed"])
            elif "hung" in message:
                self._end_hung(message["hung"])

        def died() -> None:
            self._metrics.restarted("front")
            self._board.remove_front(number)
            if self._fronts[number].restarts > 1:
                self._cannot_serve(number, "its process ended again before it answered anybody")
            self._tell_status()

        return Events(began, ready, told, partial(self._answer, number), died, self._tell_status)

    def _cannot_serve(self, number: int, why: str) -> None:
        """What a front cannot do at the start it could not later either: the service does not start."""
        if self._started and not self._serving[number].done():
            self._serving[number].set_exception(StartFailed(f"front {number}: {why}"))

    def _end_hung(self, lane: str) -> None:
        if lane in self._numerics_lanes:
            self._numerics.renew(f"did not answer a batch of {lane} in time")
        else:
            self._versions.end_hung(lane)

    # --- while it runs

    async def _follow_aliases(self) -> None:
        """Read the aliases now and then, and at once when somebody asks for it."""
        while True:
            asked = False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.alias_poll_seconds):
                    await self._look.wait()
                    asked = True
            self._look.clear()
            try:
                await self._versions.follow(retry=asked)
            except (LinkLost, ServiceFault) as error:
                log.error("the aliases cannot be read now: %s", error)
            except Exception:  # what is served goes on, and the next look may go better
                log.exception("the aliases cannot be followed now")

    async def _answer(self, number: int, what: str, arguments: Mapping[str, Any]) -> Any:
        """What a front wants to know, or wants done."""
        match what:
            case "index":
                found = await self._ask_steward("index", {})
                return [self._with_states(entry) for entry in found]
            case "describe":
                found = await self._ask_steward("describe", arguments)
                return found | {"entry": self._with_states(found["entry"])}
            case "load":
                return await self._versions.load(arguments["name"])
            case "unload":
                return await self._versions.unload(arguments["name"])
            case "pages":
                return await self._pages(number, arguments)
        raise ValueError(f"expected a question that fronts ask, got {what!r}")

    async def _ask_steward(self, what: str, arguments: Mapping[str, Any]) -> Any:
        try:
            return await self._steward.insist(
                what, arguments, patience=STEWARD_PATIENCE, limit=STEWARD_SECONDS
            )
        except LinkLost as error:
            raise WorkerLost("the stores cannot be read at the moment; try again") from error

    def _with_states(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        ready = {version.reference for version in self._versions.served}
        found = ModelEntry.model_validate(entry).with_states(ready, self._versions.reasons)
        return found.model_dump(mode="json")

    async def _pages(self, asking: int, arguments: Mapping[str, Any]) -> list[str]:
        """The metrics of all processes but the one that asks."""
        others = [front for number, front in enumerate(self._fronts) if number != asking]
        own, _ = await asyncio.to_thread(self._metrics.render, arguments["accept"])
        pages = [own.decode()]
        self._ask_memory()
        return pages + await in_time((each.ask("page", arguments) for each in others), PAGE_SECONDS)

    def _ask_memory(self) -> None:
        self._versions.ask_memory()
        if self._numerics.link is not None:
            self._numerics.link.tell({"memory": True})

    def _tell_status(self, link: Link | None = None) -> None:
        """Let the fronts know what their ``/healthz/ready`` is to say."""
        kept = [self._steward, self._numerics, *self._fronts]
        dying = [each.trouble for each in kept if each.trouble]
        shown = (without_places(trouble, self._settings.store) for trouble in dying)
        troubles = [*self._versions.troubles, *shown]
        status = {"status": {"draining": self._draining, "problems": troubles}}
        for each in self._board.fronts if link is None else (link,):
            each.tell(status)

    # --- the end

    async def _drain(self, delay: float) -> bool:
        """Answer what was accepted, and end everything; whether it all ended by itself."""
        self._draining = True
        self._audit.note("drain", "service")
        self._tell_status()
        await asyncio.sleep(delay)
        grace = self._settings.grace_seconds
        self._ports.close()
        stopping = (front.stop({"stop": {"grace": grace}}, grace + END_SECONDS) for front in self._fronts)
        clean = all(await asyncio.gather(*stopping))
        await asyncio.gather(
            self._versions.close(END_SECONDS),
            self._numerics.stop({"drain": True}, END_SECONDS),
            self._steward.stop({"drain": True}, END_SECONDS),
        )
        await self._zygote.close(END_SECONDS)
        return clean

    def _kill(self) -> None:
        for kept in (self._steward, self._numerics, *self._fronts):
            kept.kill()
        self._versions.kill()


async def in_time(questions: Iterable[Coroutine[Any, Any, str]], seconds: float) -> list[str]:
    """The answers that come within so many seconds; nobody who is slow, or gone, holds those of others up."""
    tasks = [asyncio.ensure_future(question) for question in questions]
    if not tasks:
        return []
    done, late = await asyncio.wait(tasks, timeout=seconds)
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    return [task.result() for task in tasks if task in done and task.exception() is None]


def _store(settings: Settings) -> dict[str, Any]:
    """How a process opens the stores, as JSON."""
    kept = settings.kept
    place = None if kept is None else {"folder": str(kept.folder), "limit": kept.limit}
    return {"store": settings.store, "kept": place}


def _ignore(*_: object) -> None:
    """Nothing is to be done."""


async def _refuse(what: str, _: Mapping[str, Any]) -> Any:
    raise ValueError(f"expected no question, got {what!r}")
