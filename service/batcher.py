"""Puts requests that wait at the same time into one batch, and gives each caller its own rows back.

The rules: an idle worker gets what waits, up to a batch, at once, unless those who have just been answered
are about to ask again (``linger.py``); who goes first is in ``line.py``, who is let in at all in
``admission.py``. A caller who leaves takes only its own rows. A batch that breaks is computed again, each
part alone, so that only the part that broke it fails.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from service import errors
from service.admission import BatchRules, Prospect, fault, refuse
from service.cost import CostCurve
from service.errors import DeadlineExceeded, Overloaded, WorkFailed
from service.line import Line, Waiting
from service.linger import Linger, Returners
from service.ticket import ANYBODY, Priority, Ticket
from service.worker import Batch, Bucket, Solutions, Worker, WorkerLost

__all__ = ["BatchRules", "Batcher", "Observer", "Outcome", "Unobserved"]

# bulk work rides along with an interactive batch as long as it makes it longer by no more than this part
_DETOUR: Final = 0.25
# buckets whose costs are remembered
_MOST_BUCKETS: Final = 256


@final
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


class Observer(Protocol):
    """What a queue tells about itself; ``service.metrics`` counts it."""

    def on_queue(self, rows: int, nbytes: int) -> None:
        """So much waits now."""

    def on_batch(self, rows: int, padded: int, waits: Iterable[float], seconds: float) -> None:
        """A batch was computed: its rows, those added to fill it up, and what its parts waited [s]."""

    def on_refused(self, reason: str) -> None:
        """A submission was not let in."""

    def on_evicted(self, rows: int, reason: str) -> None:
        """Rows were taken out uncomputed: ``left`` or ``deadline``."""

    def on_retry(self, rows: int) -> None:
        """Rows wait again, alone."""

    def on_failed(self, rows: int) -> None:
        """The computation of rows broke."""


@final
class Unobserved:
    """Tells nobody."""

    def on_queue(self, rows: int, nbytes: int) -> None:
        """See ``Observer``."""

    def on_batch(self, rows: int, padded: int, waits: Iterable[float], seconds: float) -> None:
        """See ``Observer``."""

    def on_refused(self, reason: str) -> None:
        """See ``Observer``."""

    def on_evicted(self, rows: int, reason: str) -> None:
        """See ``Observer``."""

    def on_retry(self, rows: int) -> None:
        """See ``Observer``."""

    def on_failed(self, rows: int) -> None:
        """See ``Observer``."""


@final
class _Known:
    """What was learned about a bucket."""

    __slots__ = ("cost", "linger")

    def __init__(self, linger: Linger) -> None:
        self.cost = CostCurve()
        self.linger = linger


@final
class Batcher:
    """The queue in front of one worker. Start it inside the event loop, and close it there."""

    def __init__(
        self,
        worker: Worker,
        rules: BatchRules | None = None,
        observer: Observer | None = None,
        *,
        linger: Callable[[float], Linger] = Returners,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """A queue.

        Args:
            worker: computes the batches; it is closed with the queue.
            rules: how requests are put together, and how many may wait.
            observer: is told what happens.
            linger: makes the rule that holds batches, of the longest time that it may.
            clock: of the tickets' deadlines [s].
        """
        self._worker = worker
        self._rules = rules or BatchRules()
        self._observer = observer or Unobserved()
        self._new_linger = linger
        self._clock = clock
        self._line: Line[Outcome] = Line(self._rules.patience)
        self._known: dict[Bucket, _Known] = {}
        # of all that was submitted and is not answered
        self._held_rows = 0
        self._held_bytes = 0
        self._taken: Sequence[Waiting[Outcome]] = ()
        self._running: asyncio.Task[None] | None = None
        self._ends = 0.0
        self._soon: asyncio.Handle | None = None
        self._timer: asyncio.Handle | None = None
        self._empty = asyncio.Event()
        self._empty.set()
        self._closed = False

    @property
    def waiting(self) -> int:
        """Rows that wait for a batch."""
        return self._line.rows

    @property
    def rules(self) -> BatchRules:
        """How requests are put together."""
        return self._rules

    def start(self) -> None:
        """Nothing has to be started; the queue serves from its first submission on."""

    async def drain(self) -> None:
        """Wait until everything that was submitted is answered."""
        await self._empty.wait()

    async def close(self) -> None:
        """Serve no more, and close the worker; whoever still waits is told to come again."""
        self._closed = True
        self._forget_plans()
        for waiting in list(self._line):
            self._line.discard(waiting)
            _refuse_closed(waiting)
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        for waiting in self._taken:
            _refuse_closed(waiting)
        await asyncio.to_thread(self._worker.close)

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Memory for inputs, from where the worker reads without another copy; see ``Worker.allocate``."""
        return self._worker.allocate(shape, dtype)

    async def submit(self, batch: Batch, ticket: Ticket = ANYBODY, *, admitted: bool = False) -> Outcome:
        """Solutions of ``batch``, which shares the worker's batches with whoever else waits.

        Args:
            batch: rows of one bucket.
            ticket: for whom, how urgently and until when.
            admitted: it goes on with work that was let in before, and is not refused now.

        Raises:
            Overloaded: the queue is full, or the deadline would pass while it waits.
            DeadlineExceeded: the deadline has passed.
            WorkerLost: its worker died twice, or the queue was closed; it may be sent again.
            WorkFailed: these rows could not be computed.
        """
        if self._closed:
            raise _closed()
        rows, nbytes = batch.rows, batch.nbytes
        if not admitted:
            self.require_room(batch.bucket, rows, nbytes, ticket)
        now, most = self._clock(), self._most(batch.bucket)
        self._hold(rows, nbytes)
        self._know(batch.bucket).linger.arrived(rows, now)
        try:
            if rows <= most:
                return await self._answer_one(Waiting(batch, ticket, _future(), now))
            parts = [Waiting(part, ticket, _future(), now) for part in _split(batch, most)]
            return _whole(await self._answer_all(parts))
        finally:
            self._hold(-rows, -nbytes)

    async def _answer_one(self, waiting: Waiting[Outcome]) -> Outcome:
        self._line.add(waiting)
        self._look()
        try:
            return await waiting.future
        finally:
            self._forget(waiting)

    async def _answer_all(self, parts: Sequence[Waiting[Outcome]]) -> list[Outcome]:
        for waiting in parts:
            self._line.add(waiting)
        self._look()
        try:
            return await asyncio.gather(*(waiting.future for waiting in parts))
        finally:
            for waiting in parts:
                waiting.future.cancel()
                self._forget(waiting)

    def _forget(self, waiting: Waiting[Outcome]) -> None:
        # whoever was answered is not in the line any more
        if self._line.discard(waiting):
            self._observer.on_evicted(waiting.rows, "left")

    def _hold(self, rows: int, nbytes: int) -> None:
        self._held_rows += rows
        self._held_bytes += nbytes
        if self._held_rows:
            self._empty.clear()
        else:
            self._empty.set()

    def _know(self, bucket: Bucket) -> _Known:
        known = self._known.get(bucket)
        if known is None:
            if len(self._known) >= _MOST_BUCKETS:
                self._known.pop(next(iter(self._known)))
            known = self._known[bucket] = _Known(self._new_linger(self._rules.linger_seconds))
        return known

    def require_room(self, bucket: Bucket, rows: int, nbytes: int, ticket: Ticket) -> None:
        """Refuse now what :meth:`submit` would refuse.

        Raises:
            Overloaded: the queue is full, or the deadline would pass while it waits.
            DeadlineExceeded: the deadline has passed.
        """
        if not self._held_rows and ticket.deadline is None:
            return
        now = self._clock()
        known = self._known.get(bucket)
        prospect = Prospect(
            rows=rows,
            nbytes=nbytes,
            held_rows=self._held_rows,
            held_bytes=self._held_bytes,
            own_bytes=self._line.held_by(ticket.client) if ticket.client else 0,
            wait=self._wait(nbytes, ticket, now),
            compute=known.cost.work(rows, self._most(bucket)) if known else 0.0,
            remaining=math.inf if ticket.deadline is None else ticket.deadline - now,
        )
        reason = refuse(prospect, self._rules)
        if reason is not None:
            self._observer.on_refused(reason)
            raise fault(reason, prospect)

    def _most(self, bucket: Bucket) -> int:
        return self._rules.most(reproducible=bucket.reproducible)

    def _wait(self, nbytes: int, ticket: Ticket, now: float) -> float:
        """Until a batch with so many new bytes begins, as far as is known [s]."""
        wait = max(self._ends - now, 0.0) if self._running is not None else 0.0
        if not self._line.rows:
            return wait
        if ticket.priority == "bulk":
            wait += self._work("interactive")
        ahead, everything = self._line.ahead(ticket.priority, ticket.client, nbytes)
        return wait + (self._work(ticket.priority) * ahead / everything if everything else 0.0)

    def _work(self, priority: Priority) -> float:
        """What everything of a priority will take [s]."""
        return sum(
            self._know(bucket).cost.work(rows, self._most(bucket))
            for bucket, rows in self._line.rows_by_bucket(priority)
        )

    # --- serving

    def _look(self) -> None:
        """See what to compute, once whoever is awake has submitted."""
        if self._running is None and self._soon is None and not self._closed:
            self._soon = asyncio.get_running_loop().call_soon(self._serve)

    def _serve(self) -> None:
        """Give the worker a batch, if it is idle and there is one that need not be held."""
        self._forget_plans()
        if self._running is not None or self._closed:
            return
        self._taken = self._next(self._clock())
        self._observer.on_queue(self._line.rows, self._held_bytes)
        if self._taken:
            self._running = asyncio.get_running_loop().create_task(self._compute(self._taken))

    def _forget_plans(self) -> None:
        for handle in (self._soon, self._timer):
            if handle is not None:
                handle.cancel()
        self._soon = self._timer = None

    def _next(self, now: float) -> list[Waiting[Outcome]]:
        """The parts of the next batch; where all that waits is held, nothing, and a timer is set."""
        while (alone := self._line.take_alone()) is not None:
            if self._in_time([alone], now):
                return [alone]
        earliest = math.inf
        for bucket in self._line.order(now):
            until = self._held_until(bucket, now)
            if until > now:
                earliest = min(earliest, until)
            elif taken := self._take(bucket, now):
                return taken
        if earliest < math.inf:
            self._timer = asyncio.get_running_loop().call_later(earliest - now, self._serve)
        return []

    def _held_until(self, bucket: Bucket, now: float) -> float:
        rows = self._line.waiting_in(bucket)
        if rows >= self._most(bucket):
            return -math.inf
        return self._know(bucket).linger.until(rows, now)

    def _take(self, bucket: Bucket, now: float) -> list[Waiting[Outcome]]:
        most = self._most(bucket)

        def passengers(rows: int) -> int:
            return self._passengers(bucket, rows, most)

        while self._line.waiting_in(bucket):
            taken = self._in_time(self._line.take(bucket, most, passengers, now), now)
            if taken:
                return taken
        return []

    def _passengers(self, bucket: Bucket, rows: int, most: int) -> int:
        """Rows to which bulk work may fill up a batch of so many interactive ones."""
        padded = self._rules.padded(rows, reproducible=bucket.reproducible) or rows
        cost = self._know(bucket).cost
        detour = _DETOUR * cost.seconds(rows)
        more = int(detour / cost.slope) if cost.slope else most if detour else 0
        return min(max(rows + more, padded), most)

    def _in_time(self, taken: list[Waiting[Outcome]], now: float) -> list[Waiting[Outcome]]:
        """Those whose callers are still there and have time left; the others are told."""
        late = [waiting for waiting in taken if (waiting.ticket.deadline or math.inf) <= now]
        for waiting in late:
            if not waiting.future.done():
                waiting.future.set_exception(DeadlineExceeded("the deadline passed in the queue"))
                self._observer.on_evicted(waiting.rows, "deadline")
        return [waiting for waiting in taken if not waiting.future.done()]

    async def _compute(self, taken: Sequence[Waiting[Outcome]]) -> None:
        bucket = taken[0].batch.bucket
        rows = [waiting.rows for waiting in taken]
        size = self._rules.padded(sum(rows), reproducible=bucket.reproducible)
        began = self._clock()
        self._ends = began + self._know(bucket).cost.seconds(size or sum(rows))
        try:
            solutions = await self._worker.run([waiting.batch for waiting in taken], pad_to=size)
            self._answer(taken, _parted(solutions, rows), solutions.seconds, began, size)
        except Exception as error:  # whatever broke, it breaks for this batch only
            self._broke(taken, error)
        finally:
            self._running = None
            self._serve()

    def _answer(
        self,
        taken: Sequence[Waiting[Outcome]],
        parts: Sequence[Solutions],
        computed: float,
        began: float,
        size: int | None,
    ) -> None:
        now = self._clock()
        rows = sum(waiting.rows for waiting in taken)
        seconds = computed or now - began
        known = self._know(taken[0].batch.bucket)
        known.cost.learn(size or rows, now - began)
        waits = [began - waiting.since for waiting in taken]
        self._observer.on_batch(rows, (size or rows) - rows, waits, seconds)
        for waiting, part, wait in zip(taken, parts, waits, strict=True):
            # a caller may have left while the batch was running
            if not waiting.future.done():
                waiting.future.set_result(Outcome(part, wait, seconds, rows))
        known.linger.answered(rows, now, known.cost.overhead)

    def _broke(self, taken: Sequence[Waiting[Outcome]], error: Exception) -> None:
        lost = isinstance(error, WorkerLost)
        for waiting in taken:
            if waiting.future.done():
                continue
            if waiting.alone or (len(taken) == 1 and not lost) or isinstance(error, errors.ServiceFault):
                self._observer.on_failed(waiting.rows)
                waiting.future.set_exception(_failure(error))
            else:
                waiting.alone = True
                self._line.add(waiting)
                self._observer.on_retry(waiting.rows)


