"""The deadline that a client sets for its own request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import final

from service.errors import DeadlineExceeded

__all__ = ["Deadline", "deadline_at"]


def deadline_at(received: float, timeout_ms: float | None) -> float | None:
    """The deadline of a ticket: so long after ``received``, on the clock of ``time.perf_counter`` [s]."""
    return None if timeout_ms is None else received + timeout_ms / 1000


@final
@dataclass(frozen=True)
class Deadline:
    """When the client has no more use for the answer.

    Attributes:
        at: on the clock of ``time.perf_counter`` [s]; None: never.
        received: when the request arrived, on the same clock [s].
        way_out: what the client may do about a deadline that passed.
    """

    at: float | None
    received: float
    way_out: str

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """A block that has to end before the deadline.

        Raises:
            DeadlineExceeded: it did not.
        """
        try:
            async with asyncio.timeout_at(self._on_the_loop()):
                yield
        except TimeoutError as error:
            given = round(1000 * ((self.at or 0.0) - self.received))
            raise DeadlineExceeded(f"no answer within {given} ms; {self.way_out}") from error

    def _on_the_loop(self) -> float | None:
        """The deadline on the event loop's clock [s]."""
        if self.at is None:
            return None
        return asyncio.get_running_loop().time() + self.at - time.perf_counter()
