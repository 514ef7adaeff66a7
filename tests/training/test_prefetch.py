"""The next step's value is made while this one is used, and steps may be asked for in any order."""

import threading

import pytest

from training.prefetch import Prefetched


def test_each_step_has_its_own() -> None:
    values = Prefetched(lambda step: step**2)
    assert [values(step) for step in (0, 1, 2, 7, 8, 3, 3)] == [0, 1, 4, 49, 64, 9, 9]


def test_the_next_is_made_before_it_is_asked_for() -> None:
    made, here = {step: threading.Event() for step in range(3)}, threading.get_ident()
    threads = set()

    def make(step: int) -> int:
        threads.add(threading.get_ident())
        made[step].set()
        return step

    values = Prefetched(make)
    assert values(0) == 0
    # nobody has asked
    assert made[1].wait(60)
    assert values(1) == 1
    assert made[2].wait(60)
    assert here not in threads


def test_what_goes_wrong_is_told_to_who_asks() -> None:
    def make(step: int) -> int:
        if step == 1:
            raise ValueError("no step 1")
        return step

    values = Prefetched(make)
    assert values(0) == 0
    with pytest.raises(ValueError, match="no step 1"):
        values(1)
    assert values(2) == 2
