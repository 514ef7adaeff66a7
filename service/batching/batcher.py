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
from typing import Any, Final, NamedTuple, Protocol, final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from service import errors
from service.batching.admission import BatchRules, Prospect, fault, refuse
from service.batching.line import Kind, Line, Waiting
from service.batching.linger import Linger, Returners
from service.errors import DeadlineExceeded, Overloaded, WorkFailed
from service.ticket import ANYBODY, Ticket
from service.workers.worker import Batch, Bucket, Solutions, Worker, WorkerLost

__all__ = ["BatchRules", "Batcher", "Observer", "Outcome", "Unobserved"]

# bulk work rides along with an interactive batch as long as it makes it longer by no more than this part
_DETOUR: Final = 0.25
# of the time that a late batch has taken, what it is expected to take still
_LATE: Final = 0.25
# what is put together off the event loop [B]
_LARGE: Final = 2**20
# turns of an event loop that a timer is due before what came in is submitted: poll, read, start of a task
_TURNS: Final = 3
# buckets whose costs are remembered
_MOST_BUCKETS: Final = 256
# when to come back while a worker that does not start is tried again and again [s]
ABSENT_RETRY: Final = 5


@final
class Outcome(NamedTuple):
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
    """What a queue tells about itself; ``service.telemetry.metrics`` counts it."""

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
@dataclass(frozen=True)
class _Run:
    """A batch that is computed.

    Attributes:
        size: rows that it is filled up to; None: it is computed as it is.
        began: on the clock of the batcher [s].
    """

    taken: Sequence[Waiting[Outcome]]
    kind: Kind
    rows: int
    size: int | None
    began: float

    @property
    def computed_rows(self) -> int:
        """Rows that the worker computes."""
        return self.size or self.rows


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
        self._kinds: dict[Bucket, Kind] = {}
        # of all that was submitted and is not answered
        self._held_rows = 0
        self._held_bytes = 0
        self._run: _Run | None = None
        self._task: asyncio.Task[None] | None = None
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

    @property
    def available(self) -> bool:
        """Whether there is somebody to compute."""
        return not self._closed and self._worker.available

    def learn(self, bucket: Bucket, rows: int, seconds: float) -> None:
        """A batch was computed elsewhere, and took so long: who would wait in vain is refused from now on."""
        self._kind(bucket).cost.learn(rows, seconds)

    def expected(self, bucket: Bucket, rows: int) -> float:
        """What a batch of so many rows will take, as others of its bucket have told; 0: none has yet [s]."""
        return self._kinds[bucket].cost.seconds(rows) if bucket in self._kinds else 0.0

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
        self._observer.on_queue(0, 0)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            # its cancellation refers to the batch, and that to those who asked: a version is held by them
            self._task = None
        if self._run is not None:
            for waiting in self._run.taken:
                _refuse_closed(waiting)
            self._run = None
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
        kind, now, loop = self._kind(batch.bucket), self._clock(), asyncio.get_running_loop()
        self._hold(rows, nbytes)
        kind.linger.arrived(rows, now)
        try:
            if rows <= kind.most:
                return await self._answer_one(
                    Waiting(batch, kind, ticket, loop.create_future(), now, rows, nbytes)
                )
            parts = [
                Waiting(part, kind, ticket, loop.create_future(), now, part.rows, part.nbytes)
                for part in _split(batch, kind.most)
            ]
            outcomes = await self._answer_all(parts)
            return await asyncio.to_thread(_whole, outcomes) if nbytes > _LARGE else _whole(outcomes)
        finally:
            self._hold(-rows, -nbytes)

    def require_room(self, bucket: Bucket, rows: int, nbytes: int, ticket: Ticket) -> None:
        """Refuse now what :meth:`submit` would refuse.

        Raises:
            Overloaded: the queue is full, or the deadline would pass while it waits.
            DeadlineExceeded: the deadline has passed.
        """
        if ticket.deadline is None and self._has_plenty_of_room(rows, nbytes):
            return
        now, kind = self._clock(), self._kind(bucket)
        prospect = Prospect(
            rows=rows,
            nbytes=nbytes,
            held_rows=self._held_rows,
            held_bytes=self._held_bytes,
            own_bytes=self._line.held_by(ticket.client) if ticket.client else 0,
            wait=self._rest(now) + self._line.work_ahead(ticket, nbytes),
            compute=kind.cost.work(rows, kind.most),
            remaining=math.inf if ticket.deadline is None else ticket.deadline - now,
        )
        reason = refuse(prospect, self._rules)
        if reason is not None:
            self._observer.on_refused(reason)
            raise fault(reason, prospect)

    def _has_plenty_of_room(self, rows: int, nbytes: int) -> bool:
        """Whether nobody can be refused, whoever it is: a short way to what :func:`refuse` says."""
        if not self._held_rows:
            return True
        rules = self._rules
        if self._held_rows + rows > rules.queue_rows or 2 * self._held_bytes + nbytes > rules.queue_bytes:
            return False
        longest = self._rest(self._clock()) + self._line.work("interactive") + self._line.work("bulk")
        return longest <= rules.queue_seconds

    def _rest(self, now: float) -> float:
        """What the batch that is computed will still take, as far as is known [s]."""
        if self._run is None:
            return 0.0
        # one that takes longer than it should is expected to go on like that
        return max(self._ends - now, _LATE * (now - self._run.began))

    async def _answer_one(self, waiting: Waiting[Outcome]) -> Outcome:
        self._line.add(waiting)
        self._look()
        try:
            return await waiting.future
        except asyncio.CancelledError:
            self._forget(waiting)
            raise

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
            self._observer.on_queue(self._line.rows, self._line.nbytes)
            self._observer.on_evicted(waiting.rows, "left")

    def _hold(self, rows: int, nbytes: int) -> None:
        self._held_rows += rows
        self._held_bytes += nbytes
        if not self._held_rows:
            self._empty.set()
        elif rows > 0:
            self._empty.clear()

    def _kind(self, bucket: Bucket) -> Kind:
        kind = self._kinds.pop(bucket, None)
        if kind is None:
            if len(self._kinds) >= _MOST_BUCKETS:
                # clients choose some of what tells buckets apart: what is asked for often stays
                self._kinds.pop(next(iter(self._kinds)))
            most = self._rules.most(reproducible=bucket.reproducible)
            kind = Kind(bucket, most, self._new_linger(self._rules.linger_seconds))
        # the least recently used one is the first
        self._kinds[bucket] = kind
        return kind

    # --- serving

    def _look(self) -> None:
        """See what to compute, once whoever is awake has submitted."""
        self._observer.on_queue(self._line.rows, self._line.nbytes)
        if self._run is None and self._soon is None and not self._closed:
            self._soon = asyncio.get_running_loop().call_soon(self._serve)

    def _serve(self) -> None:
        """Give the worker a batch, if it is idle and there is one that need not be held."""
        self._forget_plans()
        if self._run is not None or self._closed:
            return
        now = self._clock()
        taken = self._next(now)
        self._observer.on_queue(self._line.rows, self._line.nbytes)
        if taken:
            kind, rows = taken[0].kind, sum([waiting.rows for waiting in taken])
            size = self._rules.padded(rows, reproducible=kind.bucket.reproducible)
            self._run = run = _Run(taken, kind, rows, size, now)
            self._ends = now + kind.cost.seconds(run.computed_rows)
            self._task = asyncio.get_running_loop().create_task(self._compute(run))

    def _forget_plans(self) -> None:
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _next(self, now: float) -> list[Waiting[Outcome]]:
        """The parts of the next batch; where all that waits is held, nothing, and a timer is set."""
        while (alone := self._line.take_alone()) is not None:
            if self._in_time([alone], now):
                return [alone]
        earliest = math.inf
        for kind in self._line.order(now):
            rows = self._line.rows_of(kind)
            until = kind.linger.until(rows, now) if rows < kind.most else now
            if until > now:
                earliest = min(earliest, until)
            elif taken := self._take(kind, now):
                return taken
        if earliest < math.inf:
            self._timer = asyncio.get_running_loop().call_later(earliest - now, self._when_read)
        return []

    def _when_read(self, turns: int = _TURNS) -> None:
        """Serve when the loop has read what clients sent in the meantime."""
        if turns:
            self._timer = asyncio.get_running_loop().call_soon(self._when_read, turns - 1)
        else:
            self._serve()

    def _take(self, kind: Kind, now: float) -> list[Waiting[Outcome]]:
        def passengers(rows: int) -> int:
            return self._passengers(kind, rows)

        while taken := self._line.take(kind, passengers, now):
            if in_time := self._in_time(taken, now):
                return in_time
        return []

    def _passengers(self, kind: Kind, rows: int) -> int:
        """Rows to which bulk work may fill up a batch of so many interactive ones."""
        padded = self._rules.padded(rows, reproducible=kind.bucket.reproducible) or rows
        detour, slope = _DETOUR * kind.cost.seconds(rows), kind.cost.slope
        # while nothing is known, nobody rides along
        cheap = rows + int(detour / slope) if slope else kind.most if detour else rows
        return min(max(cheap, padded), kind.most)

    def _in_time(self, taken: list[Waiting[Outcome]], now: float) -> list[Waiting[Outcome]]:
        """Those whose callers are still there and have time left; the others are told."""
        for waiting in taken:
            deadline = waiting.ticket.deadline
            if deadline is not None and deadline <= now and not waiting.future.done():
                waiting.future.set_exception(DeadlineExceeded("the deadline passed in the queue"))
                self._observer.on_evicted(waiting.rows, "deadline")
        return [waiting for waiting in taken if not waiting.future.done()]

    async def _compute(self, run: _Run) -> None:
        try:
            batches = [waiting.batch for waiting in run.taken]
            solutions = await self._worker.run(batches, pad_to=run.size)
            self._answer(run, _parted(solutions, run), solutions.seconds)
        except Exception as error:  # whatever broke, it breaks for this batch only
            self._broke(run, error)
        # when the batcher is closed, this is cancelled, and never gets here
        self._run = None
        self._serve()

    def _answer(self, run: _Run, parts: Sequence[Solutions], computed: float) -> None:
        now, kind = self._clock(), run.kind
        seconds = computed or now - run.began
        kind.cost.learn(run.computed_rows, now - run.began)
        waits = [run.began - waiting.since for waiting in run.taken]
        self._observer.on_batch(run.rows, run.computed_rows - run.rows, waits, seconds)
        for waiting, part, wait in zip(run.taken, parts, waits, strict=True):
            # a caller may have left while the batch was running
            if not waiting.future.done():
                waiting.future.set_result(Outcome(part, wait, seconds, run.rows))
        kind.linger.answered(run.rows, now, kind.cost.overhead)
        # after those who were just given their answers, who write them as soon as they run
        asyncio.get_running_loop().call_soon(self._when_written, kind)

    def _when_written(self, kind: Kind, turns: int = 1) -> None:
        """Give those whose answers are written the time to come back."""
        if turns:
            asyncio.get_running_loop().call_soon(self._when_written, kind, turns - 1)
        else:
            kind.linger.left(self._clock())
            self._look()

    def _broke(self, run: _Run, error: Exception) -> None:
        died = isinstance(error, WorkerLost)
        for waiting in run.taken:
            if waiting.future.done():
                continue
            # a death may be anybody's fault, or nobody's; what breaks alone has broken by itself
            again = not waiting.survived if died else not waiting.alone and len(run.taken) > 1
            if again:
                waiting.alone, waiting.survived = True, waiting.survived or died
                self._line.add(waiting)
                self._observer.on_retry(waiting.rows)
            else:
                self._observer.on_failed(waiting.rows)
                waiting.future.set_exception(_failure(error))


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
        case WorkerLost(absent=True):
            failure = errors.WorkerLost(f"{error}; another is being started, send it again", ABSENT_RETRY)
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


def _parted(solutions: Solutions, run: _Run) -> list[Solutions]:
    """Each caller's rows. A worker that lost or invented rows has mixed up its callers: refuse it all."""
    counts = {len(solutions.iterations), *map(len, solutions.fields.values())}
    if counts != {run.rows}:
        raise RuntimeError(f"the worker answered {sorted(counts)} rows to a batch of {run.rows}")
    if len(run.taken) == 1:
        return [solutions]
    parts, start = [], 0
    for waiting in run.taken:
        stop = start + waiting.rows
        fields = {name: values[start:stop] for name, values in solutions.fields.items()}
        unsolved = {row - start: why for row, why in solutions.unsolved.items() if start <= row < stop}
        novelty = solutions.novelty[start:stop]
        parts.append(Solutions(fields, solutions.iterations[start:stop], unsolved, novelty=novelty))
        start = stop
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
    # one version computed all parts: it knows of all or of none
    novelty = tuple(score for part in parts for score in part.novelty)
    return Solutions(fields, iterations, unsolved, novelty=novelty)
