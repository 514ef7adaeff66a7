"""A rollout under way: block after block is computed, judged, and taken frame by frame."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import closing
from typing import Any, Final, Protocol, TypeVar, final

from service.deadline import Deadline
from service.frame_judge import Computed, FrameJudge, State
from service.passage import size_of
from service.shelf import Form, Shelf

__all__ = ["Course", "Progress", "Stepper", "Unwatched"]

Item = TypeVar("Item")

# a block of more bytes is judged in a thread, even if all is known about it [B]
LARGE: Final = 4 * 2**20


class Stepper(Protocol):
    """A way to step states."""

    @property
    def block(self) -> int:
        """Steps that are computed at once."""

    async def advance(self, state: State, step: int, *, admitted: bool) -> Computed:
        """The next block after ``state``; see ``March``."""


class Progress(Protocol):
    """What is told of one rollout after another; ``service.telemetry.metrics`` counts it."""

    def began(self) -> None:
        """A client reads its frames; ``ended`` follows."""

    def sent(self, frames: int = 1) -> None:
        """Frames were handed over."""

    def ended(self) -> None:
        """It wants no more of them."""


@final
class Unwatched:
    """Tells nobody."""

    def began(self) -> None:
        """See ``Progress``."""

    def sent(self, frames: int = 1) -> None:
        """See ``Progress``."""

    def ended(self) -> None:
        """See ``Progress``."""


@final
class Course:
    """A rollout from one block to the next.

    Attributes:
        scores: ``Solutions.novelty`` of the state before the block that was computed last.
    """

    def __init__(
        self,
        march: Stepper,
        judge: FrameJudge,
        steps: range,
        every: int,
        deadline: Deadline,
        progress: Progress,
    ) -> None:
        """A rollout of which nothing is computed.

        Args:
            march: steps it.
            judge: judges its frames.
            steps: those to be taken; the given state is that of the step before.
            every: only the frames of steps that this divides are handed over.
            deadline: when the last block has to be there.
            progress: is told of the frames that are taken.
        """
        self._march = march
        self._judge = judge
        # of which no block was judged
        self._steps = steps
        self._every = every
        self._deadline = deadline
        self._progress = progress
        self._computed: Computed | None = None
        self.scores: tuple[float, ...] = ()
        self._following: asyncio.Task[Shelf[Any]] | None = None

    async def advance(self, state: State, *, admitted: bool) -> None:
        """Have the next block computed, which follows after ``state``."""
        self._computed = await self._march.advance(state, self._steps.start - 1, admitted=admitted)
        self.scores = self._computed.scores

    async def taken(self, form: Form[Item]) -> AsyncGenerator[Item, None]:
        """What is made of a frame after another; the first block was computed before."""
        self._progress.began()
        try:
            shelf: Shelf[Item] | None = await self._judged(form)
            while shelf is not None:
                with closing(shelf):
                    while not shelf.empty:
                        if shelf.half_empty:
                            self._look_ahead(shelf, form)
                        self._progress.sent()
                        yield await shelf.take()
                shelf = await self._after(shelf, form)
        finally:
            self._progress.ended()
            await self._stop()

    async def _after(self, shelf: Shelf[Item], form: Form[Item]) -> Shelf[Item] | None:
        """The block after one of which all frames were taken; None: that was the last."""
        if shelf.fault is not None:
            raise shelf.fault
        self._look_ahead(shelf, form)
        following, self._following = self._following, None
        return None if following is None else await following

    def _look_ahead(self, shelf: Shelf[Item], form: Form[Item]) -> None:
        """Have the block after this one computed, unless it is already, or there is none."""
        if self._following is None and not shelf.last:
            self._following = asyncio.create_task(self._next(shelf.state, form))

    async def close(self) -> None:
        """Compute no more, whether anybody took a frame or not."""
        self._computed = None
        await self._stop()

    async def _stop(self) -> None:
        following, self._following = self._following, None
        if following is not None:
            following.cancel()
            for shelf in await asyncio.gather(following, return_exceptions=True):
                if isinstance(shelf, Shelf):
                    shelf.close()

    async def _next(self, state: State, form: Form[Item]) -> Shelf[Item]:
        async with self._deadline.kept():
            await self.advance(state, admitted=True)
            return await self._judged(form)

    async def _judged(self, form: Form[Item]) -> Shelf[Item]:
        """The block that was computed."""
        computed, self._computed = self._computed, None
        assert computed is not None
        steps, self._steps = self._steps[: self._march.block], self._steps[self._march.block :]
        ends = not self._steps

        def judge() -> Shelf[Item]:
            return Shelf(self._judge.block(computed, steps, self._every), form, ends=ends)

        quick = self._judge.quick and all(computed.sound) and size_of(computed.fields) <= LARGE
        shelf = judge() if quick else await asyncio.to_thread(judge)
        shelf.wait()
        return shelf
