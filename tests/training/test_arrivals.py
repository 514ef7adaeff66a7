"""Processes agree on which start this is, whatever earlier starts left in the store."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from training.arrivals import count_start

PATIENCE = timedelta(seconds=60)


@pytest.fixture
def server() -> TCPStore:
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=PATIENCE)


def client(server: TCPStore) -> TCPStore:
    return TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False, timeout=PATIENCE)


def started(server: TCPStore, numbers: Iterable[int], count: int = 3) -> list[int]:
    """What the processes are told that arrive in this order."""
    with ThreadPoolExecutor(count) as pool:
        arriving = [pool.submit(count_start, client(server), number, count) for number in numbers]
        return [each.result() for each in arriving]


@pytest.mark.parametrize("numbers", [(0, 1, 2), (2, 1, 0)])
def test_all_are_told_the_same(server: TCPStore, numbers: tuple[int, ...]) -> None:
    assert [started(server, numbers) for _ in range(3)] == [[1, 1, 1], [2, 2, 2], [3, 3, 3]]


def test_the_dead_are_not_counted(server: TCPStore) -> None:
    # one that died before it was told, and one after
    server.queue_push("mno/arrivals", "here dead")
    server.queue_push("mno/arrivals", "told 0")
    assert started(server, (1, 2, 0)) == [1, 1, 1]
    assert server.queue_len("mno/arrivals") == 0
    # whoever leads next has a queue of those whom the last one did not wait for
    server.queue_push("mno/arrivals", "told 1")
    server.queue_push("mno/arrivals", "told 1")
    assert started(server, (2, 0, 1)) == [2, 2, 2]


def test_one_alone_waits_for_nobody(server: TCPStore) -> None:
    assert count_start(server, 0, 1) == 1
