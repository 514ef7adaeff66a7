"""A response that is sent while it is computed, and stops being computed when nobody reads it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, closing
from typing import final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.http.abortable import abort_of
from service.http.faults import describe_fault
from service.http.rollout_wire import StreamForm, rollout_headers
from service.rollout import Rollout
from service.stall import Stall

__all__ = ["FrameStream"]

log = logging.getLogger("mno.service")


@final
class FrameStream(Response):
    """The frames of a rollout in a form of the wire, each sent as soon as it is there."""

    def __init__(self, rollout: Rollout, form: StreamForm, stall_seconds: float) -> None:
        """``stall_seconds``: how long the client may leave what is sent unread."""
        super().__init__(headers=rollout_headers(rollout), media_type=form.media_type)
        del self.headers["content-length"]
        self._rollout = rollout
        self._form = form
        self._stall_seconds = stall_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the end, or until the client leaves."""
        streaming = asyncio.ensure_future(self._stream(scope, send))
        leaving = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({streaming, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if streaming.done() and not streaming.result() and (abort := abort_of(scope)):
                # else the server would wait, before it closes, until all that was sent is read
                abort()
                await leaving
        finally:
            for task in (streaming, leaving):
                task.cancel()
            # whoever asked for the response releases what it holds when this returns
            await asyncio.gather(streaming, leaving, return_exceptions=True)

    async def _stream(self, scope: Scope, send: Send) -> bool:
        """Send all parts; whether the client took them in time."""
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        await send(start)
        with closing(Stall(self._stall_seconds)) as stall:
            async with aclosing(self._parts(scope)) as parts:
                async for data, more in parts:
                    try:
                        with stall:
                            await send({"type": "http.response.body", "body": data, "more_body": more})
                    except TimeoutError:
                        log.info("a client left a frame unread for %s s", self._stall_seconds)
                        return False
        return True

    async def _parts(self, scope: Scope) -> AsyncGenerator[tuple[bytes, bool], None]:
        """Bytes to send, and whether there are more."""
        async with aclosing(self._form.frames(self._rollout)) as frames:
            try:
                async for frame in frames:
                    yield frame, True
            except Exception as fault:  # the status is sent: whatever broke has its place in the stream
                yield self._form.failure(describe_fault(scope, fault)), False
            else:
                yield self._form.end, False


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
