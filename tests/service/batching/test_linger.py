"""When a batch is held; ``tests/benchmarks/test_batching.py`` shows what it gains."""

import math

import pytest

from service.batching.linger import Greedy, Returners

LONGEST = 2e-3


def rounds(linger: Returners, rows: int, returning: int, count: int = 20) -> float:
    """Answers ``rows`` clients again and again, of whom some are back within a millisecond; the time then."""
    now = 0.0
    for _ in range(count):
        linger.answered(rows, now, overhead=1e-2)
        linger.left(now)
        for n in range(returning):
            linger.arrived(1, now + 1e-4 * n)
        now += 1e-2
    return now


def test_who_was_answered_and_comes_back_is_waited_for() -> None:
    linger = Returners(LONGEST)
    now = rounds(linger, 8, 8)
    linger.answered(8, now, overhead=1e-2)
    linger.left(now)
    assert linger.until(1, now) == pytest.approx(now + LONGEST)
    for _ in range(7):
        linger.arrived(1, now + 1e-4)
    assert linger.until(7, now) == pytest.approx(now + LONGEST)
    linger.arrived(1, now + 2e-4)
    assert linger.until(8, now) == -math.inf


def test_nobody_is_waited_for_where_few_come_back() -> None:
    linger = Returners(LONGEST)
    now = rounds(linger, 8, 4)
    linger.answered(8, now, overhead=1e-2)
    linger.left(now)
    assert linger.until(1, now) == -math.inf


def test_a_lone_client_is_never_held() -> None:
    linger = Returners(LONGEST)
    now = rounds(linger, 1, 1)
    linger.answered(1, now, overhead=1e-2)
    linger.left(now)
    linger.arrived(1, now + 1e-4)
    assert linger.until(1, now + 1e-4) == -math.inf


def test_no_batch_is_held_for_longer_than_half_of_what_it_saves() -> None:
    linger = Returners(LONGEST)
    now = rounds(linger, 8, 8)
    linger.answered(8, now, overhead=1e-4)
    linger.left(now)
    assert linger.until(1, now) == pytest.approx(now + 5e-5)


def test_while_answers_are_written_those_who_come_back_are_waited_for() -> None:
    linger = Returners(LONGEST)
    now = rounds(linger, 8, 8)
    linger.answered(8, now, overhead=1e-2)
    assert linger.until(1, now + 1.0) == math.inf
    linger.left(now + 1.0)
    assert linger.until(1, now + 1.0) == pytest.approx(now + 1.0 + LONGEST)


def test_what_is_greedy_holds_nothing() -> None:
    linger = Greedy()
    linger.answered(8, 0.0, 1e-2)
    linger.left(0.0)
    linger.arrived(1, 0.0)
    assert linger.until(1, 0.0) == -math.inf
