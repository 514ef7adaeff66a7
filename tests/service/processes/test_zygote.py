"""Processes: started in milliseconds, heard of when they end, and never left behind."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from service.processes.signals import DRAIN
from service.processes.zygote import Child, ForkFailed, Zygote, ZygoteLost, spawn
from service.telemetry.logs import LogSettings
from service.workers.lane import Lane


class Control:
    """The supervisor's end of a control socket."""

    def __init__(self, child: Child) -> None:
        self.heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.ended = asyncio.Event()
        self.lane = Lane(child.control, lambda message, _: self.heard.put_nowait(message), self.ended.set)


def children_of(pid: int) -> set[int]:
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()))


async def gone(pid: int) -> None:
    """Wait until a process that may be nobody's child has ended."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(fd, ended.set)
    await ended.wait()
    asyncio.get_running_loop().remove_reader(fd)
    os.close(fd)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def zygote(runner: asyncio.Runner) -> Iterator[Zygote]:
    zygote = Zygote()
    runner.run(zygote.start())
    yield zygote
    runner.run(zygote.close(60))
    assert runner.run(zygote.wait()) == 0


def test_a_zygote_has_one_thread_and_forks_what_answers(runner: asyncio.Runner, zygote: Zygote) -> None:
    async def story() -> None:
        assert len(list(Path(f"/proc/{zygote.pid}/task").iterdir())) == 1
        child = await zygote.fork("steward", {"store": None})
        control = Control(child)
        assert "ready" in await control.heard.get()
        assert child.pid in children_of(zygote.pid)
        assert not child.ended
        # who controls it leaves
        control.lane.close()
        assert await child.wait() == 0
        assert child.ended
        assert child.pid not in children_of(zygote.pid)
        # nothing happens to whoever has the number now
        child.kill()

    runner.run(story())


@pytest.mark.parametrize(("how", "status"), [(Child.kill, -signal.SIGKILL), (Child.terminate, -DRAIN)])
def test_the_end_of_a_child_is_heard(runner: asyncio.Runner, zygote: Zygote, how: Any, status: int) -> None:
    async def story() -> None:
        children = [await zygote.fork("steward", {"store": None}) for _ in range(3)]
        controls = [Control(child) for child in children]
        for control in controls:
            await control.heard.get()
        how(children[1])
        assert await children[1].wait() == status
        await controls[1].ended.wait()
        assert not children[0].ended
        for control, child in zip(controls, children, strict=True):
            control.lane.close()
            await child.wait()

    runner.run(story())


def test_what_breaks_a_child_ends_it_alone(runner: asyncio.Runner, zygote: Zygote) -> None:
    async def story() -> None:
        child = await zygote.fork("steward", {"no": "store"})
        assert await child.wait() == 1
        child.control.close()
        again = await zygote.fork("steward", {"store": None})
        again.control.close()
        assert await again.wait() == 0

    runner.run(story())


def test_a_fork_that_fails_fails_alone(runner: asyncio.Runner, zygote: Zygote) -> None:
    async def story() -> None:
        child = await zygote.fork("steward", {"store": None})
        unknown: Any = "spam"
        with pytest.raises(ForkFailed, match="spam"):
            await zygote.fork(unknown, {})
        assert not child.ended
        again = await zygote.fork("steward", {"store": None})
        for each in (child, again):
            each.control.close()
            assert await each.wait() == 0

    runner.run(story())


@pytest.mark.parametrize("package", ["problems", "service"])
def test_the_current_folder_holds_no_modules_of_a_child(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str
) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("raise ImportError('not this one')")
    monkeypatch.chdir(tmp_path)

    async def story() -> None:
        child = await spawn("service.workers.numerics", LogSettings().model_dump_json())
        control = Control(child)
        assert "ready" in await control.heard.get()
        control.lane.close()
        assert await child.wait() == 0

    asyncio.run(story())


def test_who_gives_up_on_a_fork_leaves_no_process(runner: asyncio.Runner, zygote: Zygote) -> None:
    async def story() -> None:
        impatient = asyncio.create_task(zygote.fork("steward", {"store": None}))
        await asyncio.sleep(0)
        impatient.cancel()
        with pytest.raises(asyncio.CancelledError):
            await impatient
        # forked after the other one
        patient = await zygote.fork("steward", {"store": None})
        for pid in children_of(zygote.pid) - {patient.pid}:
            await gone(pid)
        patient.control.close()
        await patient.wait()

    runner.run(story())


def test_a_child_that_was_reaped_is_signalled_by_no_number(
    runner: asyncio.Runner, zygote: Zygote, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_number: list[int] = []

    async def story() -> None:
        child = await zygote.fork("steward", {"store": None})
        heard, hear = asyncio.Event(), child.has_ended
        # it is gone, its number may be anybody's, and nobody here knows
        child.has_ended = lambda _: heard.set()  # type: ignore[method-assign]
        child.control.close()
        await heard.wait()
        assert child.pid not in children_of(zygote.pid)
        monkeypatch.setattr(os, "kill", lambda pid, _: by_number.append(pid))
        child.kill()
        child.terminate()
        hear(0)

    runner.run(story())
    assert by_number == []


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that lives and does nothing."""
    os.kill(pid, signal.SIGSTOP)
    yield
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def test_a_zygote_that_says_nothing_hides_no_end_of_a_child_and_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.processes.zygote.FORK_SECONDS", 1.0)

    async def story() -> None:
        zygote = Zygote()
        await zygote.start()
        child = await zygote.fork("steward", {"store": None})
        with stopped(zygote.pid):
            child.kill()
            # the kernel says that it has ended
            assert await child.wait() == -signal.SIGKILL
            with pytest.raises(ZygoteLost, match="not forked within 1 s"):
                await zygote.fork("steward", {"store": None})
            assert await zygote.wait() == -signal.SIGKILL
        child.control.close()

    asyncio.run(story())


def test_a_zygote_that_does_not_end_is_killed() -> None:
    async def story() -> None:
        zygote = Zygote()
        await zygote.start()
        with stopped(zygote.pid):
            await zygote.close(0.01)
        assert await zygote.wait() == -signal.SIGKILL

    asyncio.run(story())


def test_nothing_outlives_a_zygote() -> None:
    async def story() -> None:
        zygote = Zygote()
        with pytest.raises(ZygoteLost, match="never started"):
            await zygote.fork("steward", {})
        await zygote.start()
        child = await zygote.fork("steward", {"store": None})
        control = Control(child)
        await control.heard.get()
        pending = asyncio.create_task(zygote.fork("steward", {"store": None}))
        os.kill(zygote.pid, signal.SIGKILL)
        assert await zygote.wait() == -signal.SIGKILL
        assert await child.wait() == -signal.SIGKILL
        await gone(child.pid)
        await control.ended.wait()
        forked = (await asyncio.gather(pending, return_exceptions=True))[0]
        if isinstance(forked, Child):
            await gone(forked.pid)
            forked.control.close()
        else:
            assert isinstance(forked, ZygoteLost)
        with pytest.raises(ZygoteLost, match="start another"):
            await zygote.fork("steward", {"store": None})

    asyncio.run(story())


def test_a_zygote_that_does_not_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nowhere")

    async def story() -> None:
        zygote = Zygote()
        with pytest.raises(ZygoteLost):
            await zygote.start()
        assert await zygote.wait() != 0

    asyncio.run(story())
