"""The deadline that a client sets for its own request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import final

from service.errors import DeadlineExceeded

__all__ = ["Deadline"]


@final
@dataclass(frozen=True)
class Deadline:
    """When the client has no more use for the answer.

    Attributes:
        timeout_ms: counted from ``received`` on [ms]; None: never.
        received: ``time.perf_counter()`` when the request arrived [s].
        way_out: what the client may do about a deadline that passed.
    """

    timeout_ms: float | None
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
            message = f"no answer within timeout_ms = {self.timeout_ms}; {self.way_out}"
            raise DeadlineExceeded(message) from error

    def _on_the_loop(self) -> float | None:
        """The deadline on the event loop's clock [s]."""
        if self.timeout_ms is None:
            return None
        spent = time.perf_counter() - self.received
        return asyncio.get_running_loop().time() + self.timeout_ms / 1000 - spent
