"""A worker in another process: the arrays stay in the front's arena, small tokens go over a lane."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from numpy.typing import DTypeLike, NDArray

from service.errors import Overloaded
from service.workers.arena import Arena
from service.workers.batch_token import Placed, place, read_answer
from service.workers.lane import Lane, LaneClosed
from service.workers.worker import Batch, Solutions, Worker, WorkerLost

__all__ = ["Patience", "ProcessWorker"]

log = logging.getLogger("mno.service")

# how long memory that no batch needs any more may stay [s]
TRIM_SECONDS: Final = 3.0


@final
@dataclass(frozen=True)
class Patience:
    """How long a process is waited for.

    Attributes:
        absent: since the last one ended, while there is none [s].
        silent: for an answer, at least [s].
        factor: for an answer, as a multiple of what it takes where every row is as slow as the slowest yet.
    """

    absent: float = 10.0
    silent: float = 60.0
    factor: float = 20.0

    def for_answer(self, expected: float) -> float:
        """How long to wait for the answer to a batch that is expected to take so long [s]."""
        return max(self.silent, self.factor * expected)


@final
class ProcessWorker(Worker):
    """The front's end of a worker process, whichever process that is now.

    Use it inside one event loop. While no process is attached, ``run`` waits for one, but not for long: who
    waits behind it waits as well. A process that does not answer is given up, since it may never do so.
    """

    def __init__(
        self,
        arena: Arena,
        name: str = "worker",
        *,
        patience: Patience | None = None,
        on_hung: Callable[[], None] = lambda: None,
    ) -> None:
        """A worker without a process.

        Args:
            arena: holds the arrays.
            name: for logs and errors.
            patience: how long to wait.
            on_hung: called when the attached process did not answer in time; it should be ended, since the
                memory that it may still write to is given back only then.
        """
        self._arena = arena
        self._name = name
        self._patience = patience or Patience()
        self._on_hung = on_hung
        self._link: _Link | None = None
        self._absent_since = time.monotonic()
        self._changed = asyncio.Event()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._runs = 0
        self._trimming: asyncio.TimerHandle | None = None
        self._slowest_row = 0.0

    @property
    def available(self) -> bool:
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
        self._link = _Link(end, self._name, _Owner(self._lost, self._hung, self.learn, self._longest))
        self._changed.set()

    def detach(self) -> None:
        """Send nothing more to the attached process; it answers what it was sent, and hangs up."""
        if self._link is not None:
            self._link.finish()
            self._lost(self._link)

    async def run(self, parts: Sequence[Batch], *, pad_to: int | None = None) -> Solutions:
        # no array is named here: an error that somebody keeps would keep them
        return await self._asked(await self._present(), parts, pad_to)

    async def _present(self) -> _Link:
        while self._link is None:
            if self._closed:
                raise WorkerLost(f"{self._name} is closed")
            self._changed.clear()
            left = self._absent_since + self._patience.absent - time.monotonic()
            try:
                async with asyncio.timeout(max(0.0, left)):
                    await self._changed.wait()
            except TimeoutError:
                absent = f"{self._name} has had no process for {self._patience.absent:g} s"
                raise WorkerLost(absent, absent=True) from None
        return self._link

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

    def learn(self, rows: int, seconds: float) -> None:
        """A batch of so many rows took so long: one of the same kind may take long, too."""
        self._slowest_row = max(self._slowest_row, seconds / rows)

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
            self._absent_since = time.monotonic()

    def _longest(self, rows: int) -> float:
        return self._patience.for_answer(rows * self._slowest_row)

    def _hung(self, link: _Link) -> None:
        log.error("%s does not answer and is given up", self._name)
        # one that was replaced is no longer whom the owner knows by this name
        if link is self._link:
            self._lost(link)
            self._on_hung()

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
@dataclass(frozen=True, eq=False)
class _Asked:
    """A batch that has no answer yet; ``timer`` gives its process up."""

    placed: Placed
    future: asyncio.Future[Solutions]
    timer: asyncio.TimerHandle


@final
@dataclass(frozen=True)
class _Owner:
    """Whom a link tells what happens, and asks.

    Attributes:
        lost: the process is gone.
        hung: it did not answer in time.
        took: a batch of so many rows took so long [s].
        longest: for how long to wait for a batch of so many rows [s].
    """

    lost: Callable[[_Link], None]
    hung: Callable[[_Link], None]
    took: Callable[[int, float], None]
    longest: Callable[[int], float]


@final
class _Link:
    """One process, and what it was asked."""

    def __init__(self, end: socket.socket, name: str, owner: _Owner) -> None:
        self._name = name
        self._owner = owner
        self._numbers = itertools.count()
        self._finished = False
        # the arrays stay until the answer is there or the process is gone, whether or not anybody still waits
        self._asked: dict[int, _Asked] = {}
        self.lane = Lane(end, self._answered, self._ended)

    def ask(self, placed: Placed) -> asyncio.Future[Solutions]:
        """The answer to a batch, or ComputationFailed or WorkerLost instead.

        Raises:
            LaneClosed: the process was gone before.
        """
        number, loop = next(self._numbers), asyncio.get_running_loop()
        self.lane.send({"id": number, **placed.token})
        future: asyncio.Future[Solutions] = loop.create_future()
        timer = loop.call_later(self._owner.longest(_computed_rows(placed)), self._give_up)
        self._asked[number] = _Asked(placed, future, timer)
        return future

    def _give_up(self) -> None:
        """Let nobody wait any longer; the arrays stay, since the process may go on and write to them."""
        self._owner.hung(self)
        self.finish()
        self._fail("does not answer")

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
            asked = self._asked.pop(answer["id"])
        except KeyError:
            log.error("%s answered what nobody asked: %.200r", self._name, answer)
            return
        if self._finished and not self._asked:
            self.lane.close()
        asked.timer.cancel()
        if "seconds" in answer:
            self._owner.took(_computed_rows(asked.placed), answer["seconds"])
        if asked.future.done():
            return
        try:
            asked.future.set_result(read_answer(answer, asked.placed))
        except Exception as error:  # whatever came, somebody waits for it
            # its traceback would keep the arrays as long as somebody keeps the error
            asked.future.set_exception(error.with_traceback(None))

    def _ended(self) -> None:
        self._owner.lost(self)
        self._fail("ended while it computed")
        self._asked.clear()

    def _fail(self, how: str) -> None:
        for asked in self._asked.values():
            asked.timer.cancel()
            if not asked.future.done():
                asked.future.set_exception(WorkerLost(f"{self._name} {how}"))


def _computed_rows(placed: Placed) -> int:
    return max(placed.rows, placed.token["pad_to"] or 0)


def _is_running(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
