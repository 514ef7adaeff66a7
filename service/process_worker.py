"""A worker in another process: the arrays stay in the front's arena, small tokens go over a lane."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, Final, final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from problems import PROBLEMS
from service.arena import Arena
from service.batch_token import Placed, place, read_answer
from service.lane import Lane, LaneClosed
from service.worker import BOUND_FIELDS, GRADIENT, Batch, Bucket, Solutions, Worker, WorkerLost

__all__ = ["ProcessWorker", "outputs_of"]

log = logging.getLogger("mno.service")

# after so long without a batch the memory of the last burst is given back [s]
IDLE_SECONDS: Final = 5.0


def outputs_of(bucket: Bucket, rows: int) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and dtype of everything that a batch of ``rows`` rows gives, by name.

    ======== =========================================================================================
    solve    the problem's outputs [batch y x], in the bucket's dtype
    advance  the problem's outputs [batch frame y x], in the bucket's dtype
    bound    ``lower upper l2_estimate steps contrast jump roughness`` [batch], float64
    vjp      the problem's outputs and ``gradient.<input>`` [batch y x], ``gradient.<parameter>`` [batch]
    ======== =========================================================================================
    """
    problem, dtype = PROBLEMS[bucket.problem], np.dtype(bucket.dtype)
    if bucket.task == "bound":
        return dict.fromkeys(BOUND_FIELDS, ((rows,), np.dtype(np.float64)))
    frames = (bucket.frames,) if bucket.task == "advance" else ()
    shape = (rows, *frames, *bucket.grid.shape)
    outputs = {spec.name: (shape, dtype) for spec in problem.outputs}
    if bucket.task == "vjp":
        outputs |= {f"{GRADIENT}{spec.name}": (shape, dtype) for spec in problem.inputs}
        outputs |= {f"{GRADIENT}{spec.name}": ((rows,), dtype) for spec in problem.parameters}
    return outputs


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
            self._link.lane.finish()
            self._lost(self._link)

    async def run(self, parts: Sequence[Batch], *, pad_to: int | None = None) -> Solutions:
        while self._link is None:
            if self._closed:
                raise WorkerLost(f"{self._name} is closed")
            self._changed.clear()
            await self._changed.wait()
        rows = sum(part.rows for part in parts)
        placed = place(self._arena, parts, pad_to, outputs_of(parts[0].bucket, rows))
        self._runs += 1
        self._trim_when_idle(self._link)
        try:
            return await self._link.ask(placed)
        except LaneClosed:
            raise WorkerLost(f"{self._name} is gone") from None

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

    def _trim_when_idle(self, link: _Link) -> None:
        if self._trimming is None:
            loop = asyncio.get_running_loop()
            self._trimming = loop.call_later(IDLE_SECONDS, self._trim, link, self._runs)

    def _trim(self, link: _Link, runs: int) -> None:
        self._trimming = None
        if self._runs == runs:
            self._arena.trim()
        else:
            self._trim_when_idle(link)


@final
class _Link:
    """One process, and what it was asked."""

    def __init__(self, end: socket.socket, name: str, lost: Callable[[_Link], None]) -> None:
        self._name = name
        self._lost = lost
        self._numbers = itertools.count()
        # the arrays stay until the answer is there or the process is gone, whether or not anybody still waits
        self._asked: dict[int, tuple[Placed, asyncio.Future[Solutions]]] = {}
        self.lane = Lane(end, self._answered, self._ended)

    async def ask(self, placed: Placed) -> Solutions:
        """The answer to a batch.

        Raises:
            LaneClosed: the process was gone before.
            WorkerLost: it went while it had the batch.
            ComputationFailed: the batch broke; see ``batch_token``.
        """
        number = next(self._numbers)
        self.lane.send({"id": number, **placed.token})
        future: asyncio.Future[Solutions] = asyncio.get_running_loop().create_future()
        self._asked[number] = placed, future
        return await future

    def _answered(self, answer: dict[str, Any], fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        try:
            placed, future = self._asked.pop(answer["id"])
        except KeyError:
            log.error("%s answered what nobody asked: %.200r", self._name, answer)
            return
        if future.done():
            return
        try:
            future.set_result(read_answer(answer, placed))
        except Exception as error:  # whatever came, somebody waits for it
            future.set_exception(error)

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
