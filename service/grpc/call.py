"""A call as its handler sees it: metadata and messages in, messages out, whoever carries the bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

import grpc

from service.access.stay import Stay
from service.telemetry.timing import Timing

__all__ = ["Buffer", "Call", "Metadata", "Method", "Outcome"]

Buffer: TypeAlias = bytes | memoryview
Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]


@final
@dataclass(frozen=True)
class Outcome:
    """How a call ends.

    Attributes:
        metadata: sent with it; names that end in ``-bin`` have bytes.
    """

    status: grpc.StatusCode
    message: str = ""
    metadata: Metadata = ()


class Call(ABC):
    """One call under way.

    Attributes:
        metadata: what the client said beside its messages, by lower-case name; of a repeated one the last.
        received: when it began, on the clock of ``time.perf_counter`` [s].
        arrived: when its last message came, on that clock [s].
        deadline: when the client has no more use for an answer, on that clock; None: never.
        client: whose share of the workers it uses.
        stay: of a stream, lets in each of its requests; None: whoever calls is let in.
        refused: is told the slug of the fault that is the answer to a request of a stream.
        request_id: comes back to the client, and is in the log.
        trailing: sent with the outcome, whatever that is.
        timing: where the time of its one answer went; None: nobody knows.
    """

    def __init__(self, metadata: Mapping[str, str], received: float, deadline: float | None) -> None:
        self.metadata = metadata
        self.received = received
        self.arrived = received
        self.deadline = deadline
        self.client = ""
        self.stay: Stay | None = None
        self.refused: Callable[[str], None] = lambda _: None
        self.request_id = ""
        self.trailing: Metadata = ()
        self.timing: Timing | None = None

    @abstractmethod
    def hold(self, count: int, beside: int | None = None) -> None:
        """Count so many bytes of memory as this call's until it ends, or lets go of them.

        Args:
            count: so many.
            beside: what is held for the same request already; None: all that the call holds.

        Raises:
            Overloaded: with those of other calls they are too many.
        """

    @abstractmethod
    def let_go(self, count: int) -> None:
        """So many bytes that were held are free: those of a message of a stream that is answered."""

    @abstractmethod
    async def message(self) -> bytes | None:
        """The next message, None after the last; its bytes are held.

        A stream waits until there is room for them, and has no more messages when the service stops.

        Raises:
            Overloaded: see ``hold``; of the one message of a call.
        """

    @abstractmethod
    async def begin(self, metadata: Metadata) -> None:
        """Send the initial metadata."""

    @abstractmethod
    async def send(self, parts: Sequence[Buffer]) -> None:
        """Send a message; returns when there is room for the next one.

        Args:
            parts: its bytes.

        Raises:
            asyncio.CancelledError: the client left.
        """


@final
@dataclass(frozen=True)
class Method:
    """What answers the calls of one path.

    Attributes:
        path: ``/package.Service/Method``.
        scope: what a client's token has to allow; None: anybody may call.
        kind: how many messages come and go: one and one, one and many, many and many.
        subject: of a message, what the call is about, in words for the audit log.
    """

    path: str
    handler: Callable[[Call], Awaitable[None]]
    scope: Literal["solve", "admin", "metrics"] | None = "solve"
    kind: Literal["unary", "answers", "stream"] = "unary"
    subject: Callable[[bytes], str] = lambda _: ""
