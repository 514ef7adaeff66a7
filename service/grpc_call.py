"""A call as its handler sees it: metadata and messages in, messages out; who carries the bytes is another's matter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, TypeAlias, final

__all__ = ["Buffer", "Call", "Metadata", "Method", "Outcome", "Status"]

Buffer: TypeAlias = bytes | memoryview
Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]


@final
class Status(IntEnum):
    """The status codes of gRPC that the service answers with."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


@final
@dataclass(frozen=True)
class Outcome:
    """How a call ends.

    Attributes:
        metadata: sent with it; names that end in ``-bin`` have bytes.
    """

    status: Status
    message: str = ""
    metadata: Metadata = ()


class Call(ABC):
    """One call under way.

    Attributes:
        metadata: what the client said beside its messages, by lower-case name; of a repeated one the last.
        received: when it began, on the clock of ``time.perf_counter`` [s].
        deadline: when the client has no more use for an answer, on that clock; None: never.
        client: whose share of the workers it uses; set once it is known.
        request_id: comes back to the client, and is in the log.
        trailing: sent with the outcome, whatever that is.
    """

    def __init__(self, metadata: Mapping[str, str], received: float, deadline: float | None) -> None:
        self.metadata = metadata
        self.received = received
        self.deadline = deadline
        self.client = ""
        self.request_id = ""
        self.trailing: list[tuple[str, str | bytes]] = []

    @abstractmethod
    def hold(self, count: int) -> None:
        """Count so many bytes of memory as this call's until it ends.

        Raises:
            Overloaded: with those of other calls they are too many.
        """

    @abstractmethod
    async def message(self) -> Buffer | None:
        """The next message, None after the last.

        Raises:
            ServiceFault: the client sends too much, or too slowly.
        """

    @abstractmethod
    async def begin(self, metadata: Metadata = ()) -> None:
        """Send the initial metadata, which else go with the first message."""

    @abstractmethod
    async def send(self, parts: Sequence[Buffer], *, last: bool = False) -> None:
        """Send a message; returns when there is room for the next one.

        Args:
            parts: the bytes; they may be sent later and must not change.
            last: nothing follows but that all went well.

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
        one_message: the client sends exactly one message; the handler starts when it is there.
    """

    path: str
    handler: Callable[[Call], Awaitable[None]]
    scope: Literal["solve", "admin", "metrics"] | None = "solve"
    one_message: bool = True
