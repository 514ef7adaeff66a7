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

from service.batching.cost import CostCurve
from service.batching.linger import Linger
from service.ticket import Priority, Ticket
from service.workers.worker import Batch, Bucket

__all__ = ["Kind", "Line", "Waiting"]

Result = TypeVar("Result")

# clients that are remembered although nothing of theirs waits
_MOST_IDLE: Final = 1024


@final
class Kind:
    """A bucket, with what was learned about its batches; compared by identity, a bucket is many numbers.

    Attributes:
        most: rows of its largest batch.
    """

    __slots__ = ("bucket", "cost", "linger", "most")

    def __init__(self, bucket: Bucket, most: int, linger: Linger) -> None:
        self.bucket = bucket
        self.most = most
        self.cost = CostCurve()
        self.linger = linger


@final
@dataclass(eq=False, slots=True)
class Waiting(Generic[Result]):
    """A part of a submission that fits into one batch; its caller awaits ``future``.

    Attributes:
        since: when it came, on the clock of the batcher [s].
        rows: number of samples.
        nbytes: size of its inputs [B].
        alone: it was in a batch that broke, and is computed in one of its own.
        survived: it was in one whose worker died.
    """

    batch: Batch
    kind: Kind
    ticket: Ticket
    future: asyncio.Future[Result]
    since: float
    rows: int
    nbytes: int
    alone: bool = False
    survived: bool = False


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
    """One kind of a class. Who leaves stays in the heap, as a gap, until there are many of them."""

    __slots__ = ("heap", "present", "rows")

    def __init__(self) -> None:
        self.heap: list[tuple[float, int, Waiting[Result]]] = []
        # in the order of arrival
        self.present: dict[Waiting[Result], None] = {}
        self.rows = 0

    def push(self, place: float, number: int, waiting: Waiting[Result]) -> None:
        heapq.heappush(self.heap, (place, number, waiting))
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
        self.lanes: dict[Kind, _Lane[Result]] = {}
        self.clients: dict[str, _Client] = {}
        self._count = itertools.count()
        # how far the service has come: nobody who comes now stands before this
        self._reached = 0.0
        self._most_clients = _MOST_IDLE

    def add(self, waiting: Waiting[Result]) -> None:
        client = self.clients.get(waiting.ticket.client)
        if client is None:
            client = self.clients[waiting.ticket.client] = _Client()
        start = max(client.finish, self._reached)
        client.finish = start + waiting.nbytes
        client.nbytes += waiting.nbytes
        lane = self.lanes.get(waiting.kind)
        if lane is None:
            lane = self.lanes[waiting.kind] = _Lane()
        lane.push(start, next(self._count), waiting)

    def remove(self, waiting: Waiting[Result]) -> None:
        lane = self.lanes[waiting.kind]
        lane.remove(waiting)
        if not lane.present:
            del self.lanes[waiting.kind]
        self.clients[waiting.ticket.client].nbytes -= waiting.nbytes
        if not self.lanes:
            self.clients.clear()
        elif len(self.clients) > self._most_clients:
            self.clients = {name: client for name, client in self.clients.items() if client.nbytes}
            self._most_clients = 2 * len(self.clients) + _MOST_IDLE

    def serve(self, waiting: Waiting[Result], place: float) -> None:
        """Remove the one that is next in its lane, or the oldest; ``place`` is that of the next."""
        self._reached = max(self._reached, place)
        self.remove(waiting)

    def serve_next(self, kind: Kind, room: int) -> Waiting[Result] | None:
        """Remove the next one of a kind, if there is one and it has no more rows than ``room``."""
        lane = self.lanes.get(kind)
        if lane is None:
            return None
        place, _, waiting = lane.head()
        if waiting.rows > room:
            return None
        self.serve(waiting, place)
        return waiting

    def ahead(self, client: str, nbytes: int) -> int:
        """Bytes that are served before those that a client would add now."""
        own = self.clients.get(client)
        mine = own.nbytes if own else 0
        others = (each.nbytes for name, each in self.clients.items() if name != client)
        return mine + sum(min(each, mine + nbytes) for each in others)


