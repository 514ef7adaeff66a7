"""The event loop of a front: uvloop's, which does not wait long for a client that says nothing."""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast, final

import uvloop

__all__ = ["FrontLoop"]

# so long a client may take for the handshake of TLS, and for its end; the library lets it take 60 and 30 [s]
HANDSHAKE_SECONDS: Final = 5.0


@final
class FrontLoop(uvloop.Loop):
    """Bounds the handshake on every server with TLS: before it, no limit of the protocol can hold."""

    def __init__(self, handshake_seconds: float = HANDSHAKE_SECONDS) -> None:
        super().__init__()
        self._handshake_seconds = handshake_seconds

    async def create_server(self, *args: Any, **options: Any) -> asyncio.Server:
        """See ``asyncio.loop.create_server``."""
        if options.get("ssl") is not None:
            options.setdefault("ssl_handshake_timeout", self._handshake_seconds)
            options.setdefault("ssl_shutdown_timeout", self._handshake_seconds)
        return cast(asyncio.Server, await super().create_server(*args, **options))
