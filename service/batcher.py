"""Puts requests that wait at the same time into one batch, and gives each caller its own rows back.

The rules: whatever queued up while the worker was busy goes next, up to ``max_batch`` rows; nobody waits for
company; a caller who leaves takes only its own rows; a batch that fails fails alone.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np

from service.errors import Overloaded, WorkFailed
from service.worker import Batch, Bucket, Solutions, Worker

__all__ = ["Batcher", "Outcome"]


@dataclass(frozen=True)
class Outcome:
    """Solutions of one submission, and how long they waited and took.

    Attributes:
        queue: wait until a batch with the first of its parts began [s].
        compute: sum of the computing times of the batches that held its parts [s].
        batch_size: rows of the largest of these batches.
    """

    solutions: Solutions
    queue: float
    compute: float
    batch_size: int


@dataclass(eq=False)
class _Waiting:
    """A part of a submission that fits into one batch; its caller awaits ``future``."""

    batch: Batch
    future: asyncio.Future[Outcome]
    since: float = field(default_factory=time.perf_counter)


@final
class Batcher:
    """The queue in front of one worker. Start it inside the event loop, and close it there."""

    def __init__(self, worker: Worker, *, max_batch: int, queue_bytes: int, queue_seconds: float) -> None:
        self._worker = worker
        self._max_batch = max_batch
        self._queue_bytes = queue_bytes
        self._queue_seconds = queue_seconds
        # dicts are ordered sets here: oldest first, and a caller who leaves is removed at once
        self._buckets: dict[Bucket, dict[_Waiting, None]] = {}
        self._bytes = 0
        self._seconds_per_byte = 0.0
        self._arrival = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Rows that wait for a batch."""
        return sum(part.batch.rows for bucket in self._buckets.values() for part in bucket)

    def start(self) -> None:
        """Begin to serve the queue."""
        self._loop = asyncio.get_running_loop().create_task(self._serve(), name="batcher")

    async def close(self) -> None:
        """Stop serving; whoever still waits is cancelled."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        for waiting in [waiting for bucket in self._buckets.values() for waiting in bucket]:
            waiting.future.cancel()
        await asyncio.to_thread(self._worker.close)

    async def submit(self, batch: Batch, *, admitted: bool = False) -> Outcome:
        """Solutions of ``batch``, which shares the worker's batches with whoever else waits.

        Args:
            batch: rows of one bucket.
            admitted: it goes on with work that was let in before, and is not refused now.

        Raises:
            Overloaded: the queue is full.
            WorkFailed: the batch that held these rows broke.
        """
        if not admitted:
            self._admit(batch)
        loop = asyncio.get_running_loop()
        parts = [_Waiting(part, loop.create_future()) for part in _split(batch, self._max_batch)]
        self._buckets.setdefault(batch.bucket, {}).update(dict.fromkeys(parts))
        self._bytes += batch.nbytes
        self._arrival.set()
        try:
            return _whole(await asyncio.gather(*(part.future for part in parts)))
        finally:
            self._bytes -= batch.nbytes
            self._forget(batch.bucket, parts)

    def _admit(self, batch: Batch) -> None:
        wait = self._bytes * self._seconds_per_byte
        # an empty queue takes anything that the request limits let through
        if self._bytes and (self._bytes + batch.nbytes > self._queue_bytes or wait > self._queue_seconds):
            raise Overloaded(
                f"the queue holds {self._bytes} bytes of fields, about {wait:.1f} s of work; try again later",
                retry_after=max(1, math.ceil(wait)),
            )

    def _forget(self, bucket: Bucket, parts: Iterable[_Waiting]) -> None:
        queue = self._buckets.get(bucket, {})
        for part in parts:
            part.future.cancel()
            queue.pop(part, None)
        if not queue:
            self._buckets.pop(bucket, None)

    async def _serve(self) -> None:
        while True:
            await self._arrival.wait()
            self._arrival.clear()
            while batch := self._next():
                await self._compute(batch)

    def _next(self) -> list[_Waiting]:
        """The longest waiting bucket's oldest parts, as many as fit into a batch."""
        if not self._buckets:
            return []
        bucket, queue = min(self._buckets.items(), key=lambda entry: next(iter(entry[1])).since)
        taken: list[_Waiting] = []
        rows = 0
        for waiting in queue:
            rows += waiting.batch.rows
            if rows > self._max_batch:
                break
            taken.append(waiting)
        for waiting in taken:
            del queue[waiting]
        if not queue:
            del self._buckets[bucket]
        return taken

    async def _compute(self, taken: Sequence[_Waiting]) -> None:
        began = time.perf_counter()
        try:
            solutions = await self._worker.run([waiting.batch for waiting in taken])
            parts = _parted(solutions, [waiting.batch.rows for waiting in taken])
        except asyncio.CancelledError:  # the batcher is closed: nobody will answer these
            for waiting in taken:
                waiting.future.cancel()
            raise
        except Exception as error:  # whatever broke, it breaks for this batch only
            _fail(taken, error)
            return
        seconds = time.perf_counter() - began
        self._learn(seconds / sum(waiting.batch.nbytes for waiting in taken))
        size = sum(waiting.batch.rows for waiting in taken)
        for waiting, part in zip(taken, parts, strict=True):
            # a caller may have left while the batch was running
            if not waiting.future.done():
                waiting.future.set_result(Outcome(part, began - waiting.since, seconds, size))

    def _learn(self, seconds_per_byte: float) -> None:
        known = self._seconds_per_byte or seconds_per_byte
        self._seconds_per_byte = 0.8 * known + 0.2 * seconds_per_byte


