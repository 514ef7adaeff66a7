"""The zygote that is replaced when it ends or hangs; real processes."""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from service.processes import zygote
from service.processes.control import LinkLost
from service.processes.kept_zygote import KeptZygote
from service.processes.zygote import Child

pytestmark = pytest.mark.slow


class Stage:
    """A zygote, and how often it was replaced."""

    def __init__(self, start_seconds: float = 120.0) -> None:
        self.restarts = 0
        self.kept = KeptZygote(None, self._restarted, start_seconds)

    def _restarted(self) -> None:
        self.restarts += 1

    @property
    def pid(self) -> int:
        assert self.kept._present is not None
        return self.kept._present.pid

    async def fork(self) -> Child:
        return await self.kept.fork("steward", {"store": None})


def play(story: Callable[[Stage], Coroutine[Any, Any, None]], **seconds: float) -> None:
    async def told() -> None:
        stage = Stage(**seconds)
        stage.kept.start()
        await story(stage)

    asyncio.run(told())


async def ended(child: Child) -> None:
    child.control.close()
    await child.wait()


def test_who_wants_a_child_of_a_zygote_that_ended_or_hangs_gets_one_of_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # long enough for one that lives
    monkeypatch.setattr(zygote, "FORK_SECONDS", 5.0)

    async def story(stage: Stage) -> None:
        children = [await stage.fork()]
        for how in (signal.SIGKILL, signal.SIGSTOP):
            before = stage.pid
            os.kill(before, how)
            children.append(await stage.fork())
            assert stage.pid != before
            # they go with it
            assert await children[-2].wait() == -signal.SIGKILL
        assert stage.restarts == 2
        for child in children:
            await ended(child)
        await stage.kept.close(60)

    play(story)


def test_a_zygote_that_is_never_ready_is_given_up() -> None:
    async def story(stage: Stage) -> None:
        with pytest.raises(LinkLost, match=r"not ready within 0\.01 s"):
            await stage.fork()
        assert stage.restarts == 2
        await stage.kept.close(60)

    play(story, start_seconds=0.01)


def test_one_that_still_starts_ends_at_once() -> None:
    async def story(stage: Stage) -> None:
        while stage.kept._present is None or stage.kept._present._process is None:
            await asyncio.sleep(0)
        os.kill(stage.pid, signal.SIGSTOP)
        await stage.kept.close(3600)

    play(story)
