"""How much one token may ask: requests a second, and requests under way at the same time.

A front has one :class:`RateLimits`; every protocol enters it once it knows who asks, and stays inside until
the answer has been sent, a stream of frames included::

    with limits.enter(principal):      # raises RateLimited, an Overloaded: 429 and Retry-After
        ...answer...

Several fronts keep one count together: the supervisor makes memory that all of them map,
``Ledger.shared(fronts)``, and passes its ``fileno()`` to front ``n``, for ``Ledger.mapped(fileno, n)``.
Each front writes its own cells only and reads those of the others, so that there is nothing to lock.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, NamedTuple, Protocol, Self, final

from pydantic import BaseModel, ConfigDict, Field

from service.access.security import Principal
from service.access.tokens import TokenRecord
from service.errors import RateLimited

__all__ = ["Entry", "Ledger", "RateLimits", "RateSettings"]

# clients that a ledger can tell apart
SLOTS: Final = 4096
# of each front and client, int64 each: requests let in ever, requests under way, the numbers of a bucket
CELLS: Final = 5
CELL_BYTES: Final = 8
# parts of a request, and of a second, in the cells of a bucket
PARTS: Final = 10**6
NANOSECONDS: Final = 10**9
# a request under way ends soon: whoever was refused may come again [s]
RETRY_AFTER: Final = 1


@final
class RateSettings(BaseModel):
    """What a token may ask that has no limits of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests_per_second: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="of one token; none: no limit"
    )
    burst: int | None = Field(
        default=None, gt=0, description="requests of one token at once; default: those of a second"
    )
    concurrent: int | None = Field(
        default=None, gt=0, description="requests of one token under way; none: no limit"
    )
    anonymous: bool = Field(
        default=False, description="the limits hold together for all who have no token, too"
    )


@final
class Bucket(NamedTuple):
    """How much a client may still send.

    Attributes:
        level: requests.
        filled: when that was [s].
        seen: requests that had been let in ever by then, by all fronts.
    """

    level: float
    filled: float
    seen: int


@final
class Ledger:
    """Counts of each client's requests, by front: first whose slot it is, then the cells of each front."""

    def __init__(self, memory: mmap.mmap, front: int, fileno: int | None = None) -> None:
        """``memory`` is shared by all fronts; this process writes the cells of ``front``."""
        self._cells = memoryview(memory).cast("q")
        self._fronts = range(SLOTS, len(self._cells), SLOTS * CELLS)
        self._front = self._fronts[front]
        self._fileno = fileno

    @classmethod
    def private(cls) -> Self:
        """Of a front that is alone."""
        return cls(mmap.mmap(-1, _bytes(1)), 0)

    @classmethod
    def shared(cls, fronts: int) -> Self:
        """Of several fronts, for the supervisor, who counts nothing."""
        fileno = os.memfd_create("mno-rates")
        os.ftruncate(fileno, _bytes(fronts))
        return cls(mmap.mmap(fileno, _bytes(fronts)), 0, fileno)

    @classmethod
    def mapped(cls, fileno: int, front: int) -> Self:
        """The one that the supervisor passed on; what an earlier ``front`` had under way has ended."""
        ledger = cls(mmap.mmap(fileno, os.fstat(fileno).st_size), front, fileno)
        for slot in range(SLOTS):
            ledger._cells[ledger._front + slot * CELLS + 1] = 0
        return ledger

    def fileno(self) -> int:
        """To be passed to the fronts."""
        if self._fileno is None:
            raise ValueError("expected a shared ledger, got a private one")
        return self._fileno

    def slot_of(self, key: int, slot: int) -> int:
        """The slot of a client's key: ``slot`` if it is free or theirs, or the next one that is.

        Two fronts may take a free slot at the same time for different clients. The later one has it, and the
        other finds out when it asks again: so ask each time.
        """
        for _ in range(SLOTS):
            if self._cells[slot] == key:
                return slot
            if not self._cells[slot]:
                self._cells[slot] = key
                return slot
            slot = (slot + 1) % SLOTS
        return slot  # more clients than slots: this one shares its limits with another

    def count(self, slot: int, let_in: int, under_way: int) -> None:
        """Add to this front's counts of a client."""
        cell = self._front + slot * CELLS
        self._cells[cell] += let_in
        self._cells[cell + 1] += under_way

    def read(self, slot: int) -> tuple[int, int]:
        """How many requests of a client were let in ever, and are under way, in all fronts."""
        cells, let_in, under_way = self._cells, 0, 0
        for front in self._fronts:
            cell = front + slot * CELLS
            let_in += cells[cell]
            under_way += cells[cell + 1]
        return let_in, under_way

    def keep(self, slot: int, bucket: Bucket) -> None:
        """Let the other fronts, and the next one in this one's place, know a client's bucket."""
        cell = self._front + slot * CELLS
        self._cells[cell + 2] = int(bucket.level * PARTS)
        self._cells[cell + 3] = int(bucket.filled * NANOSECONDS)
        self._cells[cell + 4] = bucket.seen

    def latest(self, slot: int) -> Bucket | None:
        """The bucket that some front kept last; None: nobody kept one."""
        cell = max((front + slot * CELLS for front in self._fronts), key=lambda cell: self._cells[cell + 3])
        level, filled, seen = self._cells[cell + 2 : cell + 5]
        return Bucket(level / PARTS, filled / NANOSECONDS, seen) if filled else None


def _bytes(fronts: int) -> int:
    return (1 + fronts * CELLS) * SLOTS * CELL_BYTES


def _key(client: str) -> int:
    # 0 is nobody's
    return 1 + int.from_bytes(hashlib.sha256(client.encode()).digest()[:7])


