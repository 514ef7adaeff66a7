"""Judged frames that wait to be taken: their numbers stay where they were computed, but not for long.

Whoever is quick takes a frame with one copy of its numbers, from where the worker wrote them to where they
are sent from. Whoever is slow would keep memory that others wait for: what they leave gets some of its own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar, final

from service.frame_judge import Block, Frame
from service.passage import off_loop, size_of

__all__ = ["Form", "Shelf"]

Item = TypeVar("Item")

# how long frames stay where they were computed [s]
STAY_SECONDS: Final = 0.05


@final
@dataclass(frozen=True)
class Form(Generic[Item]):
    """What is made of a frame.

    Attributes:
        draft: makes it; it may refer to the frame's fields where they are.
        own: puts it into memory of its own.
    """

    draft: Callable[[Frame], Item]
    own: Callable[[Item], Item]


@final
class Shelf(Generic[Item]):
    """What is made of the frames of a block.

    Attributes:
        state: after the block.
        fault: what ends the rollout after these frames; None: nothing does.
        last: no block follows.
    """

    def __init__(self, block: Block, form: Form[Item], *, ends: bool) -> None:
        """``ends``: the rollout does, with this block."""
        self.state = block.state
        self.fault = block.fault
        self.last = ends or block.fault is not None
        self._form = form
        self._items = deque(map(form.draft, block.frames))
        self._half = len(self._items) // 2
        self._frame_bytes = size_of(block.frames[0].fields) if block.frames else 0
        self._owned = 0
        self._timer: asyncio.Handle | None = None

    def wait(self, seconds: float = STAY_SECONDS) -> None:
        """Begin to wait, in the event loop; the frames stay so long where they are."""
        self._timer = asyncio.get_running_loop().call_later(seconds, self._move)

    def close(self) -> None:
        """Forget those that nobody takes."""
        self._items.clear()
        if self._timer is not None:
            self._timer.cancel()

    @property
    def empty(self) -> bool:
        """Whether all were taken."""
        return not self._items

    @property
    def half_empty(self) -> bool:
        """Whether half of them were taken."""
        return len(self._items) <= self._half

    async def take(self) -> Item:
        """The next one, in memory of its own."""
        item = self._items.popleft()
        if len(self._items) < self._owned:
            # it was copied while it waited
            self._owned -= 1
            return item
        return await off_loop(self._frame_bytes, self._form.own, item)

    def _move(self) -> None:
        """Copy one, the last first, and soon the next."""
        if self._owned < len(self._items):
            self._owned += 1
            self._items[-self._owned] = self._form.own(self._items[-self._owned])
            self._timer = asyncio.get_running_loop().call_soon(self._move)
