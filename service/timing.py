"""Where the time of an answer went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

__all__ = ["Timing"]


@dataclass(frozen=True)
class Timing:
    """Where the time went [ms]."""

    queue: float
    compute: float
    certify: float
    total: float

    @classmethod
    def of_seconds(cls, queue: float, compute: float, certify: float, total: float) -> Self:
        """The same, of times in seconds."""
        return cls(
            round(1000 * queue, 3), round(1000 * compute, 3), round(1000 * certify, 3), round(1000 * total, 3)
        )
