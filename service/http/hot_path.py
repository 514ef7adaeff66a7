"""The short way as a connection sees it: requests that are answered without ASGI, by ``hot.py``."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, final

from service.codec import Buffer
from service.errors import Overloaded
from service.http.in_flight import Budget
from service.settings import Limits

__all__ = ["HotHead", "HotPath", "HotRequest", "NoHotPath", "Reply"]


class HotPath(ABC):
    """What answers requests without ASGI.

    Attributes:
        limits: what a client may do with a connection.
        budget: what the bodies of all requests may hold together.
    """

    limits: Limits
    budget: Budget

    @abstractmethod
    def accept(self, url: bytes, headers: Mapping[bytes, bytes]) -> HotHead | None:
        """What it makes of the head of a POST request that it will answer; None: ASGI has to.

        Args:
            url: the target of the request, as it was sent.
            headers: by name, in lower case; none was sent twice.
        """

    @abstractmethod
    def enter(self, request: HotRequest) -> None:
        """Let a request in whose head is there, or set its fault; ``end`` follows in any case."""

    @abstractmethod
    async def answer(self, request: HotRequest) -> Reply:
        """Answer a request that is whole, or has a fault; cancelled when its client leaves."""

    @abstractmethod
    def end(self, request: HotRequest) -> None:
        """The answer was read, or the client left."""

    @abstractmethod
    def refusal(self, status: int, slug: str, detail: str) -> Reply:
        """What refuses that which is no request yet, or not in time."""


@final
class NoHotPath(HotPath):
    """Of an application that has none: takes no request."""

    limits = Limits()
    budget = Budget(0)

    def accept(self, url: bytes, headers: Mapping[bytes, bytes]) -> None:
        pass

    def enter(self, request: HotRequest) -> None:
        raise AssertionError(f"nothing was accepted, and yet {request} came")

    async def answer(self, request: HotRequest) -> Reply:
        raise AssertionError(f"nothing was accepted, and yet {request} is to be answered")

    def end(self, request: HotRequest) -> None:
        raise AssertionError(f"nothing was accepted, and yet {request} ended")

    def refusal(self, status: int, slug: str, detail: str) -> Reply:  # noqa: ARG002
        return Reply(status, "content-type: text/plain\r\n", (detail.encode(),))


@final
class HotHead(NamedTuple):
    """What a request says before its body; the same for all requests that begin with the same bytes.

    Attributes:
        target: what the application made of it.
        length: of the body [B].
        weight: how many bytes of memory a byte of the body counts for.
    """

    target: Any
    length: int
    weight: int = 1


@final
class Reply(NamedTuple):
    """An answer.

    Attributes:
        headers: their lines, each with its end; all but the length.
        body: its parts, which are not copied: nobody may write to them any more.
    """

    status: int
    headers: str
    body: Sequence[Buffer]


@final
class HotRequest:
    """A request on the short way.

    Attributes:
        head: what came before the body.
        keep_alive: whether the connection goes on after the answer.
        received: ``time.perf_counter()`` when the head was there [s].
        missing: what is still to come of the body [B].
        fault: why it will not be answered, whatever is still to come of it.
        response_started: its answer was written.
        response_complete: the same.
        visit: what the application notes of it.
    """

    __slots__ = (
        "_chunks",
        "_held",
        "fault",
        "head",
        "keep_alive",
        "missing",
        "received",
        "response_complete",
        "response_started",
        "visit",
    )

    def __init__(self, head: HotHead, *, keep_alive: bool = True) -> None:
        self.head = head
        self.keep_alive = keep_alive
        self.received = time.perf_counter()
        self.missing = head.length
        self.fault: Exception | None = None
        self.response_started = self.response_complete = False
        self.visit: Any = None
        self._chunks: list[Buffer] = []
        self._held = 0

    @property
    def body(self) -> Buffer:
        """The whole body; copied only where it came in parts."""
        chunks = self._chunks
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def keep(self, chunk: Buffer, budget: Budget) -> None:
        """Keep a part of the body; where there is no room for it, that is the request's fault."""
        size = len(chunk)
        self.missing -= size
        if self.fault is not None:
            return
        count = self.head.weight * size
        try:
            budget.take(count, self._held)
        except Overloaded as fault:
            self.fault = fault
            self.release(budget)
        else:
            self._held += count
            self._chunks.append(chunk)

    def release(self, budget: Budget) -> None:
        """Give back what it holds."""
        budget.give_back(self._held)
        self._held = 0
        self._chunks.clear()
