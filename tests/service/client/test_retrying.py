"""When the clients ask again, with a clock that the test turns."""

import math
from itertools import pairwise

import pytest

from service.client import ServiceError, Unreachable
from service.client.retrying import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    PATIENCE,
    Attempts,
    Patience,
    Retryable,
    seconds_of,
)

LOST = Retryable(Unreachable("refused"))


def refused(after: float | None = None) -> Retryable:
    return Retryable(ServiceError(503, {"type": "not-ready"}), after)


class Clock:
    """Stands still between the pauses."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def attempts(self, retries: int = 2, seconds: float = PATIENCE, deadline: float = math.inf) -> Attempts:
        return Attempts(retries, seconds, deadline, self)

    def lose(self, attempts: Attempts, until: float = math.inf) -> list[float]:
        """When a service is asked that is away until then [s], counted from its loss; the last gets it."""
        asked, lost = [0.0], self.now
        while asked[-1] < until:
            self.now += attempts.pause(LOST)
            asked.append(self.now - lost)
        return asked


def reached(away: float) -> list[float]:
    clock = Clock()
    return clock.lose(clock.attempts(), away)


@pytest.mark.parametrize("away", [0.0, 2.3, 3.0, 6.0, 19.9])
def test_a_service_that_is_back_within_seconds_is_reached(away: float) -> None:
    asked = reached(away)
    assert asked[-1] >= away
    # neither hammered meanwhile, nor found late
    assert len(asked) < 16
    assert asked[-1] <= 3 * away + FIRST_PAUSE


def test_pauses_double() -> None:
    asked = reached(PATIENCE)
    pauses = [after - before for before, after in pairwise(asked)]
    for number, pause in enumerate(pauses[:-1]):
        assert 0.5 * FIRST_PAUSE * 2**number <= pause + 1e-9
        assert pause <= FIRST_PAUSE * 2**number + 1e-9


def test_a_service_that_stays_away_is_asked_a_last_time_and_given_up() -> None:
    clock = Clock()
    attempts = clock.attempts(seconds=4.0)
    with pytest.raises(Unreachable, match="refused"):
        clock.lose(attempts)
    assert clock.now == pytest.approx(104.0)


def test_a_certificate_that_nobody_trusts_stays_so() -> None:
    with pytest.raises(Unreachable):
        Clock().attempts().pause(Retryable(Unreachable("OPENSSL_internal:CERTIFICATE_VERIFY_FAILED")))


def test_refusals_are_counted_and_come_back_when_they_are_asked_to() -> None:
    attempts = Clock().attempts(retries=3)
    assert 7.0 <= attempts.pause(refused(7.0)) <= 8.75
    assert attempts.pause(refused(0.0)) == 0.0
    assert LONGEST_PAUSE <= attempts.pause(refused(1e6)) <= 1.25 * LONGEST_PAUSE
    with pytest.raises(ServiceError, match="not-ready"):
        attempts.pause(refused(1.0))
    silent = Clock().attempts(retries=2)
    assert 0.25 <= silent.pause(refused()) <= 0.5
    assert 0.5 <= silent.pause(refused()) <= 1.0


def test_a_service_that_refuses_wasreached() -> None:
    clock = Clock()
    attempts = clock.attempts(seconds=4.0)
    clock.lose(attempts, 4.0)
    attempts.pause(refused(0.0))
    # lost anew, it has all its time again
    assert clock.lose(attempts, 4.0)[-1] == pytest.approx(4.0)


def test_without_retries_nothing_is_asked_again() -> None:
    for failure in (LOST, refused(0.0)):
        with pytest.raises(type(failure.error)):
            Clock().attempts(retries=0).pause(failure)


def test_a_deadline_ends_the_patience() -> None:
    for options, seconds in (({}, 5.0), ({"timeout_ms": 1e6}, 5.0), ({"timeout_ms": 0.0}, 0.0)):
        attempts = Patience(2, 5.0).attempts(options)
        if seconds:
            assert attempts.pause(LOST) > 0
        else:
            with pytest.raises(Unreachable):
                attempts.pause(LOST)


def test_nobody_waits_past_the_deadline_to_be_let_in() -> None:
    clock = Clock()
    attempts = clock.attempts(retries=5, deadline=10.0)
    clock.now += attempts.pause(refused(4.0))
    with pytest.raises(ServiceError, match="not-ready"):
        attempts.pause(refused(6.5))
    # the way there was in vain, not the deadline over
    assert attempts.pause(refused(1.0)) > 0
    clock.now += 6.0
    with pytest.raises(ServiceError):
        attempts.pause(refused())


def test_the_next_attempt_has_the_time_that_is_left() -> None:
    clock = Clock()
    attempts = clock.attempts(deadline=10.0)
    # what was asked for, to the digit
    clock.now += 1.0
    assert attempts.left == 10.0
    clock.now += attempts.pause(refused(2.0))
    assert 6.5 <= attempts.left <= 7.0
    assert clock.attempts().left == math.inf


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3", 3.0),
        ("0.5", 0.5),
        ("-1", 0.0),
        (None, None),
        ("", None),
        ("nan", None),
        ("inf", None),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
    ],
)
def test_what_retry_after_says(text: str | None, seconds: float | None) -> None:
    assert seconds_of(text) == seconds
