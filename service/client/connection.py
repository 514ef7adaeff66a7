"""How the clients ask: what is asked, whatever carries it, and what goes wrong."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Final, final

from numpy.typing import NDArray

from service.client.answers import Answer, Frame, Gradient, Quantity, Tangent

__all__ = [
    "LEAST_MS",
    "AsyncTransport",
    "Leg",
    "Question",
    "ServiceError",
    "Transport",
    "Unreachable",
]


# the shortest deadline that is asked for: none at all would be another question [ms]
LEAST_MS: Final = 1.0


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


@final
@dataclass(frozen=True)
class Question:
    """What is asked about one field, or a batch of them.

    Attributes:
        options: those that are not left out, by their names in the HTTP interface.
        parameters: uniform parameters of the problem.
        direction: a cotangent of the solution for a gradient, a tangent of the field for what it changes.
        wanted: names of quantities.
    """

    problem: str
    field: NDArray[Any]
    options: Mapping[str, Any]
    parameters: Mapping[str, float]
    direction: NDArray[Any] | None = None
    wanted: Sequence[str] = ()

    def within(self, seconds: float) -> Question:
        """The same, with no more time than that; the very same, where it has none, or that much."""
        given = self.options.get("timeout_ms")
        if given is None or given <= 1000 * seconds:
            return self
        return replace(self, options={**self.options, "timeout_ms": max(1000 * seconds, LEAST_MS)})


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
    def pull_back(self, question: Question) -> Gradient:
        """The gradient; see ``solve``."""

    @abstractmethod
    def push_forward(self, question: Question) -> Tangent:
        """The tangent of the solution; see ``solve``."""

    @abstractmethod
    def read(self, question: Question) -> list[Quantity]:
        """The quantities; see ``solve``."""

    @abstractmethod
    def describe(self, path: str) -> Any:
        """What ``GET /v1/...`` says; see ``solve``."""

    @abstractmethod
    def stream(self, leg: Leg) -> AbstractContextManager[Stream]:
        """The frames of a rollout; see ``solve``. They raise ``Retryable`` where the stream breaks."""

    @abstractmethod
    def close(self) -> None:
        """Close the connections."""


class AsyncTransport(ABC):
    """The twin of ``Transport`` in an event loop."""

    @abstractmethod
    async def solve(self, question: Question) -> Answer:
        """See ``Transport``."""

    @abstractmethod
    async def pull_back(self, question: Question) -> Gradient:
        """See ``Transport``."""

    @abstractmethod
    async def push_forward(self, question: Question) -> Tangent:
        """See ``Transport``."""

    @abstractmethod
    async def read(self, question: Question) -> list[Quantity]:
        """See ``Transport``."""

    @abstractmethod
    async def describe(self, path: str) -> Any:
        """See ``Transport``."""

    @abstractmethod
    def stream(self, leg: Leg) -> AbstractAsyncContextManager[AsyncStream]:
        """See ``Transport``."""

    @abstractmethod
    async def close(self) -> None:
        """See ``Transport``."""
