"""The client for an event loop: the twin of ``blocking.py``, with ``await``.

::

    async with AsyncClient("grpc://127.0.0.1:8081") as client:
        answers = await asyncio.gather(*(client.solve("darcy", field) for field in fields))
        async for frame in client.rollout("shallow_water", {"h": depth}, steps=100):
            ...
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, final

import httpx
from numpy.typing import ArrayLike

from service.client.address import Address, address_of
from service.client.answers import Answer, Frame, Gradient, Quantity, Tangent
from service.client.asking import Asking, Rollouts, named_alike
from service.client.connection import AsyncTransport, Question
from service.client.http import AsyncHttpTransport, network_options
from service.client.retrying import PATIENCE, Patience, Retryable

__all__ = ["AsyncClient"]

Found = TypeVar("Found")


@final
class AsyncClient(
    Asking[
        Coroutine[Any, Any, Answer],
        Coroutine[Any, Any, Gradient],
        Coroutine[Any, Any, Tangent],
        Coroutine[Any, Any, list[Quantity]],
        AsyncGenerator[Frame, None],
        Coroutine[Any, Any, list[dict[str, Any]]],
    ]
):
    """A connection to one service. Reuse it; close it, or use it in an ``async with`` block."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout: float = 60.0,
        retries: int = 2,
        ca: str | Path | None = None,
        cert: tuple[str | Path, str | Path] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Prepare to ask the service at ``url``; see ``Client``."""
        address = address_of(url, token, timeout, ca, cert)
        super().__init__(Patience(retries, min(PATIENCE, timeout)))
        self._transport = _open(address, transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    async def _solve(self, question: Question, field: ArrayLike | Any) -> Answer:
        found = await self._again(question.options, lambda left: self._transport.solve(question.within(left)))
        return named_alike(field, found)

    async def _pull_back(self, question: Question, field: ArrayLike | Any) -> Gradient:
        found = await self._again(
            question.options, lambda left: self._transport.pull_back(question.within(left))
        )
        return named_alike(field, found)

    async def _push_forward(self, question: Question, field: ArrayLike | Any) -> Tangent:
        found = await self._again(
            question.options, lambda left: self._transport.push_forward(question.within(left))
        )
        return named_alike(field, found)

    async def _read(self, question: Question) -> list[Quantity]:
        return await self._again(question.options, lambda left: self._transport.read(question.within(left)))

    async def _describe(self, what: str) -> list[dict[str, Any]]:
        found = await self._again({}, lambda _: self._transport.describe(f"/v1/{what}"))
        return list(found[what])

    async def _again(self, options: Mapping[str, Any], ask: Callable[[float], Awaitable[Found]]) -> Found:
        """Ask, and again where it may help, what is to be answered in so many seconds."""
        attempts = self._patience.attempts(options)
        while True:
            try:
                return await ask(attempts.left)
            except Retryable as failure:
                pause = attempts.pause(failure)
            await asyncio.sleep(pause)

    async def _follow(self, rollouts: Rollouts) -> AsyncGenerator[Frame, None]:
        follower = rollouts.follower
        while not follower.whole:
            try:
                async with self._transport.stream(follower.leg()) as stream:
                    async for frame in stream.frames:
                        taken = rollouts.take(frame, stream.block)
                        if taken is not None:
                            yield taken
                return
            except Retryable as failure:
                pause = follower.after(failure)
            await asyncio.sleep(pause)


def _open(address: Address, transport: httpx.AsyncBaseTransport | None) -> AsyncTransport:
    if address.grpc:
        # imported here: whoever speaks HTTP does not need the library
        from service.client.grpc import AsyncGrpcTransport

        return AsyncGrpcTransport(address)
    return AsyncHttpTransport(httpx.AsyncClient(transport=transport, **network_options(address, transport)))