def _future() -> asyncio.Future[Outcome]:
    return asyncio.get_running_loop().create_future()


def _closed() -> errors.WorkerLost:
    return errors.WorkerLost(
        "the version that was asked is being replaced, or the service stops; send it again"
    )


def _refuse_closed(waiting: Waiting[Outcome]) -> None:
    if not waiting.future.done():
        waiting.future.set_exception(_closed())


def _failure(error: Exception) -> errors.ServiceFault:
    """What a caller gets; each gets one of its own, since it gains a traceback when it is raised."""
    failure: errors.ServiceFault
    match error:
        case WorkerLost():
            failure = errors.WorkerLost(
                "the worker died twice over this request; send it again, or send less"
            )
        case Overloaded():
            failure = Overloaded(str(error), error.retry_after)
        case _:
            failure = WorkFailed(f"the batch could not be computed: {type(error).__name__}")
    failure.__cause__ = error
    return failure


def _split(batch: Batch, rows: int) -> list[Batch]:
    return [_slice(batch, start, start + rows) for start in range(0, batch.rows, rows)]


def _slice(batch: Batch, start: int, stop: int) -> Batch:
    return Batch(batch.bucket, {name: values[start:stop] for name, values in batch.fields.items()})


def _parted(solutions: Solutions, rows: Sequence[int]) -> list[Solutions]:
    """Each caller's rows. A worker that lost or invented rows has mixed up its callers: refuse it all."""
    counts = {len(solutions.iterations), *(len(values) for values in solutions.fields.values())}
    if counts != {sum(rows)}:
        raise RuntimeError(f"the worker answered {sorted(counts)} rows to a batch of {sum(rows)}")
    if len(rows) == 1:
        return [solutions]
    parts, start = [], 0
    for count in rows:
        fields = {name: values[start : start + count] for name, values in solutions.fields.items()}
        unsolved = {row - start: why for row, why in solutions.unsolved.items() if 0 <= row - start < count}
        parts.append(Solutions(fields, solutions.iterations[start : start + count], unsolved))
        start += count
    return parts


def _whole(outcomes: Sequence[Outcome]) -> Outcome:
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
