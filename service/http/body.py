"""How a request's body is taken in: within its limits, uncompressed, and no longer than its client stays."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from service.codec import Coding, decompress
from service.errors import TooLarge
from service.http import wire
from service.http.in_flight import Share
from service.settings import Limits

__all__ = ["read_body", "unless_client_leaves"]

Answer = TypeVar("Answer")


async def read_body(request: Request, limits: Limits, codings: Sequence[Coding] = ("gzip",)) -> bytes:
    """The body, uncompressed; what it takes in memory is held until the answer is written."""
    share: Share = request.state.share
    coding = wire.encoding(request.headers, codings)
    limit, weight = wire.body_limit(request.headers, limits), wire.body_weight(request.headers)
    body = await _stream_body(request, limit, share, weight)
    if coding is None:
        return body
    plain = await asyncio.to_thread(decompress, body, coding, limit)
    share.take(weight * (len(plain) - len(body)))
    return plain


async def _stream_body(request: Request, limit: int, share: Share, weight: int) -> bytes:
    """The body as it came, refused as soon as it is known to exceed ``limit`` bytes."""
    declared = request.headers.get("content-length", "0")
    body = bytearray()
    if not declared.isdecimal() or int(declared) <= limit:
        async for chunk in request.stream():
            share.take(weight * len(chunk))
            body += chunk
            if len(body) > limit:
                break
        else:
            return bytes(body)
    raise TooLarge(f"the body exceeds {limit} bytes; send fewer fields a request, or application/x-npy")


async def unless_client_leaves(request: Request, answer: Coroutine[Any, Any, Answer]) -> Answer:
    """Await ``answer``; when the client hangs up, cancel it, so that nothing is computed for nobody."""
    work = asyncio.ensure_future(answer)
    # after the body, the only message left to come is the disconnect
    left = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        left.cancel()
        work.cancel()
