"""Who waits in front of a worker, and in which order they are served.

Interactive work goes before bulk work, except for bulk work that has waited longer than its patience. Within
both, clients share: each byte that a client asks for puts its next request further back (start-time fair
queueing: Goyal, Vin, Cheng 1996), so that who asks for little is served soon, whatever others ask for. Work
that is tried again goes before everything, and alone.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Generic, TypeVar, final

from service.ticket import Priority, Ticket
from service.worker import Batch, Bucket

__all__ = ["Line", "Waiting"]

Result = TypeVar("Result")

# clients that are remembered although nothing of theirs waits
_MOST_IDLE: Final = 1024


@final
@dataclass(eq=False, slots=True)
class Waiting(Generic[Result]):
    """A part of a submission that fits into one batch; its caller awaits ``future``.

    Attributes:
        since: when it came, on the clock of the batcher [s].
        alone: it was in a batch that broke, and is computed in one of its own.
    """

    batch: Batch
    ticket: Ticket
    future: asyncio.Future[Result]
    since: float
    alone: bool = False

    @property
    def rows(self) -> int:
        """Number of samples."""
        return self.batch.rows


@final
class _Client:
    """What waits of one client in a class.

    Attributes:
        finish: where its next request stands in the order of the class.
    """

    __slots__ = ("finish", "nbytes")

    def __init__(self) -> None:
        self.finish = 0.0
        self.nbytes = 0


@final
class _Lane(Generic[Result]):
    """One bucket of a class. Who leaves stays in the heap, as a gap, until there are many of them."""

    __slots__ = ("heap", "present", "rows")

    def __init__(self) -> None:
        self.heap: list[tuple[float, int, Waiting[Result]]] = []
        # in the order of arrival
        self.present: dict[Waiting[Result], None] = {}
        self.rows = 0

    def push(self, place: tuple[float, int], waiting: Waiting[Result]) -> None:
        heapq.heappush(self.heap, (*place, waiting))
        self.present[waiting] = None
        self.rows += waiting.rows

    def remove(self, waiting: Waiting[Result]) -> None:
        del self.present[waiting]
        self.rows -= waiting.rows
        if len(self.heap) > 2 * len(self.present) + 16:
            self.heap = [entry for entry in self.heap if entry[2] in self.present]
            heapq.heapify(self.heap)

    def head(self) -> tuple[float, int, Waiting[Result]]:
        """Place and part that is next; the lane is not empty."""
        while self.heap[0][2] not in self.present:
            heapq.heappop(self.heap)
        return self.heap[0]

    def oldest(self) -> Waiting[Result]:
        return next(iter(self.present))


@final
class _Class(Generic[Result]):
    """Everything of one priority."""

    def __init__(self) -> None:
        self.lanes: dict[Bucket, _Lane[Result]] = {}
        self.clients: dict[str, _Client] = {}
        self._count = itertools.count()
        # how far the service has come: nobody who comes now stands before this
        self._reached = 0.0
        self._most_clients = _MOST_IDLE

    def add(self, waiting: Waiting[Result]) -> None:
        client = self.clients.setdefault(waiting.ticket.client, _Client())
        start = max(client.finish, self._reached)
        client.finish = start + waiting.batch.nbytes
        client.nbytes += waiting.batch.nbytes
        lane = self.lanes.setdefault(waiting.batch.bucket, _Lane())
        lane.push((start, next(self._count)), waiting)

    def remove(self, waiting: Waiting[Result]) -> None:
        bucket = waiting.batch.bucket
        lane = self.lanes[bucket]
        lane.remove(waiting)
        if not lane.present:
            del self.lanes[bucket]
        self.clients[waiting.ticket.client].nbytes -= waiting.batch.nbytes
        if not self.lanes:
            self.clients.clear()
        elif len(self.clients) > self._most_clients:
            self.clients = {name: client for name, client in self.clients.items() if client.nbytes}
            self._most_clients = 2 * len(self.clients) + _MOST_IDLE

    def serve(self, waiting: Waiting[Result]) -> None:
        """Remove the one that is next in its lane, or the oldest."""
        self._reached = max(self._reached, self.lanes[waiting.batch.bucket].head()[0])
        self.remove(waiting)

    def ahead(self, client: str, nbytes: int) -> int:
        """Bytes that are served before those that a client would add now."""
        own = self.clients.get(client)
        mine = nbytes + (own.nbytes if own else 0)
        return sum(min(each.nbytes, mine) for name, each in self.clients.items() if name != client) + (
            mine - nbytes
        )


@final
class Line(Generic[Result]):
    """Everything that waits in front of one worker."""

    def __init__(self, patience: float) -> None:
        """``patience``: how long bulk work lets interactive work go first [s]."""
        self._patience = patience
        self._classes: dict[Priority, _Class[Result]] = {"interactive": _Class(), "bulk": _Class()}
        self._alone: dict[Waiting[Result], None] = {}
        self.rows = 0

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[Waiting[Result]]:
        yield from self._alone
        for each in self._classes.values():
            for lane in each.lanes.values():
                yield from lane.present

    def add(self, waiting: Waiting[Result]) -> None:
        """Put it where it belongs."""
        self.rows += waiting.rows
        if waiting.alone:
            self._alone[waiting] = None
        else:
            self._classes[waiting.ticket.priority].add(waiting)

    def discard(self, waiting: Waiting[Result]) -> bool:
        """Remove it, if it is there; tells whether it was."""
        found = self._classes[waiting.ticket.priority]
        lane = found.lanes.get(waiting.batch.bucket)
        if waiting in self._alone:
            del self._alone[waiting]
        elif lane is not None and waiting in lane.present:
            found.remove(waiting)
        else:
            return False
        self.rows -= waiting.rows
        return True

    def waiting_in(self, bucket: Bucket) -> int:
        """Rows of a bucket."""
        return sum(each.lanes[bucket].rows for each in self._classes.values() if bucket in each.lanes)

    def rows_by_bucket(self, priority: Priority) -> Iterator[tuple[Bucket, int]]:
        """Rows of a priority."""
        return ((bucket, lane.rows) for bucket, lane in self._classes[priority].lanes.items())

    def ahead(self, priority: Priority, client: str, nbytes: int) -> tuple[int, int]:
        """Bytes of a priority that a client's new submission has to wait for, and all that there are."""
        found = self._classes[priority]
        return found.ahead(client, nbytes), sum(each.nbytes for each in found.clients.values())

    def held_by(self, client: str) -> int:
        """Bytes that wait for a client."""
        found = (each.clients.get(client) for each in self._classes.values())
        return sum(each.nbytes for each in found if each is not None)

    def order(self, now: float) -> list[Bucket]:
        """Buckets in the order in which they should be served."""
        bulk, interactive = self._classes["bulk"].lanes, self._classes["interactive"].lanes
        overdue = [bucket for bucket, lane in bulk.items() if self._overdue(lane, now)]
        overdue.sort(key=lambda bucket: bulk[bucket].oldest().since)
        # most of the time there is one
        for lanes in (interactive, bulk):
            overdue += sorted(lanes, key=lambda bucket: lanes[bucket].head()[:2]) if len(lanes) > 1 else lanes
        return list(dict.fromkeys(overdue)) if len(overdue) > 1 else overdue

    def _overdue(self, lane: _Lane[Result], now: float) -> bool:
        return lane.oldest().since + self._patience <= now

    def take_alone(self) -> Waiting[Result] | None:
        """One that is computed by itself, if there is any."""
        if not self._alone:
            return None
        waiting = next(iter(self._alone))
        self.discard(waiting)
        return waiting

    def take(
        self, bucket: Bucket, most: int, passengers: Callable[[int], int], now: float
    ) -> list[Waiting[Result]]:
        """Remove those of a bucket that are next, as many as fit into a batch.

        Args:
            bucket: of :meth:`order`.
            most: rows of a batch.
            passengers: the rows to which bulk work may fill up a batch of so many interactive ones.
            now: on the clock of the batcher [s].
        """
        taken = self._take_overdue(bucket, now)
        self._fill(taken, self._classes["interactive"], bucket, most)
        urgent = any(waiting.ticket.priority == "interactive" for waiting in taken)
        limit = passengers(_rows(taken)) if urgent else most
        self._fill(taken, self._classes["bulk"], bucket, limit)
        self.rows -= _rows(taken)
        return taken

    def _take_overdue(self, bucket: Bucket, now: float) -> list[Waiting[Result]]:
        bulk = self._classes["bulk"]
        lane = bulk.lanes.get(bucket)
        if lane is None or not self._overdue(lane, now):
            return []
        oldest = lane.oldest()
        bulk.serve(oldest)
        return [oldest]

    def _fill(self, taken: list[Waiting[Result]], found: _Class[Result], bucket: Bucket, most: int) -> None:
        rows = _rows(taken)
        while bucket in found.lanes:
            waiting = found.lanes[bucket].head()[2]
            rows += waiting.rows
            if rows > most:
                return
            found.serve(waiting)
            taken.append(waiting)


def _rows(taken: list[Waiting[Result]]) -> int:
    return sum(waiting.rows for waiting in taken)
