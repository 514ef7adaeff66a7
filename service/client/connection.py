"""How the clients ask: what is asked, whatever carries it, and when it is asked again."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, final

from numpy.typing import NDArray

from service.client.answers import Answer, Frame, Gradient

__all__ = [
    "AsyncTransport",
    "Attempts",
    "BrokenStream",
    "Leg",
    "Question",
    "Retryable",
    "ServiceError",
    "Transport",
    "Unreachable",
]

# before the service is asked again, the first time [s]; then twice as long, and so on
PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 60.0


class ServiceError(Exception):
    """The service answered with a problem document (RFC 9457).

    Attributes:
        status: HTTP status, also where the answer came over gRPC.
        type: stable slug, such as ``invalid-field``.
        problem: the whole document; of an invalid field it has ``field``, ``rule`` and ``index``.
    """

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(f"{problem.get('type', 'unknown')} ({status}): {problem.get('detail', '')}")
        self.status = status
        self.type = str(problem.get("type", "unknown"))
        self.problem = problem


class Unreachable(ConnectionError):
    """The service cannot be reached over gRPC, or the connection broke."""


class BrokenStream(Exception):
    """A stream of frames ended before its end; it may go on from its last frame."""


class Retryable(Exception):
    """Something that may work in a moment.

    Args:
        error: what to raise when there are no attempts left.
        after: when to come back, if the service said so [s].
    """

    def __init__(self, error: Exception, after: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.after = after


@final
class Attempts:
    """Counts the attempts of one request."""

    def __init__(self, retries: int) -> None:
        """``retries``: further attempts when the service is overloaded or cannot be reached."""
        self._left = retries
        self._pause = PAUSE

    def pause(self, failure: Retryable) -> float:
        """How long to wait before the next attempt [s].

        Raises:
            Exception: that of the failure, when there are no attempts left.
        """
        if not self._left:
            raise failure.error
        self._left -= 1
        longest, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        if failure.after is not None:
            # all who were refused together do not come back together
            return min(failure.after, LONGEST_PAUSE) * random.uniform(1.0, 1.25)
        return longest * random.uniform(0.5, 1.0)


@final
@dataclass(frozen=True)
class Question:
    """What is asked about one field, or a batch of them.

    Attributes:
        options: those that are not left out, by their names in the HTTP interface.
        parameters: uniform parameters of the problem.
        cotangent: of the solution, for a gradient.
    """

    problem: str
    field: NDArray[Any]
    options: Mapping[str, Any]
    parameters: Mapping[str, float]
    cotangent: NDArray[Any] | None = None


@final
@dataclass(frozen=True)
class Leg:
    """A rollout from where it begins, or goes on.

    Attributes:
        state: [channel y x].
        channels: their names, comma-separated; None: those of the problem.
        options: see ``Question``; with ``steps``, ``every`` and ``start_step``.
    """

    problem: str
    state: NDArray[Any]
    channels: str | None
    options: Mapping[str, Any]


@final
@dataclass(frozen=True)
class Stream:
    """Frames as they come; ``block`` steps are computed at once."""

    block: int
    frames: Iterator[Frame]


@final
@dataclass(frozen=True)
class AsyncStream:
    """See ``Stream``."""

    block: int
    frames: AsyncIterator[Frame]


class Transport(ABC):
    """Asks one service, each question once."""

    @abstractmethod
    def solve(self, question: Question) -> Answer:
        """The solutions.

        Raises:
            Retryable: the service is overloaded, or cannot be reached.
            ServiceError: it refused or failed.
        """

    @abstractmethod
    def differentiate(self, question: Question) -> Gradient:
        """The gradient; see ``solve``."""

    @abstractmethod
    def describe(self, path: str) -> Any:
        """What ``GET /v1/...`` says; see ``solve``."""

    @abstractmethod
    def stream(self, leg: Leg) -> AbstractContextManager[Stream]:
        """The frames of a rollout; see ``solve``. They raise ``BrokenStream`` where the stream breaks."""

    @abstractmethod
    def gave_up(self, message: str) -> Exception:
        """What to raise when a stream broke again and again."""

    @abstractmethod
    def close(self) -> None:
        """Close the connections."""


class AsyncTransport(ABC):
    """The twin of ``Transport`` in an event loop."""

    @abstractmethod
    async def solve(self, question: Question) -> Answer:
        """See ``Transport``."""

    @abstractmethod
    async def differentiate(self, question: Question) -> Gradient:
        """See ``Transport``."""

    @abstractmethod
    async def describe(self, path: str) -> Any:
        """See ``Transport``."""

    @abstractmethod
    def stream(self, leg: Leg) -> AbstractAsyncContextManager[AsyncStream]:
        """See ``Transport``."""

    @abstractmethod
    def gave_up(self, message: str) -> Exception:
        """See ``Transport``."""

    @abstractmethod
    async def close(self) -> None:
        """See ``Transport``."""
