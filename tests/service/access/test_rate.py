"""What a token may ask, alone and over several fronts. The tests move the clock."""

import os
from collections.abc import Callable

import pytest
from pydantic import ValidationError

from service.access.rate import SLOTS, Ledger, RateLimits, RateSettings
from service.access.security import ANYBODY, Principal
from service.access.tokens import TokenRecord
from service.errors import Overloaded, RateLimited

DIGEST = "sha256:" + 32 * "0" + ":" + 64 * "0"


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def principal(name: str = "sim", **limits: float) -> Principal:
    record = TokenRecord.model_validate({"name": name, "hash": DIGEST, "scopes": ("solve",), **limits})
    return Principal(name, frozenset({"solve"}), record)


def let_in(limits: RateLimits, who: Principal, attempts: int) -> int:
    """How many of so many requests, one after the other, are let in."""
    count = 0
    for _ in range(attempts):
        try:
            with limits.enter(who):
                count += 1
        except RateLimited:
            pass
    return count


def test_a_burst_is_let_in_and_then_a_request_at_a_time(clock: Clock) -> None:
    limits, who = RateLimits(RateSettings(), clock=clock), principal(requests_per_second=2, burst=5)
    assert let_in(limits, who, 100) == 5
    clock.now += 0.25
    assert let_in(limits, who, 100) == 0
    clock.now += 0.25
    assert let_in(limits, who, 100) == 1
    clock.now += 1000
    assert let_in(limits, who, 100) == 5


def test_who_keeps_to_the_rate_is_never_refused(clock: Clock) -> None:
    limits, who = RateLimits(RateSettings(), clock=clock), principal(requests_per_second=0.5, burst=1)
    for _ in range(10):
        assert let_in(limits, who, 1) == 1
        clock.now += 2


def test_the_burst_is_that_of_a_second_unless_it_is_said(clock: Clock) -> None:
    limits = RateLimits(RateSettings(), clock=clock)
    assert let_in(limits, principal("one", requests_per_second=7), 100) == 7
    assert let_in(limits, principal("two", requests_per_second=0.1), 100) == 1


def test_a_refusal_says_when_to_come_again_and_then_one_is_let_in(clock: Clock) -> None:
    limits, who = RateLimits(RateSettings(), clock=clock), principal(requests_per_second=0.25)
    assert let_in(limits, who, 1) == 1
    with pytest.raises(RateLimited, match=r"the token sim may send 0.25 requests a second") as refusal:
        limits.enter(who)
    assert refusal.value.retry_after == 4
    # whoever knows how to answer an overload answers this, too
    assert isinstance(refusal.value, Overloaded)
    clock.now += refusal.value.retry_after
    assert let_in(limits, who, 2) == 1


def test_refused_requests_cost_their_client_nothing(clock: Clock) -> None:
    limits, who = RateLimits(RateSettings(), clock=clock), principal(requests_per_second=1)
    assert let_in(limits, who, 1000) == 1
    clock.now += 1
    assert let_in(limits, who, 1) == 1


def test_so_many_are_under_way_and_an_entry_counts_until_it_is_released(clock: Clock) -> None:
    limits, who = RateLimits(RateSettings(), clock=clock), principal(concurrent=2)
    first, second = limits.enter(who), limits.enter(who)
    with pytest.raises(RateLimited, match="has 2 requests under way") as refusal:
        limits.enter(who)
    assert refusal.value.retry_after == 1
    first.release()
    first.release()
    third = limits.enter(who)
    assert let_in(limits, who, 1) == 0
    second.release()
    third.release()
    assert let_in(limits, who, 10) == 10


def test_whoever_is_over_their_limits_is_named_to_the_metrics(clock: Clock) -> None:
    refused: list[str] = []
    limits = RateLimits(RateSettings(), clock=clock, refused=refused.append)
    let_in(limits, principal(requests_per_second=1), 3)
    assert refused == ["sim", "sim"]


def test_a_request_that_breaks_is_no_longer_under_way(clock: Clock) -> None:
    limits, who = RateLimits(RateSettings(), clock=clock), principal(concurrent=1)

    def breaks() -> None:
        with limits.enter(who):
            raise ArithmeticError

    for _ in range(3):
        with pytest.raises(ArithmeticError):
            breaks()


def test_clients_do_not_use_up_each_others_limits(clock: Clock) -> None:
    limits = RateLimits(RateSettings(requests_per_second=3), clock=clock)
    assert let_in(limits, principal("one"), 10) == 3
    assert let_in(limits, principal("two"), 10) == 3


def test_a_token_s_own_limits_go_before_the_common_ones(clock: Clock) -> None:
    limits = RateLimits(RateSettings(requests_per_second=3, burst=4), clock=clock)
    assert let_in(limits, principal("common"), 10) == 4
    assert let_in(limits, principal("own", requests_per_second=1, burst=2), 10) == 2


def test_a_rate_of_one_s_own_comes_with_a_burst_of_one_s_own(clock: Clock) -> None:
    limits = RateLimits(RateSettings(requests_per_second=3, burst=40), clock=clock)
    assert let_in(limits, principal("own", requests_per_second=2), 100) == 2
    assert let_in(limits, principal("common", concurrent=5), 100) == 40


