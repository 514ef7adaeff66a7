"""A bound on what all requests under way hold in memory, from the body's first byte to the answer's last."""

from __future__ import annotations

from typing import Final, final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Overloaded

__all__ = ["Admission", "Budget", "Share"]

# requests under way are short: whoever was refused may soon come again [s]
RETRY_AFTER: Final = 1


@final
class Budget:
    """The bytes that all requests under way may hold together, and those they do."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0

    def take(self, count: int, own: int) -> None:
        """Hold ``count`` more bytes for a request that holds ``own``.

        Raises:
            Overloaded: with those of the other requests they are too many.
        """
        others = self.held - own
        # alone, a request gets whatever the limits on one request let through
        if others and self.held + count > self.limit:
            raise Overloaded(f"other requests hold {others} bytes; try again later", RETRY_AFTER)
        self.held += count

    def give_back(self, count: int) -> None:
        """Hold so many bytes less."""
        self.held -= count


@final
class Share:
    """What one request holds of the bytes that all of them may."""

    __slots__ = ("_budget", "_held")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._held = 0

    def take(self, count: int) -> None:
        """Hold ``count`` more bytes until the request ends.

        Raises:
            Overloaded: with those of the other requests they are too many.
        """
        self._budget.take(count, self._held)
        self._held += count

    def release(self) -> None:
        """Give everything back."""
        self._budget.give_back(self._held)
        self._held = 0


@final
class Admission:
    """Middleware: gives each request a :class:`Share`, and takes it back when the answer has been written."""

    def __init__(self, app: ASGIApp, budget: Budget) -> None:
        """``budget``: what the requests of all applications share."""
        self._app = app
        self._budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        share = Share(self._budget)
        scope.setdefault("state", {})["share"] = share

        async def send_and_wait(message: Message) -> None:
            if message["type"] != "http.response.body" or message.get("more_body"):
                await send(message)
                return
            # a server waits for its client before the next part: so there is one more, an empty one
            await send({**message, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        try:
            await self._app(scope, receive, send_and_wait)
        finally:
            share.release()
