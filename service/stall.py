"""How long a client may leave unread what is sent to it."""

from __future__ import annotations

import asyncio
from typing import final

__all__ = ["Stall"]


@final
class Stall:
    """Ends a wait that takes too long, as ``asyncio.timeout`` does, with one timer for many of them.

    Use it for one wait at a time, and close it.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._ends: float | None = None
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._ended = False

    def __enter__(self) -> None:
        """Begin to wait."""
        self._ends = self._loop.time() + self._seconds
        self._task = asyncio.current_task()
        self._cancelling = self._task.cancelling() if self._task is not None else 0
        if self._timer is None:
            self._timer = self._loop.call_at(self._ends, self._look)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        """The wait is over.

        Raises:
            TimeoutError: it took too long.
        """
        self._ends = None
        if self._ended and self._task is not None:
            self._ended = False
            # whoever else has cancelled the task is not kept from it
            alone = self._task.uncancel() <= self._cancelling
            if alone and kind is asyncio.CancelledError:
                raise TimeoutError from error

    def close(self) -> None:
        """Wait no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self._ends is None:
            return
        if self._loop.time() < self._ends:
            self._timer = self._loop.call_at(self._ends, self._look)
        elif self._task is not None:
            self._ended = True
            self._task.cancel()
