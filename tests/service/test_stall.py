"""Waits that may take too long, with one timer for many of them."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import closing

import pytest

from service.stall import Stall


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose time the test moves."""

    now = 0.0

    def time(self) -> float:
        return self.now

    async def go_on(self, seconds: float) -> None:
        """Let time pass, and those wake up who have waited for it."""
        self.now += seconds
        for _ in range(5):
            await asyncio.sleep(0)


Tell = Callable[[Callable[[Clock], Awaitable[None]]], None]


@pytest.fixture
def tell() -> Tell:
    def run(story: Callable[[Clock], Awaitable[None]]) -> None:
        clock = Clock()
        with asyncio.Runner(loop_factory=lambda: clock) as runner:
            runner.run(story(clock))  # type: ignore[arg-type]

    return run


async def wait(stall: Stall, done: asyncio.Event) -> str:
    try:
        with stall:
            await done.wait()
    except TimeoutError:
        return "too long"
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    return "done"


def test_a_wait_that_takes_too_long_is_ended(tell: Tell) -> None:
    async def story(clock: Clock) -> None:
        with closing(Stall(10.0)) as stall:
            for _ in range(2):
                waiting = asyncio.create_task(wait(stall, asyncio.Event()))
                await clock.go_on(0)
                await clock.go_on(9.0)
                assert not waiting.done()
                await clock.go_on(1.0)
                assert await waiting == "too long"

    tell(story)


def test_waits_that_are_short_enough_may_be_many(tell: Tell) -> None:
    async def story(clock: Clock) -> None:
        with closing(Stall(10.0)) as stall:
            for _ in range(5):
                done = asyncio.Event()
                waiting = asyncio.create_task(wait(stall, done))
                await clock.go_on(0)
                await clock.go_on(9.0)
                done.set()
                assert await waiting == "done"
                # the time between two of them is not counted
                await clock.go_on(30.0)
            waiting = asyncio.create_task(wait(stall, asyncio.Event()))
            await clock.go_on(0)
            await clock.go_on(10.0)
            assert await waiting == "too long"

    tell(story)


def test_somebody_else_s_cancellation_is_passed_on(tell: Tell) -> None:
    async def story(clock: Clock) -> None:
        with closing(Stall(10.0)) as stall:
            waiting = asyncio.create_task(wait(stall, asyncio.Event()))
            await clock.go_on(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    tell(story)


def test_who_is_cancelled_at_the_same_time_stays_cancelled(tell: Tell) -> None:
    async def story(clock: Clock) -> None:
        with closing(Stall(10.0)) as stall:
            waiting = asyncio.create_task(wait(stall, asyncio.Event()))
            await clock.go_on(0)
            clock.call_at(10.0, waiting.cancel)
            await clock.go_on(10.0)
            with pytest.raises(asyncio.CancelledError):
                await waiting

    tell(story)


def test_what_breaks_meanwhile_is_no_timeout(tell: Tell) -> None:
    async def story(_: Clock) -> None:
        with closing(Stall(10.0)) as stall, pytest.raises(ZeroDivisionError), stall:
            raise ZeroDivisionError

    tell(story)


def test_nothing_is_left_of_one_that_is_closed(tell: Tell) -> None:
    async def story(clock: Clock) -> None:
        with closing(Stall(10.0)) as stall:
            done = asyncio.Event()
            done.set()
            assert await wait(stall, done) == "done"
        await clock.go_on(0)
        assert not any(not handle.cancelled() for handle in clock._scheduled)  # type: ignore[attr-defined]

    tell(story)
