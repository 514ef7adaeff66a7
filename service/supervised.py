"""A process that ought to live: started, awaited until it is ready, and started again when it dies."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from service.control import Link, LinkLost
from service.zygote import Child

__all__ = ["Events", "Kept", "StartFailed", "pause_before_start"]

log = logging.getLogger("mno.service")

# a process that lived so long before it died did not die of its start [s]
SETTLED: Final = 60.0
SHORTEST_PAUSE: Final = 0.25
LONGEST_PAUSE: Final = 30.0


class StartFailed(Exception):
    """The process said that it cannot do its work, or ended before it could."""


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
    """

    began: Callable[[Link], None]
    ready: Callable[[Link, Mapping[str, Any], Sequence[int]], None]
    told: Callable[[Mapping[str, Any]], None]
    asked: Callable[[str, Mapping[str, Any]], Awaitable[Any]]
    died: Callable[[], None]


def pause_before_start(deaths: int) -> float:
    """How long to wait before the next start after so many deaths in a row [s]: after one, not at all."""
    return 0.0 if deaths <= 1 else float(min(LONGEST_PAUSE, SHORTEST_PAUSE * 2 ** (deaths - 2)))


@final
class Kept:
    """One process, whichever one that is now."""

    def __init__(self, name: str, launch: Callable[[], Awaitable[Child]], events: Events) -> None:
        """``launch`` starts the process; :meth:`start` calls it."""
        self.name = name
        self._launch = launch
        self._events = events
        self._child: Child | None = None
        self._link: Link | None = None
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ready = False
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
            return None
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

    def kill(self) -> None:
        """End it at once, and do not start it again."""
        self._stopping = True
        if self._child is not None:
            self._child.kill()

    async def _finished(self) -> None:
        if self._task is not None:
            # it may be in a pause before the next start
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._link is not None:
            self._link.close()

    async def _keep(self) -> None:
        while not self._stopping:
            try:
                began = time.monotonic()
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
        try:
            self._child = child = await self._launch()
        except (OSError, LinkLost) as error:
            raise StartFailed(f"cannot be started: {error}") from error
        self._link = self._linked(child, ready, gone)
        self._events.began(self._link)
        try:
            # what it said last is read before it is known to be gone
            await asyncio.wait({ready, gone}, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                ready.result()
            status = await child.wait()
            if not ready.done():
                raise StartFailed(_how_it_ended(status))
            self._reason = _how_it_ended(status)
        except StartFailed:
            child.kill()
            await child.wait()
            raise
        finally:
            self._ready = False
            self._child = None
            if not self._stopping:
                self._link.close()

    def _linked(self, child: Child, ready: asyncio.Future[None], gone: asyncio.Future[None]) -> Link:
        def told(message: Mapping[str, Any], fds: Sequence[int]) -> None:
            if ready.done():
                self._events.told(message)
            elif "failed" in message:
                ready.set_exception(StartFailed(str(message["failed"])))
            elif "ready" in message:
                self._ready = True
                ready.set_result(None)
                self._events.ready(link, message, fds)
                if not self._first.done():
                    self._first.set_result(None)

        def lost() -> None:
            if not gone.done():
                gone.set_result(None)

        link = Link(child.control, told, self._events.asked, lost)
        return link


def _how_it_ended(status: int) -> str:
    return f"ended by signal {-status}" if status < 0 else f"ended with status {status}"
