"""The loop of a worker process: one batch at a time, from all fronts in turn."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import mmap
import os
import selectors
import signal
import socket
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from service.processes.signals import DRAIN
from service.workers.batch_token import LONGEST_TEXT, Job, read_job, write_answer
from service.workers.invariants import add_invariants
from service.workers.lane import BadMessage, BlockingLane, LaneClosed
from service.workers.memory import held_memory
from service.workers.worker import Batch, Compute, Solutions

__all__ = ["HostRunner", "LaneServer", "Runner", "Watch", "filled", "obey"]

log = logging.getLogger("mno.service")

# the largest field for which memory is kept from batch to batch
KEPT_BYTES: Final = 16 * 2**20
# what the system says to a process that has too much open
EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class Runner(ABC):
    """Computes a job that lies in the memory of a front."""

    @abstractmethod
    def run(self, job: Job) -> Solutions:
        """The solutions of the job's rows, which the next job may overwrite; may raise anything."""

    @abstractmethod
    def usable(self) -> bool:
        """Whether it can go on after a job that broke."""


@final
class HostRunner(Runner):
    """Puts the pieces of a job together, unless they lie together, and computes them."""

    def __init__(self, compute: Compute) -> None:
        self._compute = compute
        # memory in which pieces are put together, by field
        self._scratch: dict[str, NDArray[np.uint8]] = {}

    def run(self, job: Job) -> Solutions:
        rows = max(job.rows, job.pad_to or 0)
        fields = {name: self._gathered(name, pieces, rows) for name, pieces in job.pieces.items()}
        solutions = self._compute(Batch(job.bucket, fields))
        if len(solutions.iterations) != rows:
            raise RuntimeError(f"expected {rows} rows, the computation gave {len(solutions.iterations)}")
        return solutions.head(job.rows)

    def usable(self) -> bool:
        return True

    def _gathered(self, name: str, pieces: Sequence[NDArray[Any]], rows: int) -> NDArray[Any]:
        """All rows, of which the last is repeated up to ``rows``."""
        first = pieces[0]
        if len(pieces) == 1 and len(first) == rows:
            return first
        room = self._room(name, (rows, *first.shape[1:]), first.dtype)
        for _ in filled(room, pieces):
            pass
        return room

    def _room(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        size = math.prod(shape) * dtype.itemsize
        if size > KEPT_BYTES:
            return np.empty(shape, dtype)
        if name not in self._scratch or self._scratch[name].size < size:
            self._scratch[name] = np.empty(size, np.uint8)
        return self._scratch[name][:size].view(dtype).reshape(shape)


def filled(room: NDArray[Any], pieces: Sequence[NDArray[Any]]) -> Iterator[slice]:
    """Copy the rows of ``pieces`` to ``room``, and the last one up to its end; says which rows are there."""
    end = 0
    for piece in pieces:
        begin, end = end, end + len(piece)
        room[begin:end] = piece
        yield slice(begin, end)
    if end < len(room):
        room[end:] = room[end - 1]
        yield slice(end, len(room))


@final
class Watch:
    """Waits for files to become readable, and for orders from other threads and from handlers of signals."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._orders: deque[Callable[[], None]] = deque()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._draining = False
        self._stopped = False
        self.add(self._bell, self._obey)

    def add(self, file: Any, readable: Callable[[], None]) -> None:
        """Call ``readable`` whenever there is something to read."""
        self._selector.register(file, selectors.EVENT_READ, readable)

    def remove(self, file: Any) -> None:
        """Look at it no more."""
        self._selector.unregister(file)

    def order(self, order: Callable[[], None]) -> None:
        """Call ``order`` in the thread that runs this; from any thread."""
        self._orders.append(order)
        os.eventfd_write(self._bell, 1)

    def drain(self) -> None:
        """Return from ``run`` when there is nothing to read any more; from any thread."""
        self._draining = True
        os.eventfd_write(self._bell, 1)

    def stop(self) -> None:
        """Return from ``run`` at once."""
        self._stopped = True

    def run(self) -> None:
        """Until drained or stopped."""
        while not self._stopped:
            # every file that has something gets its turn before any gets another
            ready = self._selector.select(0 if self._draining else None)
            if not ready and self._draining:
                return
            for key, _ in ready:
                if not self._stopped:
                    key.data()

    def close(self) -> None:
        """Wait for nothing any more."""
        self._selector.close()
        os.close(self._bell)

    def _obey(self) -> None:
        os.eventfd_read(self._bell)
        while self._orders:
            self._orders.popleft()()


@final
@dataclass(eq=False)
class _Front:
    """A front as its worker sees it."""

    name: str
    lane: BlockingLane
    memory: mmap.mmap


@final
class LaneServer:
    """Answers the batches that come over lanes, in the thread that runs ``watch``.

    Attributes:
        broken: nothing more can be computed here.
    """

    def __init__(self, runner: Runner, watch: Watch) -> None:
        self._runner = runner
        self.watch = watch
        self.broken = False
        self._fronts: set[_Front] = set()

    def add(self, name: str, end: socket.socket, arena: int) -> None:
        """Serve a front; takes over its end of a lane, and the descriptor of its arena. From any thread."""
        try:
            memory = mmap.mmap(arena, 0)
        finally:
            os.close(arena)
        front = _Front(name, BlockingLane(end), memory)
        self._fronts.add(front)
        self.watch.order(lambda: self.watch.add(front.lane, lambda: self._serve(front)))

    def close(self) -> None:
        """Hang up on all fronts, when nothing runs any more."""
        self.watch.close()
        for front in self._fronts:
            front.lane.close()
        self._fronts.clear()

    def _remove(self, front: _Front) -> None:
        self._fronts.remove(front)
        self.watch.remove(front.lane)
        front.lane.close()

    def _serve(self, front: _Front) -> None:
        try:
            token, fds = front.lane.receive()
            for fd in fds:
                os.close(fd)
            self._tell(front, token.get("id"), self._answer(token, front.memory))
        except BadMessage as error:
            log.error("%s sent something that is no batch: %s", front.name, error)
        except LaneClosed:
            self._remove(front)
        if self.broken:
            self.watch.stop()

    def _tell(self, front: _Front, number: object, answer: Mapping[str, Any]) -> None:
        try:
            front.lane.send({"id": number, **answer})
        except (TypeError, ValueError) as error:
            # what a computation says of its rows may be no JSON, or too long
            front.lane.send({"id": number, "error": f"an answer that cannot be sent: {error}"[:LONGEST_TEXT]})

    def _answer(self, token: dict[str, Any], memory: mmap.mmap) -> dict[str, Any]:
        try:
            job = read_job(token, memory)
            began = time.perf_counter()
            solutions = self._runner.run(job)
            answer = write_answer(solutions, job.outputs, time.perf_counter() - began)
            add_invariants(job.bucket, job.outputs)
            return answer
        except Exception as error:  # whatever broke, it breaks for this batch only
            log.exception("a batch broke")
            self.broken = not self._runner.usable()
            return {"error": f"{type(error).__name__}: {error}"[:LONGEST_TEXT]}


def obey(watch: Watch, control: BlockingLane, servers: Mapping[str, LaneServer]) -> None:
    """Have ``watch`` hear what the supervisor orders; see ``worker_process`` and ``numerics``.

    Args:
        watch: of the main thread.
        control: the other end is the supervisor's.
        servers: those to which lanes may go, by name; one alone has no name.
    """

    def drain(*_: object) -> None:
        for each in {watch, *(server.watch for server in servers.values())}:
            each.drain()

    def hear() -> None:
        try:
            order, fds = control.receive()
        except BadMessage as error:
            log.error("the supervisor ordered something unknown: %s", error)
        except LaneClosed:
            watch.remove(control)
            drain()
        else:
            if "drain" in order:
                drain()
            elif "memory" in order:
                # a supervisor that is gone is noticed at the next turn
                with contextlib.suppress(LaneClosed):
                    control.send({"memory": held_memory()})
            elif not _open_lane(order, fds, servers):
                # a front that is not served here would be served nowhere: another process is to serve it
                drain()

    watch.add(control, hear)
    signal.signal(DRAIN, drain)


def _open_lane(order: Mapping[str, Any], fds: Sequence[int], servers: Mapping[str, LaneServer]) -> bool:
    """Serve a front; False: this process has no room for it."""
    server = servers.get(order.get("to", ""))
    if "lane" in order and server is not None and len(fds) == 2:
        try:
            server.add(order["lane"], socket.socket(fileno=fds[0]), fds[1])
        except OSError as error:
            log.exception("%s cannot be served", order["lane"])
            return error.errno not in EXHAUSTED
        return True
    log.error("the supervisor ordered something unknown: %.200r, %d descriptors", order, len(fds))
    for fd in fds:
        os.close(fd)
    return True
