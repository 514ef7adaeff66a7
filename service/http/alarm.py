"""A timer for those who nearly always come before it rings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import final

__all__ = ["Alarm"]


@final
class Alarm:
    """Rings when its time has come; of many times that are set one after the other, most cost no timer.

    Attributes:
        at: when it rings, on the loop's clock [s]; None: never.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop = loop
        self._ring = ring
        self._timer: asyncio.TimerHandle | None = None
        self.at: float | None = None

    def set_in(self, seconds: float) -> None:
        """Ring so long from now, and not before."""
        self.set_at(self._loop.time() + seconds)

    def set_at(self, time: float) -> None:
        """Ring then, and not before."""
        self.at = time
        if self._timer is not None:
            if self._timer.when() <= time:
                # looks then what the time is
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(time, self._look)

    def end(self) -> None:
        """Never ring again, and refer to nobody."""
        self.at, self._ring = None, _nobody
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self.at is None:
            return
        if self._loop.time() < self.at:
            self.set_at(self.at)
        else:
            self.at = None
            self._ring()


def _nobody() -> None:
    """Is called by an alarm that has ended."""