def _fail(taken: Iterable[_Waiting], error: Exception) -> None:
    for waiting in taken:
        if not waiting.future.done():
            # one exception object per caller: they are raised, and gain tracebacks, separately
            failure = WorkFailed(f"the batch could not be computed: {type(error).__name__}")
            failure.__cause__ = error
            waiting.future.set_exception(failure)


def _split(batch: Batch, rows: int) -> list[Batch]:
    if batch.rows <= rows:
        return [batch]
    return [_slice(batch, start, start + rows) for start in range(0, batch.rows, rows)]


def _slice(batch: Batch, start: int, stop: int) -> Batch:
    return Batch(batch.bucket, {name: values[start:stop] for name, values in batch.fields.items()})


def _parted(solutions: Solutions, rows: Sequence[int]) -> list[Solutions]:
    """Each caller's rows. A worker that lost or invented rows has mixed up its callers: refuse it all."""
    counts = {len(solutions.iterations), *(len(values) for values in solutions.fields.values())}
    if counts != {sum(rows)}:
        raise RuntimeError(f"the worker answered {sorted(counts)} rows to a batch of {sum(rows)}")
    parts, start = [], 0
    for count in rows:
        fields = {name: values[start : start + count] for name, values in solutions.fields.items()}
        unsolved = {row - start: why for row, why in solutions.unsolved.items() if 0 <= row - start < count}
        parts.append(Solutions(fields, solutions.iterations[start : start + count], unsolved))
        start += count
    return parts


def _whole(outcomes: Sequence[Outcome]) -> Outcome:
    if len(outcomes) == 1:
        return outcomes[0]
    return Outcome(
        _joined([outcome.solutions for outcome in outcomes]),
        queue=min(outcome.queue for outcome in outcomes),
        compute=sum(outcome.compute for outcome in outcomes),
        batch_size=max(outcome.batch_size for outcome in outcomes),
    )


def _joined(parts: Sequence[Solutions]) -> Solutions:
    fields = {name: np.concatenate([part.fields[name] for part in parts]) for name in parts[0].fields}
    iterations: tuple[int, ...] = ()
    unsolved: dict[int, str] = {}
    for part in parts:
        unsolved |= {len(iterations) + row: why for row, why in part.unsolved.items()}
        iterations += part.iterations
    return Solutions(fields, iterations, unsolved)
