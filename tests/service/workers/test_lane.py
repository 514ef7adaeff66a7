"""Messages between processes: whole, in order, of any length, with descriptors, told apart from an end."""

import asyncio
import os
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from service.workers.lane import MESSAGE_BYTES, BadMessage, BlockingLane, Lane, LaneClosed, lane_pair


def repeat(lane: BlockingLane, times: int) -> None:
    for _ in range(times):
        lane.send(lane.receive()[0])


class Ear:
    """Keeps what a lane hears."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[tuple[dict[str, Any], list[int]]] = asyncio.Queue()
        self.lost = asyncio.Event()

    def lane(self, end: socket.socket) -> Lane:
        return Lane(end, lambda message, fds: self.heard.put_nowait((message, fds)), self.lost.set)


def test_messages_arrive_whole_and_in_order_whatever_their_length() -> None:
    messages = [
        {"n": n, "text": "ä" * length} for n, length in enumerate([0, 10, 20_000, 70_000, 3, 1_000_000])
    ]

    async def story() -> list[dict[str, Any]]:
        ear = Ear()
        ours, theirs = lane_pair()
        lane, other = ear.lane(ours), BlockingLane(theirs)
        # nobody reads yet: the long one does not fit into the socket
        for message in messages:
            lane.send(message)
        echo = threading.Thread(target=repeat, args=(other, len(messages)))
        echo.start()
        heard = [(await ear.heard.get())[0] for _ in messages]
        echo.join()
        lane.close()
        other.close()
        assert not ear.lost.is_set()
        return heard

    assert asyncio.run(story()) == messages


def test_what_is_too_long_is_refused_before_anything_is_sent() -> None:
    ours, theirs = map(BlockingLane, lane_pair())
    with pytest.raises(ValueError, match="split it"):
        ours.send({"text": "x" * MESSAGE_BYTES})
    with pytest.raises(ValueError, match="4 descriptors, got 10 and 5"):
        ours.send({"n": 1234}, [0] * 5)
    ours.send({"n": 1})
    assert theirs.receive()[0] == {"n": 1}
    ours.close()
    theirs.close()


@pytest.mark.parametrize("crowded", [False, True])
def test_descriptors_travel_and_belong_to_the_receiver(crowded: bool) -> None:
    async def story() -> None:
        ear = Ear()
        ours, theirs = lane_pair()
        lane, other = ear.lane(ours), BlockingLane(theirs)
        if crowded:
            lane.send({"text": "x" * 1_000_000})
        read, write = os.pipe()
        lane.send({"pipe": True}, [write])
        os.close(write)
        got: list[Any] = []
        reader = threading.Thread(target=lambda: got.extend(other.receive() for _ in range(1 + crowded)))
        reader.start()
        await asyncio.to_thread(reader.join)
        message, (fd,) = got[-1]
        assert message == {"pipe": True}
        os.write(fd, b"hello")
        os.close(fd)
        assert os.read(read, 10) == b"hello"
        # nobody else holds the writing end
        assert os.read(read, 10) == b""
        os.close(read)
        lane.close()
        other.close()

    asyncio.run(story())


def test_what_is_no_message_is_dropped_and_the_next_one_arrives(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        ear = Ear()
        ours, theirs = lane_pair()
        lane = ear.lane(ours)
        for bad in (b"\0nonsense", b"\0[1]", b"\0"):
            theirs.send(bad)
        theirs.send(b'\0{"n": 2}')
        assert await ear.heard.get() == ({"n": 2}, [])
        lane.close()
        theirs.close()

    asyncio.run(story())
    assert len(caplog.records) == 3


def test_a_blocking_end_says_what_is_no_message() -> None:
    ours, theirs = lane_pair()
    lane = BlockingLane(ours)
    theirs.send(b"\0\xff")
    with pytest.raises(BadMessage, match="expected a JSON object"):
        lane.receive()
    theirs.close()
    with pytest.raises(LaneClosed):
        lane.receive()
    with pytest.raises(LaneClosed):
        lane.send({})
    lane.close()


def test_the_end_is_heard_after_what_was_said() -> None:
    async def story() -> None:
        ear = Ear()
        ours, theirs = lane_pair()
        lane, other = ear.lane(ours), BlockingLane(theirs)
        other.send({"last": "word"})
        other.close()
        await ear.lost.wait()
        assert ear.heard.get_nowait() == ({"last": "word"}, [])
        assert lane.closed
        with pytest.raises(LaneClosed):
            lane.send({})
        lane.close()

    asyncio.run(story())


def test_who_finishes_still_hears() -> None:
    async def story() -> None:
        ear = Ear()
        ours, theirs = lane_pair()
        lane, other = ear.lane(ours), BlockingLane(theirs)
        lane.send({"n": 1})
        lane.finish()
        assert other.receive()[0] == {"n": 1}
        with pytest.raises(LaneClosed):
            other.receive()
        other.send({"n": 2})
        assert (await ear.heard.get())[0] == {"n": 2}
        other.close()
        await ear.lost.wait()

    asyncio.run(story())


@contextmanager
def no_more_files() -> Iterator[None]:
    """This process can open nothing."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_process_that_can_open_nothing_hangs_up_when_descriptors_come(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ours, theirs = lane_pair()
    lane, other = BlockingLane(ours), BlockingLane(theirs)
    other.send({"pipe": True}, [0])
    with no_more_files(), pytest.raises(LaneClosed):
        lane.receive()
    assert "too many open files" in caplog.text
    lane.close()
    other.close()

    async def story() -> None:
        ear = Ear()
        ours, theirs = lane_pair()
        lane = ear.lane(ours)
        other = BlockingLane(theirs)
        other.send({"n": 1})
        other.send({"pipe": True}, [0, 0])
        with no_more_files():
            await ear.lost.wait()
        assert ear.heard.get_nowait() == ({"n": 1}, [])
        assert ear.heard.empty()
        assert lane.closed
        other.close()

    asyncio.run(story())


def test_what_cannot_wait_with_its_descriptors_ends_the_lane() -> None:
    async def story() -> None:
        ear = Ear()
        ours, theirs = lane_pair()
        lane = ear.lane(ours)
        # so that the next one has to wait
        lane.send({"text": "x" * 1_000_000})
        with no_more_files(), pytest.raises(LaneClosed):
            lane.send({"pipe": True}, [0])
        await ear.lost.wait()
        assert lane.closed
        theirs.close()

    asyncio.run(story())