@final
class Line(Generic[Result]):
    """Everything that waits in front of one worker."""

    def __init__(self, patience: float) -> None:
        """``patience``: how long bulk work lets interactive work go first [s]."""
        self._patience = patience
        self._interactive: _Class[Result] = _Class()
        self._bulk: _Class[Result] = _Class()
        self._alone: dict[Waiting[Result], None] = {}
        self.rows = 0
        self.nbytes = 0

    def __iter__(self) -> Iterator[Waiting[Result]]:
        yield from self._alone
        for found in (self._interactive, self._bulk):
            for lane in found.lanes.values():
                yield from lane.present

    def add(self, waiting: Waiting[Result]) -> None:
        """Put it where it belongs."""
        self.rows += waiting.rows
        self.nbytes += waiting.nbytes
        if waiting.alone:
            self._alone[waiting] = None
        else:
            self._of(waiting.ticket.priority).add(waiting)

    def discard(self, waiting: Waiting[Result]) -> bool:
        """Remove it, if it is there; tells whether it was."""
        found = self._of(waiting.ticket.priority)
        lane = found.lanes.get(waiting.kind)
        if lane is not None and waiting in lane.present:
            found.remove(waiting)
        elif waiting in self._alone:
            del self._alone[waiting]
        else:
            return False
        self.rows -= waiting.rows
        self.nbytes -= waiting.nbytes
        return True

    def rows_of(self, kind: Kind) -> int:
        """Rows of a kind."""
        lanes = (found.lanes.get(kind) for found in (self._interactive, self._bulk))
        return sum(lane.rows for lane in lanes if lane is not None)

    def work(self, priority: Priority) -> float:
        """What everything of a priority will take, as far as is known [s]."""
        lanes = self._of(priority).lanes
        return sum(kind.cost.work(lane.rows, kind.most) for kind, lane in lanes.items())

    def work_ahead(self, ticket: Ticket, nbytes: int) -> float:
        """What will be served before so many new bytes of a client [s]."""
        found = self._of(ticket.priority)
        everything = sum(each.nbytes for each in found.clients.values())
        share = found.ahead(ticket.client, nbytes) / everything if everything else 0.0
        before = self.work("interactive") if ticket.priority == "bulk" else 0.0
        return before + share * self.work(ticket.priority)

    def held_by(self, client: str) -> int:
        """Bytes that wait for a client."""
        found = (each.clients.get(client) for each in (self._interactive, self._bulk))
        return sum(each.nbytes for each in found if each is not None)

    def order(self, now: float) -> list[Kind]:
        """Kinds in the order in which they should be served."""
        bulk, interactive = self._bulk.lanes, self._interactive.lanes
        # most of the time there is one
        if len(interactive) + len(bulk) <= 1:
            return [*interactive, *bulk]
        overdue = [kind for kind, lane in bulk.items() if self._is_overdue(lane, now)]
        overdue.sort(key=lambda kind: bulk[kind].oldest().since)
        for lanes in (interactive, bulk):
            overdue += sorted(lanes, key=lambda kind: lanes[kind].head()[:2])
        return list(dict.fromkeys(overdue))

    def take_alone(self) -> Waiting[Result] | None:
        """One that is computed by itself, if there is any."""
        if not self._alone:
            return None
        waiting = next(iter(self._alone))
        self.discard(waiting)
        return waiting

    def take(self, kind: Kind, passengers: Callable[[int], int], now: float) -> list[Waiting[Result]]:
        """Remove those of a kind that are next, as many as fit into a batch.

        Args:
            kind: of :meth:`order`.
            passengers: the rows to which bulk work may fill up a batch of so many interactive ones.
            now: on the clock of the batcher [s].
        """
        taken = self._take_overdue(kind, now)
        rows = self._fill(taken, self._interactive, kind, kind.most)
        if kind in self._bulk.lanes:
            urgent = any(waiting.ticket.priority == "interactive" for waiting in taken)
            rows = self._fill(taken, self._bulk, kind, passengers(rows) if urgent else kind.most)
        self.rows -= rows
        self.nbytes -= sum([waiting.nbytes for waiting in taken])
        return taken

    def _of(self, priority: Priority) -> _Class[Result]:
        return self._interactive if priority == "interactive" else self._bulk

    def _is_overdue(self, lane: _Lane[Result], now: float) -> bool:
        return lane.oldest().since + self._patience <= now

    def _take_overdue(self, kind: Kind, now: float) -> list[Waiting[Result]]:
        lane = self._bulk.lanes.get(kind)
        if lane is None or not self._is_overdue(lane, now):
            return []
        oldest = lane.oldest()
        self._bulk.serve(oldest, lane.head()[0])
        return [oldest]

    def _fill(self, taken: list[Waiting[Result]], found: _Class[Result], kind: Kind, most: int) -> int:
        """Add what is next to ``taken``; returns the rows that it has then."""
        rows = sum([waiting.rows for waiting in taken])
        while (waiting := found.serve_next(kind, most - rows)) is not None:
            taken.append(waiting)
            rows += waiting.rows
        return rows
