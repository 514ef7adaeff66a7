"""Who gets the canary: an exact share in the limit, and always the same ones."""

import math

import pytest

from model_store import Reference
from service.versions.routing import Route, available, goes_to_canary, mentioned

KEYS = [f"request-{number}" for number in range(20_000)]


def route(weight: float, name: str = "darcy", canary: int | None = 4) -> Route:
    return Route(name=name, main=3, canary=canary, weight=weight)


@pytest.mark.parametrize("weight", [0.0, 0.01, 0.05, 0.5, 1.0])
def test_the_canary_gets_its_share_of_the_keys(weight: float) -> None:
    found = sum(goes_to_canary(route(weight), key) for key in KEYS)
    # four standard deviations of a binomial distribution
    assert abs(found - weight * len(KEYS)) <= 4 * math.sqrt(len(KEYS) * weight * (1 - weight))


def test_a_key_goes_the_same_way_each_time_and_stays_when_the_share_grows() -> None:
    small, large = route(0.05), route(0.2)
    chosen = {key for key in KEYS if goes_to_canary(small, key)}
    assert chosen == {key for key in KEYS if goes_to_canary(small, key)}
    assert chosen < {key for key in KEYS if goes_to_canary(large, key)}


def test_the_first_to_try_one_model_are_not_the_first_to_try_another() -> None:
    one = {key for key in KEYS if goes_to_canary(route(0.5), key)}
    other = {key for key in KEYS if goes_to_canary(route(0.5, name="shallow_water"), key)}
    assert abs(len(one & other) / len(KEYS) - 0.25) < 0.02


def test_without_a_canary_nobody_gets_one() -> None:
    assert not any(goes_to_canary(route(1.0, canary=None), key) for key in KEYS[:100])


def test_what_is_not_loaded_changes_nothing() -> None:
    present = {"darcy": Route(name="darcy", main=1), "gone": Route(name="gone", main=1)}
    wanted = {
        "darcy": Route(name="darcy", main=2, canary=3, weight=0.5),
        "new": Route(name="new", main=1),
    }
    loaded = [Reference("darcy", 1), Reference("gone", 1)]
    # version 2 is not there yet; `gone` is wanted no more, `new` cannot be served yet
    assert available(wanted, present, loaded) == {"darcy": present["darcy"]}
    assert available(wanted, present, [*loaded, Reference("darcy", 2)]) == {
        "darcy": Route(name="darcy", main=2)
    }


def test_a_canary_or_shadow_that_is_not_loaded_is_left_out() -> None:
    whole = Route(name="darcy", main=1, canary=2, weight=0.25, shadow=3)
    loaded = [Reference("darcy", number) for number in (1, 2, 3)]
    assert available({"darcy": whole}, {}, loaded) == {"darcy": whole}
    assert available({"darcy": whole}, {}, loaded[:1]) == {"darcy": Route(name="darcy", main=1)}
    assert available({"darcy": whole}, {}, [loaded[0], loaded[2]])["darcy"].shadow == 3
    assert available({"darcy": whole}, {}, loaded[1:]) == {}


def test_every_version_of_a_table_is_mentioned_once() -> None:
    table = {
        "darcy": Route(name="darcy", main=1, canary=2, weight=0.1, shadow=2),
        "darcy@production": Route(name="darcy", main=1),
    }
    assert list(mentioned(table)) == [Reference("darcy", 1), Reference("darcy", 2)]


def test_a_route_reads_as_what_it_means() -> None:
    assert str(Route(name="darcy", main=3)) == "darcy@3"
    assert str(Route(name="darcy", main=3, canary=4, weight=0.05, shadow=5)) == "darcy@3, 5 % 4, shadow 5"
