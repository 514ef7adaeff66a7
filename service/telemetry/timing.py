"""Where the time of an answer went."""

from __future__ import annotations

from typing import NamedTuple, Self, final

__all__ = ["Timing"]


@final
class Timing(NamedTuple):
    """Where the time went [ms]."""

    queue: float
    compute: float
    certify: float
    total: float

    @classmethod
    def of_seconds(cls, queue: float, compute: float, certify: float, total: float) -> Self:
        """The same, of times in seconds."""
        return cls(_milliseconds(queue), _milliseconds(compute), _milliseconds(certify), _milliseconds(total))


def _milliseconds(seconds: float) -> float:
    # to a microsecond; ``round`` takes five times as long
    return int(1e6 * seconds + 0.5) / 1000
