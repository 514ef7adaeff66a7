"""A worker in another process: the arrays stay in the front's arena, small tokens go over a lane."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, Final, final

from numpy.typing import DTypeLike, NDArray

from service.arena import Arena
from service.batch_token import Placed, place, read_answer
from service.errors import Overloaded
from service.lane import Lane, LaneClosed
from service.worker import Batch, Solutions, Worker, WorkerLost

__all__ = ["ProcessWorker"]

log = logging.getLogger("mno.service")

# how long memory that no batch needs any more may stay [s]
TRIM_SECONDS: Final = 3.0


@final
class ProcessWorker(Worker):
    """The front's end of a worker process, whichever process that is now.

    Use it inside one event loop. While no process is attached, ``run`` waits for one.
    """

    def __init__(self, arena: Arena, name: str = "worker") -> None:
        """``name`` is for logs and errors."""
        self._arena = arena
        self._name = name
        self._link: _Link | None = None
        self._changed = asyncio.Event()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._runs = 0
        self._trimming: asyncio.TimerHandle | None = None

    @property
    def attached(self) -> bool:
        """Whether a process is there."""
        return self._link is not None

    def attach(self, end: socket.socket) -> None:
        """Send what comes from now on to the worker process at the other end; takes over ``end``.

        A process that was attached before still answers what it was sent.
        """
        if self._closed:
            end.close()
            return
        self.detach()
        self._loop = asyncio.get_running_loop()
        self._link = _Link(end, self._name, self._lost)
        self._changed.set()

    def detach(self) -> None:
        """Send nothing more to the attached process; it answers what it was sent, and hangs up."""
        if self._link is not None:
            self._link.finish()
            self._lost(self._link)

    async def run(self, parts: Sequence[Batch], *, pad_to: int | None = None) -> Solutions:
        while self._link is None:
            if self._closed:
                raise WorkerLost(f"{self._name} is closed")
            self._changed.clear()
            await self._changed.wait()
        # no array is named here: an error that somebody keeps would keep them
        return await self._asked(self._link, parts, pad_to)

    def _asked(self, link: _Link, parts: Sequence[Batch], pad_to: int | None) -> asyncio.Future[Solutions]:
        self._runs += 1
        self._trim_later()
        try:
            return link.ask(place(self._arena, parts, pad_to))
        except LaneClosed:
            # whoever tries again waits for the next one
            self._lost(link)
            raise WorkerLost(f"{self._name} is gone") from None
        except Overloaded as error:
            # its traceback would keep what was already put into the arena
            raise error.with_traceback(None) from None

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        return self._arena.allocate(shape, dtype)

    def close(self) -> None:
        """Detach; whoever waits for a process gets WorkerLost. May be called from any thread."""
        loop = self._loop
        if loop is None or loop.is_closed() or _is_running(loop):
            self._close()
        else:
            loop.call_soon_threadsafe(self._close)

    def _close(self) -> None:
        self._closed = True
        self.detach()
        self._changed.set()
        if self._trimming is not None:
            self._trimming.cancel()

    def _lost(self, link: _Link) -> None:
        if link is self._link:
            self._link = None

    def _trim_later(self) -> None:
        if self._trimming is None:
            loop = asyncio.get_running_loop()
            self._trimming = loop.call_later(TRIM_SECONDS, self._trim, self._runs)

    def _trim(self, runs: int) -> None:
        self._trimming = None
        self._arena.trim()
        if self._runs == runs:
            # nothing was asked since then: what was used before goes, too
            self._arena.trim()
        else:
            self._trim_later()


@final
class _Link:
    """One process, and what it was asked."""

    def __init__(self, end: socket.socket, name: str, lost: Callable[[_Link], None]) -> None:
        self._name = name
        self._lost = lost
        self._numbers = itertools.count()
        self._finished = False
        # the arrays stay until the answer is there or the process is gone, whether or not anybody still waits
        self._asked: dict[int, tuple[Placed, asyncio.Future[Solutions]]] = {}
        self.lane = Lane(end, self._answered, self._ended)

    def ask(self, placed: Placed) -> asyncio.Future[Solutions]:
        """The answer to a batch, or ComputationFailed or WorkerLost instead.

        Raises:
            LaneClosed: the process was gone before.
        """
        number = next(self._numbers)
        self.lane.send({"id": number, **placed.token})
        future: asyncio.Future[Solutions] = asyncio.get_running_loop().create_future()
        self._asked[number] = placed, future
        return future

    def finish(self) -> None:
        """Ask nothing more; the process hangs up when it has answered."""
        self._finished = True
        if self._asked:
            self.lane.finish()
        else:
            self.lane.close()

    def _answered(self, answer: dict[str, Any], fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        try:
            placed, future = self._asked.pop(answer["id"])
        except KeyError:
            log.error("%s answered what nobody asked: %.200r", self._name, answer)
            return
        if self._finished and not self._asked:
            self.lane.close()
        if future.done():
            return
        try:
            future.set_result(read_answer(answer, placed))
        except Exception as error:  # whatever came, somebody waits for it
            # its traceback would keep the arrays as long as somebody keeps the error
            future.set_exception(error.with_traceback(None))

    def _ended(self) -> None:
        self._lost(self)
        asked, self._asked = self._asked, {}
        for _, future in asked.values():
            if not future.done():
                future.set_exception(WorkerLost(f"{self._name} ended while it computed"))


def _is_running(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
