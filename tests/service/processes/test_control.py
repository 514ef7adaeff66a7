"""Questions between processes, and their answers."""

import asyncio
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from service.errors import LoadFailed, UnknownModel, WorkerLost, WorkFailed
from service.processes.control import PIECE, Link, LinkLost, answer_questions
from service.workers.lane import BlockingLane, lane_pair


async def answer(what: str, arguments: Mapping[str, Any]) -> Any:
    match what:
        case "echo":
            return arguments["value"]
        case "unknown":
            raise UnknownModel("no such model")
        case "failed":
            raise LoadFailed("it does not load")
        case "given up":
            raise asyncio.CancelledError
        case "never":
            await asyncio.Event().wait()
    raise ZeroDivisionError(what)


def linked(story: Callable[[Link, Link], Any]) -> None:
    async def told() -> None:
        one, other = lane_pair()
        asking = Link(one, lambda *_: None, answer, lambda: None)
        answering = Link(other, lambda *_: None, answer, lambda: None)
        async with asyncio.timeout(30):
            await story(asking, answering)
        asking.close()
        answering.close()
        await asyncio.sleep(0)

    asyncio.run(told())


@pytest.mark.parametrize("value", [None, {"a": [1, "ü"]}, "x" * PIECE])
def test_an_answer_is_what_was_answered(value: Any) -> None:
    async def story(asking: Link, _: Link) -> None:
        assert await asking.ask("echo", {"value": value}) == value

    linked(story)


def test_a_long_answer_comes_in_pieces() -> None:
    async def long(what: str, _: Mapping[str, Any]) -> Any:
        return what * 3 * PIECE

    async def story() -> None:
        one, other = lane_pair()
        asking = Link(one, lambda *_: None, answer, lambda: None)
        answering = Link(other, lambda *_: None, long, lambda: None)
        assert await asking.ask("ü") == "ü" * 3 * PIECE
        asking.close()
        answering.close()

    asyncio.run(story())


def test_both_sides_may_ask_at_the_same_time() -> None:
    async def story(asking: Link, answering: Link) -> None:
        asked = [link.ask("echo", {"value": n}) for n in range(20) for link in (asking, answering)]
        assert await asyncio.gather(*asked) == [n for n in range(20) for _ in range(2)]

    linked(story)


@pytest.mark.parametrize(
    ("what", "kind"),
    [("unknown", UnknownModel), ("failed", LoadFailed), ("given up", WorkerLost), ("else", WorkFailed)],
)
def test_a_fault_arrives_as_what_it_was(what: str, kind: type[Exception]) -> None:
    async def story(asking: Link, _: Link) -> None:
        with pytest.raises(kind):
            await asking.ask(what)

    linked(story)


def test_who_waits_for_a_process_that_goes_hears_of_it() -> None:
    async def story(asking: Link, answering: Link) -> None:
        asked = asyncio.ensure_future(asking.ask("never"))
        await asyncio.sleep(0)
        answering.close()
        with pytest.raises(LinkLost):
            await asked
        with pytest.raises(LinkLost):
            await asking.ask("echo", {"value": 1})

    linked(story)


def test_who_asks_and_leaves_does_not_disturb_the_next() -> None:
    async def story(asking: Link, _: Link) -> None:
        asked = asyncio.ensure_future(asking.ask("echo", {"value": 1}))
        await asyncio.sleep(0)
        asked.cancel()
        assert await asking.ask("echo", {"value": 2}) == 2

    linked(story)


def test_a_process_that_may_wait_answers_one_question_after_another() -> None:
    def blocking(what: str, arguments: Mapping[str, Any]) -> Any:
        if what == "broken":
            raise UnknownModel("no such model")
        return arguments

    async def story() -> None:
        one, other = lane_pair()
        link = Link(one, lambda *_: None, answer, lambda: None)
        lane = BlockingLane(other)
        thread = threading.Thread(target=answer_questions, args=(lane, blocking))
        thread.start()
        assert await link.ask("echo", {"value": 1}) == {"value": 1}
        with pytest.raises(UnknownModel):
            await link.ask("broken")
        assert await link.ask("echo", {"value": 2}) == {"value": 2}
        link.close()
        await asyncio.to_thread(thread.join, 30)
        lane.close()
        assert not thread.is_alive()

    asyncio.run(story())
