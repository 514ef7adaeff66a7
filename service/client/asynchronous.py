"""The client for an event loop; see ``blocking.py``, whose twin it is.

::

    async with AsyncClient("grpc://127.0.0.1:8081") as client:
        answers = await asyncio.gather(*(client.solve("darcy", field) for field in fields))
        async for frame in client.rollout("shallow_water", {"h": depth}, steps=100):
            ...
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, final

import httpx
from numpy.typing import ArrayLike

from service.client.answers import Answer, Frame, Gradient
from service.client.asking import Address, Rollouts, address_of, named_alike, question_of
from service.client.connection import AsyncTransport, Attempts, BrokenStream, Retryable
from service.client.http import AsyncHttpTransport

__all__ = ["AsyncClient"]

Found = TypeVar("Found")


@final
class AsyncClient:
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
        self._retries = retries
        self._transport = _open(address_of(url, token, timeout, ca, cert), transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    async def solve(
        self,
        problem: str,
        field: ArrayLike | Any,
        *,
        model: str | None = None,
        method: str = "auto",
        error: str = "bound",
        tolerance: float | str | None = None,
        timeout_ms: float | None = None,
        priority: str | None = None,
        reproducible: bool = False,
        **parameters: float,
    ) -> Answer:
        """Solve one field (ny, nx) or a batch (batch, ny, nx); see ``Client.solve``."""
        options = {
            "model": model,
            "method": method,
            "error": error,
            "tolerance": tolerance,
            "timeout_ms": timeout_ms,
            "priority": priority,
            "reproducible": reproducible,
        }
        question = question_of(problem, field, options, parameters)
        found: Answer = named_alike(field, await self._again(lambda: self._transport.solve(question)))
        return found

    async def vjp(
        self,
        problem: str,
        field: ArrayLike | Any,
        cotangent: ArrayLike | Any,
        *,
        wrt: str | None = None,
        model: str | None = None,
        method: str = "auto",
        timeout_ms: float | None = None,
        priority: str | None = None,
        reproducible: bool = False,
        **parameters: float,
    ) -> Gradient:
        """The gradient of the sum of ``cotangent`` times the solution; see ``Client.vjp``."""
        options = {
            "wrt": wrt,
            "model": model,
            "method": method,
            "timeout_ms": timeout_ms,
            "priority": priority,
            "reproducible": reproducible,
        }
        question = question_of(problem, field, options, parameters, cotangent)
        found: Gradient = named_alike(
            field, await self._again(lambda: self._transport.differentiate(question))
        )
        return found

    def rollout(
        self,
        problem: str,
        state: Mapping[str, ArrayLike | Any] | ArrayLike,
        *,
        steps: int = 100,
        every: int = 1,
        start_step: int = 0,
        model: str | None = None,
        method: str = "auto",
        walls: str | None = None,
        timeout_ms: float | None = None,
        priority: str | None = None,
        reproducible: bool = False,
    ) -> AsyncGenerator[Frame, None]:
        """The frames that follow from a state, as they are computed; see ``Client.rollout``."""
        options = {
            "steps": steps,
            "every": every,
            "start_step": start_step,
            "model": model,
            "method": method,
            "walls": walls,
            "timeout_ms": timeout_ms,
            "priority": priority,
            "reproducible": reproducible,
        }
        return self._follow(Rollouts(problem, state, options, self._retries))

    async def problems(self) -> list[dict[str, Any]]:
        """What the service solves: fields, units, bounds, grids. Over HTTP only."""
        found: list[dict[str, Any]] = (await self._again(lambda: self._transport.describe("/v1/problems")))[
            "problems"
        ]
        return found

    async def models(self) -> list[dict[str, Any]]:
        """The models of the service, their versions, and which are loaded; over HTTP also their aliases."""
        found: list[dict[str, Any]] = (await self._again(lambda: self._transport.describe("/v1/models")))[
            "models"
        ]
        return found

    async def _again(self, ask: Callable[[], Awaitable[Found]]) -> Found:
        """Ask, and again where it may help."""
        attempts = Attempts(self._retries)
        while True:
            try:
                return await ask()
            except Retryable as failure:
                pause = attempts.pause(failure)
            await asyncio.sleep(pause)

    async def _follow(self, rollouts: Rollouts) -> AsyncGenerator[Frame, None]:
        follower, attempts = rollouts.follower, Attempts(self._retries)
        while True:
            pause = 0.0
            try:
                async with self._transport.stream(follower.leg()) as stream:
                    async for frame in stream.frames:
                        taken = rollouts.take(frame, stream.block)
                        if taken is not None:
                            attempts = Attempts(self._retries)
                            yield taken
                return
            except Retryable as failure:
                pause = attempts.pause(failure)
            except BrokenStream as error:
                if follower.whole:
                    return
                message = follower.failed(error)
                if message is not None:
                    raise self._transport.gave_up(message) from error
                pause = Attempts(1).pause(Retryable(error)) if follower.failures > 1 else 0.0
            await asyncio.sleep(pause)


def _open(address: Address, transport: httpx.AsyncBaseTransport | None) -> AsyncTransport:
    if address.grpc:
        # imported here: whoever speaks HTTP does not need the library
        from service.client.grpc import AsyncGrpcTransport

        return AsyncGrpcTransport(address)
    headers = {"Authorization": f"Bearer {address.token}"} if address.token else {}
    verify = address.context() if address.secure and transport is None else True
    http = httpx.AsyncClient(
        base_url=address.url, headers=headers, timeout=address.timeout, transport=transport, verify=verify
    )
    return AsyncHttpTransport(http)
