"""The table of the batching benchmark, at the places that decided; its clock is simulated, so it holds."""

from functools import partial

import pytest

from benchmarks.batching import COSTS, RULES, Cell, closed_loop, measure, open_loop


def cell(rule: str, load: object, costs: str = "overhead") -> Cell:
    return measure(COSTS[costs], RULES[rule], load, seconds=1.0, seed=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("clients", [4, 8, 16])
def test_cohorts_are_joined(clients: int) -> None:
    load = partial(closed_loop, clients)
    ours, greedy = cell("returners", load), cell("greedy", load)
    assert ours.rate > 1.08 * greedy.rate
    assert ours.p50 < 0.93 * greedy.p50
    assert ours.batch > 1.8 * greedy.batch


@pytest.mark.parametrize("clients", [1, 2, 32, 64])
def test_where_there_is_nothing_to_join_nothing_is_lost(clients: int) -> None:
    load = partial(closed_loop, clients)
    assert cell("returners", load).rate > 0.97 * cell("greedy", load).rate


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_independent_clients_wait_for_nobody(share: float) -> None:
    load = partial(open_loop, share * 32 / COSTS["overhead"][32])
    ours, greedy, mark = (cell(rule, load) for rule in ("returners", "greedy", "high-water mark"))
    assert ours.p50 <= 1.01 * greedy.p50
    assert ours.p99 <= 1.01 * greedy.p99
    # the rule that was tried first pays for company that does not come
    assert mark.p50 > 1.03 * greedy.p50


@pytest.mark.parametrize("clients", [1, 8, 32])
def test_a_model_without_a_fixed_part_is_not_held(clients: int) -> None:
    load = partial(closed_loop, clients)
    assert cell("returners", load, "null").rate > 0.97 * cell("greedy", load, "null").rate


def test_the_same_seed_gives_the_same_table() -> None:
    load = partial(closed_loop, 8)
    assert cell("returners", load) == cell("returners", load)
