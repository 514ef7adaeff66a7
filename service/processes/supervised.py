"""A process that ought to live: started, awaited until it is ready, and started again when it dies."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from service.processes.control import Link, LinkLost
from service.processes.zygote import Child

__all__ = ["Events", "Hung", "Kept", "StartFailed", "pause_before_start"]

log = logging.getLogger("mno.service")

# a process that lived so long before it died did not die of its start [s]
SETTLED: Final = 60.0
# a process that is not ready by then hangs, where nobody says another time [s]
START_SECONDS: Final = 300.0
SHORTEST_PAUSE: Final = 0.25
LONGEST_PAUSE: Final = 30.0


class StartFailed(Exception):
    """The process said that it cannot do its work, or ended before it could."""


class Hung(LinkLost):
    """The process lived and did not answer; it was killed, and another one comes."""


def _nothing() -> None:
    """Nothing is to be done."""


@final
@dataclass(frozen=True)
class Events:
    """What is called when something happens to a process.

    Attributes:
        began: it has started, and has said nothing yet.
        ready: it said so, with this message and these descriptors.
        told: it said something else.
        asked: it asked something.
        died: it ended, and will be started again.
        settled: it has lived for long enough: what was wrong before is over.
    """

    began: Callable[[Link], None]
    ready: Callable[[Link, Mapping[str, Any], Sequence[int]], None]
    told: Callable[[Mapping[str, Any]], None]
    asked: Callable[[str, Mapping[str, Any]], Awaitable[Any]]
    died: Callable[[], None]
    settled: Callable[[], None] = _nothing


def pause_before_start(deaths: int) -> float:
    """How long to wait before the next start after so many deaths in a row [s]: after one, not at all."""
    return 0.0 if deaths <= 1 else float(min(LONGEST_PAUSE, SHORTEST_PAUSE * 2 ** (deaths - 2)))


@final
class Kept:
    """One process, whichever one that is now."""

    def __init__(
        self,
        name: str,
        launch: Callable[[], Awaitable[Child]],
        events: Events,
        start_seconds: float = START_SECONDS,
    ) -> None:
        """``launch`` starts the process, which has ``start_seconds`` to be ready; :meth:`start` calls it."""
        self.name = name
        self._start_seconds = start_seconds
        self._launch = launch
        self._events = events
        self._child: Child | None = None
        self._link: Link | None = None
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ready = False
        self._is_ready = asyncio.Event()
        # how it hung, until another one has lived for long enough
        self._hung: str | None = None
        # deaths in a row, and in all
        self._deaths = 0
        self.restarts = 0
        self._reason = ""

    @property
    def link(self) -> Link | None:
        """To the process, while one is ready."""
        return self._link if self._ready else None

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return None if self._child is None else self._child.pid

    @property
    def trouble(self) -> str | None:
        """What is wrong, where the process does not stay alive; a single death is nothing to speak of."""
        if self._deaths < 2 or (self._ready and self._deaths < 3):
            return self._hung
        return f"{self.name}: its process ended {self._deaths} times in a row: {self._reason}"

    async def start(self) -> None:
        """Start it for the first time, and wait until it is ready.

        Raises:
            StartFailed: it is not; it is not started again.
        """
        self._task = asyncio.get_running_loop().create_task(self._keep(), name=self.name)
        await asyncio.shield(self._first)

    async def ask(self, what: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Ask the process.

        Raises:
            LinkLost: there is none now, or it ended before it answered.
            ServiceFault: what it raised.
        """
        if self.link is None:
            raise LinkLost(self.name)
        return await self.link.ask(what, arguments)

    async def insist(
        self, what: str, arguments: Mapping[str, Any] | None, *, patience: float, limit: float
    ) -> Any:
        """Ask the process; where it ends before it answers, the next one.

        Args:
            what: to ask.
            arguments: of the question.
            patience: how long to wait for a process that is there [s].
            limit: an answer that takes longer does not come: the process is killed, and another started [s].

        Raises:
            LinkLost: none that was there in time has answered.
            Hung: it has taken too long.
            ServiceFault: what it raised.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + patience
        while True:
            try:
                async with asyncio.timeout_at(end):
                    await self._is_ready.wait()
            except TimeoutError:
                raise LinkLost(self.name) from None
            asked = self._child
            try:
                async with asyncio.timeout(limit):
                    return await self.ask(what, arguments)
            except TimeoutError:
                if asked is self._child:
                    self.renew(f"did not answer within {limit:g} s")
                raise Hung(f"{self.name} did not answer within {limit:g} s") from None
            except LinkLost:
                # the link ends a moment before it is known that the process has
                if asked is self._child:
                    self._is_ready.clear()

    def renew(self, why: str) -> None:
        """End a process that does not do what it should; another one is started."""
        log.error("%s: %s; it is killed", self.name, why)
        self._hung = f"{self.name}: {why}"
        self.end()

    async def stop(self, order: Mapping[str, Any], seconds: float) -> bool:
        """Send ``order``, wait for the end, and kill it after ``seconds``; whether it ended well."""
        self._stopping = True
        child = self._child
        if child is None:
            await self._finished()
            return True
        if self._link is not None:
            self._link.tell(order)
        try:
            async with asyncio.timeout(seconds):
                status = await child.wait()
        except TimeoutError:
            log.warning("%s did not end within %g s and is killed", self.name, seconds)
            child.kill()
            status = await child.wait()
        await self._finished()
        return status == 0

    def end(self) -> None:
        """End the process at once; it is started again."""
        if self._child is not None:
            self._child.kill()

    def kill(self) -> None:
        """End it at once, and do not start it again."""
        self._stopping = True
        self.end()

    async def _finished(self) -> None:
        if self._task is not None:
            # it may be in a pause before the next start
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._link is not None:
            self._link.close()

    async def _keep(self) -> None:
        while not self._stopping:
            began = time.monotonic()
            try:
                await self._live()
            except StartFailed as error:
                self._reason = str(error)
                if not self._first.done():
                    self._first.set_exception(error)
                    return
            if self._stopping:
                return
            self._deaths = 1 if time.monotonic() - began > SETTLED else self._deaths + 1
            self.restarts += 1
            pause = pause_before_start(self._deaths)
            log.error("%s: %s; starts again in %g s", self.name, self._reason, pause)
            self._events.died()
            await asyncio.sleep(pause)

    async def _live(self) -> None:
        """From the start of a process to its end."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        gone: asyncio.Future[None] = loop.create_future()
        settled: asyncio.TimerHandle | None = None
        end = loop.time() + self._start_seconds
        try:
            async with asyncio.timeout_at(end):
                self._child = child = await self._launch()
        except (OSError, LinkLost, TimeoutError) as error:
            raise StartFailed(f"cannot be started: {error or type(error).__name__}") from error
        self._link = self._linked(child, ready, gone)
        try:
            self._events.began(self._link)
            # what it said last is read before it is known to be gone
            await asyncio.wait(
                {ready, gone}, timeout=max(0.0, end - loop.time()), return_when=asyncio.FIRST_COMPLETED
            )
            if ready.done():
                ready.result()
                settled = loop.call_later(SETTLED, self._settle)
            elif not gone.done():
                raise StartFailed(f"was not ready within {self._start_seconds:g} s")
            status = await child.wait()
            if not ready.done():
                raise StartFailed(_how_it_ended(status))
            self._reason = _how_it_ended(status)
        except Exception as error:
            child.kill()
            await child.wait()
            if isinstance(error, StartFailed):
                raise
            # the mistake is here, and whoever waits for the start is to hear of it
            log.exception("%s cannot be kept", self.name)
            raise StartFailed(f"{type(error).__name__}: {error}") from error
        finally:
            if settled is not None:
                settled.cancel()
            self._ready = False
            self._is_ready.clear()
            self._child = None
            if not self._stopping:
                self._link.close()

    def _settle(self) -> None:
        self._deaths, self._hung = 0, None
        self._events.settled()

    def _linked(self, child: Child, ready: asyncio.Future[None], gone: asyncio.Future[None]) -> Link:
        def told(message: Mapping[str, Any], fds: Sequence[int]) -> None:
            if ready.done():
                self._events.told(message)
            elif "failed" in message:
                ready.set_exception(StartFailed(str(message["failed"])))
            elif "ready" in message:
                self._ready = True
                try:
                    self._events.ready(link, message, fds)
                except StartFailed as error:
                    self._ready = False
                    ready.set_exception(error)
                    return
                except Exception as error:
                    self._ready = False
                    log.exception("%s cannot be used", self.name)
                    ready.set_exception(StartFailed(f"{type(error).__name__}: {error}"))
                    return
                ready.set_result(None)
                self._is_ready.set()
                if not self._first.done():
                    self._first.set_result(None)

        def lost() -> None:
            if not gone.done():
                gone.set_result(None)

        link = Link(child.control, told, self._events.asked, lost)
        return link


def _how_it_ended(status: int) -> str:
    return f"ended by signal {-status}" if status < 0 else f"ended with status {status}"
