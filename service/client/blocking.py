"""The client that blocks; what can be asked stands in ``asking.py``."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, final

import httpx
from numpy.typing import ArrayLike

from service.client.address import Address, address_of
from service.client.answers import Answer, Frame, Gradient, Quantity, Tangent
from service.client.asking import Asking, Rollouts, named_alike
from service.client.connection import Question, Transport
from service.client.http import HttpTransport, network_options
from service.client.retrying import PATIENCE, Patience, Retryable

__all__ = ["Client"]

Found = TypeVar("Found")


@final
class Client(
    Asking[Answer, Gradient, Tangent, list[Quantity], Generator[Frame, None, None], list[dict[str, Any]]]
):
    """A connection to one service. Reuse it; close it, or use it in a ``with`` block."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout: float = 60.0,
        retries: int = 2,
        ca: str | Path | None = None,
        cert: tuple[str | Path, str | Path] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Prepare to ask the service at ``url``; nothing is sent yet.

        A service that cannot be reached, or breaks off, is asked again for 20 s, or for ``timeout`` if that
        is less: one that begins anew is back by then.

        Args:
            url: ``http://host:port`` or ``grpc://host:port``; with TLS ``https://``, ``grpcs://``.
            token: sent as a bearer token.
            timeout: of one attempt [s]; of a stream over HTTP, between two frames.
            retries: further attempts when the service says that it cannot answer now (429, 503), after as
                long as it says; 0: never ask again, whatever happened.
            ca: file with whom to trust, in place of those that the system trusts.
            cert: files with the client's own certificate and key, for mutual TLS.
            transport: replaces HTTP's network, for tests.

        Raises:
            ValueError: the URL is none.
        """
        address = address_of(url, token, timeout, ca, cert)
        super().__init__(Patience(retries, min(PATIENCE, timeout)))
        self._transport = _open(address, transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def _solve(self, question: Question, field: ArrayLike | Any) -> Answer:
        found = self._again(question.options, lambda left: self._transport.solve(question.within(left)))
        return named_alike(field, found)

    def _pull_back(self, question: Question, field: ArrayLike | Any) -> Gradient:
        found = self._again(question.options, lambda left: self._transport.pull_back(question.within(left)))
        return named_alike(field, found)

    def _push_forward(self, question: Question, field: ArrayLike | Any) -> Tangent:
        found = self._again(
            question.options, lambda left: self._transport.push_forward(question.within(left))
        )
        return named_alike(field, found)

    def _read(self, question: Question) -> list[Quantity]:
        return self._again(question.options, lambda left: self._transport.read(question.within(left)))

    def _describe(self, what: str) -> list[dict[str, Any]]:
        found = self._again({}, lambda _: self._transport.describe(f"/v1/{what}"))
        return list(found[what])

    def _again(self, options: Mapping[str, Any], ask: Callable[[float], Found]) -> Found:
        """Ask, and again where it may help, what is to be answered in so many seconds."""
        attempts = self._patience.attempts(options)
        while True:
            try:
                return ask(attempts.left)
            except Retryable as failure:
                pause = attempts.pause(failure)
            time.sleep(pause)

    def _follow(self, rollouts: Rollouts) -> Generator[Frame, None, None]:
        follower = rollouts.follower
        while not follower.whole:
            try:
                with self._transport.stream(follower.leg()) as stream:
                    for frame in stream.frames:
                        taken = rollouts.take(frame, stream.block)
                        if taken is not None:
                            yield taken
                return
            except Retryable as failure:
                pause = follower.after(failure)
            time.sleep(pause)


def _open(address: Address, transport: httpx.BaseTransport | None) -> Transport:
    if address.grpc:
        # imported here: whoever speaks HTTP does not need the library
        from service.client.grpc import GrpcTransport

        return GrpcTransport(address)
    return HttpTransport(httpx.Client(transport=transport, **network_options(address, transport)))