@final
@dataclass(frozen=True)
class _Bounds:
    requests_per_second: float | None
    burst: float
    concurrent: int | None


class Entry(Protocol):
    """A request inside its client's limits; leave it once, with ``with`` or ``release``."""

    def release(self) -> None:
        """The request has ended; releasing twice counts once."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@final
class _Unlimited:
    """Of a client without limits."""

    def release(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


UNLIMITED: Final = _Unlimited()


@final
class _UnderWay:
    """One of the requests that its client may have under way."""

    __slots__ = ("_ledger", "_released", "_slot")

    def __init__(self, ledger: Ledger, slot: int) -> None:
        self._ledger = ledger
        self._slot = slot
        self._released = False

    def release(self) -> None:
        if not self._released:
            self._released = True
            self._ledger.count(self._slot, 0, -1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _filled(bucket: Bucket) -> float:
    return bucket.filled


@final
class _Client:
    """A bucket that fills with time and empties with each request, whichever front lets it in."""

    def __init__(self, name: str, bounds: _Bounds, ledger: Ledger, now: float) -> None:
        self._bounds = bounds
        self._who = f"the token {name}" if name else "everybody without a token together"
        self._ledger = ledger
        self._key = _key(name)
        self._slot = ledger.slot_of(self._key, self._key % SLOTS)
        let_in, _ = ledger.read(self._slot)
        # whoever asks for the first time may send a burst; of others it is known what they have left
        self._bucket = ledger.latest(self._slot) or Bucket(bounds.burst, now, let_in)

    def enter(self, now: float) -> Entry:
        bounds = self._bounds
        self._slot = self._ledger.slot_of(self._key, self._slot)
        let_in, under_way = self._ledger.read(self._slot)
        if bounds.concurrent is not None and under_way >= bounds.concurrent:
            raise RateLimited(
                f"{self._who} has {under_way} requests under way and may have "
                f"{bounds.concurrent}; wait for an answer first",
                RETRY_AFTER,
            )
        if bounds.requests_per_second is not None:
            self._take(bounds.requests_per_second, bounds.burst, let_in, now)
        self._ledger.count(self._slot, 1, 1)
        return _UnderWay(self._ledger, self._slot)

    def go_on(self, now: float) -> None:
        bounds = self._bounds
        self._slot = self._ledger.slot_of(self._key, self._slot)
        if bounds.requests_per_second is not None:
            let_in, _ = self._ledger.read(self._slot)
            self._take(bounds.requests_per_second, bounds.burst, let_in, now)
        self._ledger.count(self._slot, 1, 0)

    def _take(self, rate: float, burst: float, let_in: int, now: float) -> None:
        # another front may know better
        before = max(self._bucket, self._ledger.latest(self._slot) or self._bucket, key=_filled)
        level = min(before.level - (let_in - before.seen) + rate * (now - before.filled), burst)
        self._bucket = Bucket(level, now, let_in)
        self._ledger.keep(self._slot, self._bucket)
        if level < 1:
            raise RateLimited(
                f"{self._who} may send {rate:g} requests a second, {burst:g} of them at once; "
                "send more slowly, or several fields in one request",
                max(1, math.ceil((1 - level) / rate)),
            )


# no record of a token is this one
_NOT_KNOWN: Final[tuple[object, None]] = (object(), None)


@final
class RateLimits:
    """The limits of all clients."""

    def __init__(
        self,
        settings: RateSettings,
        ledger: Ledger | None = None,
        clock: Callable[[], float] = time.monotonic,
        refused: Callable[[str], None] = lambda _: None,
    ) -> None:
        """A front's.

        Args:
            settings: of tokens that have no limits of their own.
            ledger: counts that this front shares with others; None: it is alone.
            clock: seconds.
            refused: called with the name of a token that is over its limits, such as ``Metrics.limit``.
        """
        self._settings = settings
        self._ledger = ledger or Ledger.private()
        self._clock = clock
        self._refused = refused
        # None: without limits; a token that was changed has another record
        self._clients: dict[str, tuple[object, _Client | None]] = {}

    def enter(self, principal: Principal) -> Entry:
        """Count a request in, until its entry is released.

        Raises:
            RateLimited: too many of this client's requests; it says when to come again.
        """
        client = self._client_of(principal)
        if client is None:
            return UNLIMITED
        try:
            return client.enter(self._clock())
        except RateLimited:
            self._refused(principal.client)
            raise

    def go_on(self, principal: Principal) -> None:
        """Count a request in that takes the place of an ended one, whose entry is kept for it.

        Raises:
            RateLimited: this client's requests are too frequent; it says when to come again.
        """
        client = self._client_of(principal)
        if client is None:
            return
        try:
            client.go_on(self._clock())
        except RateLimited:
            self._refused(principal.client)
            raise

    def _client_of(self, principal: Principal) -> _Client | None:
        record, client = self._clients.get(principal.client, _NOT_KNOWN)
        return client if record is principal.record else self._know(principal)

    def _know(self, principal: Principal) -> _Client | None:
        bounds = self._bounds(principal.record)
        client = None
        if bounds is not None:
            client = _Client(principal.client, bounds, self._ledger, self._clock())
        self._clients[principal.client] = principal.record, client
        return client

    def _bounds(self, record: TokenRecord | None) -> _Bounds | None:
        common = self._settings
        if record is None and not common.anonymous:
            return None
        own = record or common
        rate = own.requests_per_second or common.requests_per_second
        concurrent = own.concurrent or common.concurrent
        if rate is None and concurrent is None:
            return None
        # a rate of one's own means a burst of one's own
        usual = None if own.requests_per_second else common.burst
        return _Bounds(rate, own.burst or usual or math.ceil(rate or 1), concurrent)
