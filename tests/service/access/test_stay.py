"""The requests of a stream among those of its client. The tests move the clock."""

import pytest

from service.access.rate import RateLimits, RateSettings
from service.access.security import ANYBODY
from service.access.stay import Stay
from service.errors import RateLimited, Unauthenticated


class Clock:
    """Stands still until it is moved."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def limits_of(clock: Clock, **rate: float) -> RateLimits:
    settings = RateSettings.model_validate({**rate, "anonymous": True})
    return RateLimits(settings, clock=clock)


def stay_in(limits: RateLimits) -> Stay:
    return Stay(limits, lambda: ANYBODY, limits.enter(ANYBODY))


def is_full(limits: RateLimits) -> bool:
    try:
        with limits.enter(ANYBODY):
            return False
    except RateLimited:
        return True


def test_the_first_request_is_what_the_stream_was_let_in_for() -> None:
    clock = Clock()
    limits = limits_of(clock, requests_per_second=1, burst=3)
    stay = stay_in(limits)
    for _ in range(3):
        with stay.request():
            pass
    with pytest.raises(RateLimited) as refused, stay.request():
        pass
    assert refused.value.retry_after == 1
    clock.now += 1
    with stay.request():
        pass


def test_a_request_that_was_refused_leaves_no_trace() -> None:
    clock = Clock()
    limits = limits_of(clock, requests_per_second=1, burst=1, concurrent=2)
    stay = stay_in(limits)
    with stay.request():
        for _ in range(5):
            with pytest.raises(RateLimited), stay.request():
                pass
        clock.now += 1
        with stay.request():
            assert is_full(limits)
    clock.now += 1
    assert not is_full(limits)
    stay.release()


def test_a_stream_is_as_many_as_are_under_way_and_one_at_least() -> None:
    limits = limits_of(Clock(), concurrent=3)

    def room() -> int:
        """How many more are let in."""
        entries = []
        try:
            while True:
                entries.append(limits.enter(ANYBODY))
        except RateLimited:
            return len(entries)
        finally:
            for entry in entries:
                entry.release()

    stay = stay_in(limits)
    assert room() == 2
    first, second = stay.request(), stay.request()
    with first:
        assert room() == 2
        with second:
            assert room() == 1
            with stay.request():
                assert room() == 0
                with pytest.raises(RateLimited), stay.request():
                    pass
            assert room() == 1
        assert room() == 2
    assert room() == 2
    with stay.request():
        assert room() == 2
    stay.release()
    assert room() == 3


def test_who_may_ask_no_more_is_told_so() -> None:
    def nobody() -> None:
        raise Unauthenticated("revoked")

    limits = limits_of(Clock(), concurrent=1)
    stay = Stay(limits, nobody, limits.enter(ANYBODY))  # type: ignore[arg-type]
    with stay.request():
        pass
    with pytest.raises(Unauthenticated), stay.request():
        pass
    stay.release()
    assert not is_full(limits)


def test_who_has_no_limits_has_none_in_a_stream() -> None:
    limits = RateLimits(RateSettings(), clock=Clock())
    stay = stay_in(limits)
    with stay.request(), stay.request(), stay.request():
        pass
    stay.release()
