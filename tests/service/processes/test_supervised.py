"""Processes that ought to live: those that do not start, and those that die."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from played import Actor, nothing

from service.processes import supervised
from service.processes.control import Link, LinkLost
from service.processes.supervised import LONGEST_PAUSE, Hung, Kept, StartFailed, pause_before_start
from service.processes.zygote import Child, ForkFailed
from service.workers.lane import lane_pair


def run(story: Callable[[Actor, Kept], Any]) -> None:
    async def told() -> None:
        actor = Actor()
        kept = Kept("actor", actor.launch, actor.events)
        async with asyncio.timeout(30):
            await story(actor, kept)
        kept.kill()
        await kept.stop({"drain": True}, 10)
        actor.close()

    asyncio.run(told())


async def never(*_: object) -> None:
    await asyncio.Event().wait()


async def seven(*_: object) -> int:
    return 7


async def begin(actor: Actor, kept: Kept) -> None:
    starting = asyncio.ensure_future(kept.start())
    await actor.next()
    await actor.heard(1)
    assert kept.link is None
    actor.say({"ready": {}})
    await starting
    assert kept.link is not None


def test_a_process_is_ready_when_it_says_so_and_ends_when_it_is_told() -> None:
    async def story(actor: Actor, kept: Kept) -> None:
        await begin(actor, kept)
        assert await kept.stop({"drain": True}, 30)
        assert actor.told == [{"begin": True}, {"drain": True}]
        assert actor.seen == ["ready"]
        assert kept.pid is None

    run(story)


@pytest.mark.parametrize("says", [{"failed": "no such file"}, None])
def test_a_process_that_does_not_start_the_first_time_is_not_started_again(says: Any) -> None:
    async def story(actor: Actor, kept: Kept) -> None:
        starting = asyncio.ensure_future(kept.start())
        await actor.next()
        await actor.heard(1)
        if says:
            actor.say(says)
        actor.end(1)
        with pytest.raises(StartFailed, match="no such file" if says else "status 1"):
            await starting
        assert len(actor.children) == 1

    run(story)


def test_a_process_that_dies_is_started_again() -> None:
    async def story(actor: Actor, kept: Kept) -> None:
        await begin(actor, kept)
        for _ in range(2):
            actor.end(-9)
            await actor.next()
            with pytest.raises(LinkLost):
                await kept.ask("anything")
            actor.say({"ready": {}})
            while kept.link is None:
                await asyncio.sleep(0)
        assert actor.seen == ["ready", "died"] * 2 + ["ready"]
        assert kept.restarts == 2
        assert kept.trouble is None
        kept.kill()

    run(story)


def test_a_process_that_keeps_dying_is_spoken_of() -> None:
    async def story(actor: Actor, kept: Kept) -> None:
        await begin(actor, kept)
        actor.end(-9)
        await actor.next()
        await actor.heard(2)
        actor.say({"failed": "no memory"})
        actor.end(1)
        await actor.next()
        assert kept.trouble is not None
        assert "2 times in a row: no memory" in kept.trouble
        kept.kill()

    run(story)


def test_who_asked_a_process_that_dies_hears_of_it() -> None:
    async def story(actor: Actor, kept: Kept) -> None:
        await begin(actor, kept)
        asked = asyncio.ensure_future(kept.ask("anything"))
        await asyncio.sleep(0)
        actor.end(-9)
        with pytest.raises(LinkLost):
            await asked
        kept.kill()

    run(story)


def test_a_process_that_does_not_end_is_killed() -> None:
    async def story(actor: Actor, kept: Kept) -> None:
        await begin(actor, kept)
        assert not await kept.stop({"else": True}, 0.01)
        assert actor.told[-1] == {"else": True}

    run(story)


def test_one_death_costs_no_time_and_many_not_more_than_the_longest_pause() -> None:
    pauses = [pause_before_start(deaths) for deaths in range(1, 40)]
    assert pauses[0] == 0
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE


def test_a_lane_that_is_closed_is_no_error_of_who_tells() -> None:
    async def story() -> None:
        ours, theirs = lane_pair()
        link = Link(ours, lambda *_: None, nothing, lambda: None)
        theirs.close()
        for _ in range(3):
            link.tell({"anything": 1})
            await asyncio.sleep(0)
        with pytest.raises(LinkLost):
            await link.ask("anything")
        link.close()

    asyncio.run(story())


def test_a_process_that_is_ended_is_started_again() -> None:
    async def story(actor: Actor, kept: Kept) -> None:
        await begin(actor, kept)
        kept.end()
        await actor.next()
        assert actor.seen == ["ready", "died"]
        kept.kill()

    run(story)


def test_a_process_that_cannot_be_forked_does_not_start() -> None:
    async def story() -> None:
        async def launch() -> Child:
            raise ForkFailed("BlockingIOError: too many processes")

        actor = Actor()
        kept = Kept("actor", launch, actor.events)
        with pytest.raises(StartFailed, match="cannot be started: BlockingIOError"):
            await kept.start()

    asyncio.run(story())


@pytest.mark.parametrize("event", ["began", "ready"])
def test_a_mistake_in_what_is_called_ends_the_wait_for_the_start(event: str) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError(event)

    async def story() -> None:
        actor = Actor()
        mistaken: dict[str, Any] = {event: broken}
        kept = Kept("actor", actor.launch, replace(actor.events, **mistaken))
        starting = asyncio.ensure_future(kept.start())
        await actor.next()
        actor.say({"ready": {}})
        with pytest.raises(StartFailed, match=f"ZeroDivisionError: {event}"):
            await starting
        assert kept.pid is None
        actor.close()

    asyncio.run(story())


def test_a_process_that_is_never_ready_is_killed() -> None:
    async def story() -> None:
        actor = Actor()
        kept = Kept("actor", actor.launch, actor.events, 0.01)
        with pytest.raises(StartFailed, match=r"not ready within 0\.01 s"):
            await kept.start()
        assert actor.children[0][0].ended
        actor.close()

    asyncio.run(story())


def test_trouble_that_is_over_is_spoken_of_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised, "pause_before_start", lambda _: 0.0)

    async def story(actor: Actor, kept: Kept) -> None:
        await begin(actor, kept)
        for _ in range(4):
            actor.end(-9)
            await actor.next()
        assert kept.trouble is not None
        monkeypatch.setattr(supervised, "SETTLED", 0.0)
        actor.say({"ready": {}})
        while "settled" not in actor.seen:
            await asyncio.sleep(0)
        assert kept.trouble is None
        kept.kill()

    run(story)


def test_who_insists_asks_the_next_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised, "pause_before_start", lambda _: 0.0)

    async def story(actor: Actor, kept: Kept) -> None:
        await begin(actor, kept)
        actor.answer = never
        asked = asyncio.ensure_future(kept.insist("what", {}, patience=30, limit=30))
        while "asked" not in actor.seen:
            await asyncio.sleep(0)
        actor.answer = seven
        actor.end(-9)
        await actor.next()
        actor.say({"ready": {}})
        assert await asked == 7
        kept.kill()

    run(story)


def test_who_insists_does_not_wait_for_ever() -> None:
    async def story(actor: Actor, kept: Kept) -> None:
        await begin(actor, kept)
        actor.end(-9)
        await actor.next()
        with pytest.raises(LinkLost):
            await kept.insist("what", {}, patience=0.01, limit=30)
        kept.kill()

    run(story)


def test_a_process_that_does_not_answer_is_killed_and_spoken_of() -> None:
    async def story(actor: Actor, kept: Kept) -> None:
        actor.answer = never
        await begin(actor, kept)
        with pytest.raises(Hung):
            await kept.insist("what", {}, patience=30, limit=0.01)
        await actor.next()
        assert kept.trouble == "actor: did not answer within 0.01 s"
        assert actor.seen == ["ready", "asked", "died"]
        kept.kill()

    run(story)
