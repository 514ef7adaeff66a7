"""When a batch that could start waits a moment for company, and when it does not.

Clients that ask again as soon as they are answered fall into cohorts: while one is computed the other waits,
and each batch is half as large as it could be. Holding a batch until those who have just been answered are
back joins the cohorts for good. Where nobody comes back so soon, a batch that is held gains nothing: a rule
that waits for as many as there were lately (a high-water mark) loses its time there, see
``benchmarks/batching.py``. So what is learned is the share of the answered who come back.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Final, final

__all__ = ["Greedy", "Linger", "Returners"]

# from this share on those who were answered are expected back; of independent arrivals it is at most 0.5,
# since nobody waits longer than half of what a batch costs beside its rows
_COME_BACK: Final = 0.85
# share of the newest batch in what is known of those who come back
_NEWEST: Final = 1 / 4


class Linger(ABC):
    """Decides for the batches of one bucket how long one that could start is held."""

    @abstractmethod
    def arrived(self, rows: int, now: float) -> None:
        """So many rows were submitted."""

    @abstractmethod
    def answered(self, rows: int, now: float, overhead: float) -> None:
        """A batch of so many rows was answered; ``overhead`` is what a batch costs beside its rows [s]."""

    @abstractmethod
    def left(self, now: float) -> None:
        """The last answers are on their way to their clients."""

    @abstractmethod
    def until(self, rows: int, now: float) -> float:
        """Until when to hold a batch of so many rows that could start now; ``now`` or before: not at all.

        Infinity: until :meth:`left` is called.
        """


@final
class Greedy(Linger):
    """Holds nothing."""

    def arrived(self, rows: int, now: float) -> None:
        """See ``Linger``."""

    def answered(self, rows: int, now: float, overhead: float) -> None:
        """See ``Linger``."""

    def left(self, now: float) -> None:
        """See ``Linger``."""

    def until(self, rows: int, now: float) -> float:  # noqa: ARG002
        """See ``Linger``."""
        return -math.inf


@final
class Returners(Linger):
    """Holds a batch while those are expected back who have just been answered.

    They are given ``longest`` from when their answers left, or half of what joining two batches saves, if
    that is less: to write many answers takes a while, during which none of their clients can come back. A
    lone client is back itself, and never held.
    """

    def __init__(self, longest: float) -> None:
        """``longest``: for how long a batch is held at most [s]."""
        self._longest = longest
        self._share = 0.0
        self._answered = 0
        self._returned = 0
        self._window = 0.0
        self._closes = -math.inf

    def arrived(self, rows: int, now: float) -> None:
        """See ``Linger``."""
        if now <= self._closes:
            self._returned = min(self._returned + rows, self._answered)

    def answered(self, rows: int, now: float, overhead: float) -> None:  # noqa: ARG002
        """See ``Linger``."""
        if self._answered:
            self._share += _NEWEST * (self._returned / self._answered - self._share)
        self._answered, self._returned = rows, 0
        self._window, self._closes = min(self._longest, overhead / 2), math.inf

    def left(self, now: float) -> None:
        """See ``Linger``."""
        if self._closes == math.inf:
            self._closes = now + self._window

    def until(self, rows: int, now: float) -> float:  # noqa: ARG002
        """See ``Linger``."""
        missing = self._share * self._answered - self._returned
        expected = self._share >= _COME_BACK and missing >= 0.5
        return self._closes if expected else -math.inf