def test_who_has_no_token_is_limited_only_where_the_settings_say_so(clock: Clock) -> None:
    assert let_in(RateLimits(RateSettings(requests_per_second=1), clock=clock), ANYBODY, 50) == 50
    limits = RateLimits(RateSettings(requests_per_second=1, anonymous=True), clock=clock)
    assert let_in(limits, ANYBODY, 50) == 1
    with pytest.raises(RateLimited, match="everybody without a token together"):
        limits.enter(ANYBODY)


def test_a_token_that_was_changed_has_its_new_limits(clock: Clock) -> None:
    limits = RateLimits(RateSettings(), clock=clock)
    assert let_in(limits, principal(concurrent=1), 10) == 10
    held = limits.enter(principal(concurrent=1))
    assert let_in(limits, principal(concurrent=2), 1) == 1
    assert let_in(limits, principal(concurrent=1), 1) == 0
    held.release()
    assert let_in(limits, principal(), 10) == 10


@pytest.fixture
def fronts(clock: Clock) -> Callable[[int, RateSettings], list[RateLimits]]:
    """So many fronts that count together."""

    def make(count: int, settings: RateSettings) -> list[RateLimits]:
        shared = Ledger.shared(count)
        ledgers = [Ledger.mapped(shared.fileno(), front) for front in range(count)]
        os.close(shared.fileno())
        return [RateLimits(settings, ledger, clock) for ledger in ledgers]

    return make


def test_fronts_keep_one_count_of_what_is_under_way(
    fronts: Callable[[int, RateSettings], list[RateLimits]],
) -> None:
    limits, who = fronts(3, RateSettings(concurrent=2)), principal()
    held = [limits[0].enter(who), limits[1].enter(who)]
    assert [let_in(each, who, 1) for each in limits] == [0, 0, 0]
    held[0].release()
    assert let_in(limits[2], who, 1) == 1


def test_fronts_let_in_the_rate_of_one(
    fronts: Callable[[int, RateSettings], list[RateLimits]], clock: Clock
) -> None:
    limits, who = fronts(2, RateSettings(requests_per_second=10)), principal()
    for each in limits:
        let_in(each, who, 100)
    total = 0
    for _ in range(100):
        clock.now += 0.1
        total += sum(let_in(each, who, 1) for each in limits)
    assert total == 100


def test_a_front_that_is_asked_later_knows_what_was_sent_to_another(
    fronts: Callable[[int, RateSettings], list[RateLimits]], clock: Clock
) -> None:
    limits, who = fronts(3, RateSettings(requests_per_second=1, burst=5)), principal()
    assert let_in(limits[0], who, 3) == 3
    assert let_in(limits[1], who, 10) == 2
    assert let_in(limits[2], who, 10) == 0
    clock.now += 1
    assert let_in(limits[2], who, 10) == 1


def test_a_front_that_was_not_asked_for_long_refuses_nobody_for_it(
    fronts: Callable[[int, RateSettings], list[RateLimits]], clock: Clock
) -> None:
    limits, who = fronts(2, RateSettings(requests_per_second=1, burst=5)), principal()
    assert let_in(limits[1], who, 1) == 1
    for _ in range(100):
        clock.now += 1
        assert let_in(limits[0], who, 1) == 1
    clock.now += 1
    assert let_in(limits[1], who, 10) == 5


def test_what_a_front_that_died_had_under_way_is_forgotten(clock: Clock) -> None:
    shared = Ledger.shared(2)
    settings, who = RateSettings(concurrent=2), principal()
    alive = RateLimits(settings, Ledger.mapped(shared.fileno(), 0), clock)
    died = RateLimits(settings, Ledger.mapped(shared.fileno(), 1), clock)
    alive.enter(who)
    died.enter(who)
    assert let_in(alive, who, 1) == 0
    restarted = RateLimits(settings, Ledger.mapped(shared.fileno(), 1), clock)
    assert let_in(restarted, who, 1) == 1
    alive.enter(who)
    assert let_in(restarted, who, 1) == 0
    os.close(shared.fileno())


def test_clients_whose_slots_collide_have_slots_of_their_own() -> None:
    ledger = Ledger.private()
    slots = {ledger.slot_of(key, 7) for key in (1, 2, 3)}
    assert slots == {7, 8, 9}
    assert [ledger.slot_of(key, 7) for key in (1, 2, 3)] == [7, 8, 9]


def test_a_full_ledger_shares_slots_and_goes_on() -> None:
    ledger = Ledger.private()
    assert len({ledger.slot_of(key, 5) for key in range(1, SLOTS + 1)}) == SLOTS
    assert ledger.slot_of(SLOTS + 1, 5) in range(SLOTS)


def test_a_private_ledger_cannot_be_passed_on() -> None:
    with pytest.raises(ValueError, match="expected a shared ledger"):
        Ledger.private().fileno()


@pytest.mark.parametrize("name", ["requests_per_second", "burst", "concurrent"])
def test_limits_are_positive(name: str) -> None:
    with pytest.raises(ValidationError):
        RateSettings.model_validate({name: 0})
