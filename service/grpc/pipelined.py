"""The one loop of streams of requests: many are under way at once, and each is answered when it is done.

A request of a stream is one like any other: it has a moment of receipt, it is let in for itself, and what
breaks it is its answer. What breaks the stream ends all that is under way, and is how the call ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, aclosing, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar, final

from service.grpc.call import Call
from service.grpc.faults import describe
from service.grpc.parts import Parts
from service.pb.solver_pb2 import Fault

__all__ = ["Item", "Pipeline"]

# requests of one stream under way at once
MOST_AT_ONCE: Final = 64


class Identified(Protocol):
    """A request of a stream."""

    @property
    def id(self) -> str:
        """What its client calls it."""


Wanted = TypeVar("Wanted", bound=Identified)


@final
@dataclass(frozen=True)
class Item:
    """A request of a stream.

    Attributes:
        call: in which it came.
        arrived: when, on the clock of ``time.perf_counter`` [s].
        nbytes: of its message; they are held until it is answered.
    """

    call: Call
    arrived: float
    nbytes: int

    @contextmanager
    def holding(self, count: int) -> Iterator[None]:
        """Count so many bytes of memory more, for what is read bit by bit.

        Raises:
            Overloaded: with those of other requests they are too many.
        """
        self.call.hold(count, self.nbytes)
        try:
            yield
        finally:
            self.call.let_go(count)


@final
class Pipeline(Generic[Wanted]):
    """How the requests of one kind of stream are answered."""

    def __init__(
        self,
        read: Callable[[bytes], Awaitable[Wanted]],
        answers: Callable[[Wanted, Item], AsyncGenerator[Parts, None]],
        failed: Callable[[str, Fault], Parts],
    ) -> None:
        """A kind.

        Args:
            read: makes a request of a message.
            answers: all answers to a request.
            failed: the answer to the request with this id, which has no other.
        """
        self._read = read
        self._answers = answers
        self._failed = failed

    async def run(self, call: Call) -> None:
        """Answer the requests of a call.

        Raises:
            DeadlineExceeded: the client left an answer unread.
        """
        fault: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                await _Stream(self, call).take(tasks)
        except BaseExceptionGroup as group:
            # the first broke the stream, and that others go with it
            fault = group.exceptions[0]
        if fault is not None:
            raise fault

    async def answers(self, message: bytes, item: Item) -> AsyncGenerator[Parts, None]:
        """All answers to a message; what breaks is an answer too, and the stream goes on."""
        name = ""
        try:
            wanted = await self._read(message)
            name = wanted.id
            with _let_in(item.call):
                async with aclosing(self._answers(wanted, item)) as answers:
                    async for parts in answers:
                        yield parts
        except Exception as error:  # whatever broke is this request's answer
            fault = describe(error, item.call.request_id)
            item.call.refused(fault.type)
            yield self._failed(name, fault)


def _let_in(call: Call) -> AbstractContextManager[None]:
    return nullcontext() if call.stay is None else call.stay.request()


@final
class _Stream(Generic[Wanted]):
    """A stream under way."""

    def __init__(self, pipeline: Pipeline[Wanted], call: Call) -> None:
        self._pipeline = pipeline
        self._call = call
        self._room = asyncio.Semaphore(MOST_AT_ONCE)
        self._turn = asyncio.Lock()

    async def take(self, tasks: asyncio.TaskGroup) -> None:
        """Begin to answer each message, as long as there are more of them."""
        await self._room.acquire()
        while (message := await self._call.message()) is not None:
            item = Item(self._call, self._call.arrived, len(message))
            tasks.create_task(self._answer(message, item))
            await self._room.acquire()

    async def _answer(self, message: bytes, item: Item) -> None:
        try:
            async with aclosing(self._pipeline.answers(message, item)) as answers:
                async for parts in answers:
                    await self._send(parts)
        finally:
            self._call.let_go(item.nbytes)
            self._room.release()

    async def _send(self, parts: Parts) -> None:
        # the frames of two answers must not mix
        await self._turn.acquire()
        await self._call.send(parts)
        # not after a failure: whatever comes next would be sent into a stream that is broken
        self._turn.release()
