"""A bound on what all calls under way hold in memory; streams wait for room before they read on."""

from __future__ import annotations

import asyncio
from typing import Final, final

from service.errors import Overloaded

__all__ = ["Budget", "Share"]

# calls under way are short: whoever was refused may soon come again [s]
RETRY_AFTER: Final = 1


@final
class Budget:
    """The bytes that all calls under way may hold together, and those they do."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        # streams with a message that has come, and its size, in the order of their coming
        self._waiting: dict[asyncio.Future[None], tuple[Share, int]] = {}

    def has_room(self, count: int, mine: int) -> bool:
        """Whether a stream that holds ``mine`` may take another message."""
        # who has something under way reads on in half of the room: the rest is for those who have nothing yet
        return not self.held or self.held + count <= (self.limit // 2 if mine else self.limit)

    async def room(self, share: Share, count: int) -> None:
        """Return when there is room for a message of a stream, and it is held."""
        if self.has_room(count, share.held):
            share.add(count)
            return
        waiting = asyncio.get_running_loop().create_future()
        self._waiting[waiting] = share, count
        try:
            await waiting
        except asyncio.CancelledError:
            if self._waiting.pop(waiting, None) is None:
                share.let_go(count)
            raise

    def look(self) -> None:
        """Some bytes are free: have those go on who wait for them."""
        if not self._waiting:
            return
        for waiting, (share, count) in list(self._waiting.items()):
            if self.has_room(count, share.held):
                del self._waiting[waiting]
                share.add(count)
                if not waiting.done():
                    waiting.set_result(None)


@final
class Share:
    """What one call holds of the bytes that all of them may."""

    __slots__ = ("_budget", "held")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.held = 0

    def take(self, count: int, mine: int) -> None:
        """Hold ``count`` more, beside ``mine``.

        Raises:
            Overloaded: with those of others they are too many.
        """
        budget = self._budget
        others = budget.held - mine
        # alone, a request gets whatever the limit on a message lets through
        if others > 0 and budget.held + count > budget.limit:
            raise Overloaded(f"other calls hold {others} bytes; try again later", RETRY_AFTER)
        self.add(count)

    async def take_in_turn(self, count: int) -> None:
        """Hold a message of a stream as soon as there is room for it."""
        await self._budget.room(self, count)

    def add(self, count: int) -> None:
        """Hold ``count`` more, whoever else holds how many."""
        self.held += count
        self._budget.held += count

    def let_go(self, count: int) -> None:
        """Hold ``count`` less."""
        self.held -= count
        self._budget.held -= count
        self._budget.look()
