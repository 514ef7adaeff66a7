"""Connections that an application can end at once, with bytes that nobody reads still to be sent.

A server closes a connection when all that was written is sent, and to a client that does not read that is
never. ASGI has no word for it, so the connection lends its own to the application, as an extension of the
scope.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast, final

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["AbortableProtocol", "abort_of"]

EXTENSION: Final = "mno.abort"


@final
class AbortableProtocol(HttpToolsProtocol):
    """uvicorn's own, whose requests know how to end their connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See ``asyncio.Protocol``."""
        super().connection_made(transport)
        app = cast(ASGIApp, self.app)

        async def with_abort(scope: Scope, receive: Receive, send: Send) -> None:
            extensions = scope.get("extensions", {}) | {EXTENSION: transport.abort}
            await app({**scope, "extensions": extensions}, receive, send)

        self.app = with_abort


def abort_of(scope: Scope) -> Callable[[], None] | None:
    """What ends the connection of a request at once; None: its server cannot."""
    found: Callable[[], None] | None = scope.get("extensions", {}).get(EXTENSION)
    return found
