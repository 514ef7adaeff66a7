"""Whether a queue takes one more submission: refused is at once what would wait in vain, or take all room."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, final

from service.errors import DeadlineExceeded, Overloaded

__all__ = ["BatchRules", "Prospect", "fault", "refuse"]

# nobody is told to stay away for longer, whatever the queue promises [s]
_LONGEST_RETRY: Final = 60


@final
@dataclass(frozen=True)
class BatchRules:
    """How requests are put together, and how many may wait.

    Attributes:
        max_batch: rows that are computed together.
        queue_bytes: inputs that wait or are computed.
        queue_rows: rows that wait or are computed.
        queue_seconds: longest expected waiting time.
        linger_seconds: for how long a batch may be held for those who have just been answered.
        sizes: batches are filled up to the next of these numbers of rows; empty: never.
        reproducible_rows: the one size of the batches of reproducible requests; a processor gains nothing by
            more than one row, and a lone request would pay for all of them.
        patience: how long bulk work lets interactive work go first [s].
    """

    max_batch: int = 32
    queue_bytes: int = 256 * 2**20
    queue_rows: int = 2**14
    queue_seconds: float = 30.0
    linger_seconds: float = 0.002
    sizes: tuple[int, ...] = ()
    reproducible_rows: int = 1
    patience: float = 1.0

    def most(self, *, reproducible: bool) -> int:
        """Rows of the largest batch."""
        return min(self.reproducible_rows, self.max_batch) if reproducible else self.max_batch

    def padded(self, rows: int, *, reproducible: bool) -> int | None:
        """Rows that a batch is filled up to; None: it is computed as it is."""
        if reproducible:
            return self.most(reproducible=True)
        return next((size for size in self.sizes if size >= rows), None)


@final
@dataclass(frozen=True)
class Prospect:
    """What a submission would meet.

    Attributes:
        rows: of the submission.
        nbytes: of its inputs.
        held_rows: rows that wait or are computed already.
        held_bytes: their inputs.
        own_bytes: what of them waits for the same client; 0 for those without a name, who share all room.
        wait: until its batch begins, as far as is known [s].
        compute: what its batch will take, as far as is known [s].
        remaining: until its deadline [s]; infinite: none.
    """

    rows: int
    nbytes: int
    held_rows: int
    held_bytes: int
    own_bytes: int
    wait: float
    compute: float
    remaining: float


def refuse(prospect: Prospect, rules: BatchRules) -> str | None:
    """Why a submission is not let in: ``deadline``, ``bytes``, ``rows``, ``share`` or ``wait``; None: it is.

    An empty queue takes anything that the limits on one request let through.
    """
    if prospect.remaining <= 0:
        return "deadline"
    if not prospect.held_rows:
        return None
    if prospect.held_bytes + prospect.nbytes > rules.queue_bytes:
        return "bytes"
    if prospect.held_rows + prospect.rows > rules.queue_rows:
        return "rows"
    # what is left is for all: nobody may hold more than that, so that a flood leaves room for others
    if prospect.own_bytes and prospect.own_bytes + prospect.nbytes > rules.queue_bytes - prospect.held_bytes:
        return "share"
    if prospect.wait > rules.queue_seconds:
        return "wait"
    return "wait" if prospect.wait + prospect.compute > prospect.remaining else None


def fault(reason: str, prospect: Prospect) -> Overloaded | DeadlineExceeded:
    """The refusal in words, with the time after which it pays to come back."""
    if reason == "deadline":
        return DeadlineExceeded("the deadline had passed before the request was queued; allow more time")
    later = min(_LONGEST_RETRY, max(1, math.ceil(prospect.wait)))
    held = f"the queue holds {prospect.held_rows} fields ({prospect.held_bytes} bytes)"
    if reason == "share":
        held = f"{prospect.own_bytes} of the {prospect.held_bytes} bytes in the queue are yours"
    if prospect.remaining < math.inf:
        text = f"{held}, about {prospect.wait:.1f} s of work, with {prospect.remaining:.1f} s to the deadline"
    else:
        text = f"{held}, about {prospect.wait:.1f} s of work"
    return Overloaded(f"{text}; try again in {later} s", retry_after=later)
