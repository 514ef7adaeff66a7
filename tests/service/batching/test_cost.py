"""What is learned of the time that batches take."""

import numpy as np
import pytest

from service.batching.cost import CostCurve


def learned(times: list[tuple[int, float]]) -> CostCurve:
    curve = CostCurve()
    for rows, seconds in times:
        curve.learn(rows, seconds)
    return curve


def test_nothing_is_known_at_first() -> None:
    assert CostCurve().seconds(8) == 0.0


def test_a_line_is_found_through_noise() -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(1, 33, 400)
    curve = learned([(int(n), (6e-3 + 0.5e-3 * n) * rng.uniform(0.9, 1.1)) for n in rows])
    assert curve.overhead == pytest.approx(6e-3, rel=0.2)
    assert curve.slope == pytest.approx(0.5e-3, rel=0.2)


def test_what_has_changed_is_learned_anew() -> None:
    curve = learned([(n, 1e-3 * n) for n in (1, 8) * 50] + [(n, 1e-2) for n in (1, 8) * 100])
    assert curve.seconds(1) == pytest.approx(1e-2, rel=0.05)
    assert curve.seconds(8) == pytest.approx(1e-2, rel=0.05)


def test_neither_part_is_negative() -> None:
    # two rows in one batch take longer than two batches
    shrinking = learned([(n, 1e-3 * n**2) for n in (1, 2, 4, 8) * 50])
    assert shrinking.overhead == pytest.approx(0.0, abs=1e-12)
    falling = learned([(n, 1e-2 / n) for n in (1, 2, 4, 8) * 50])
    assert falling.slope == 0.0


def test_while_all_batches_had_one_size_half_counts_as_the_fixed_part() -> None:
    curve = learned([(4, 8e-3)] * 20)
    assert curve.seconds(4) == pytest.approx(8e-3)
    assert curve.overhead == pytest.approx(4e-3)


def test_an_outlier_counts_little() -> None:
    curve = learned([(1, 1e-3)] * 20 + [(1, 60.0)])
    assert curve.seconds(1) < 2e-3


def test_work_is_that_of_whole_batches() -> None:
    curve = learned([(n, 1e-2 + 1e-3 * n) for n in (1, 8) * 100])
    assert curve.work(20, 8) == pytest.approx(3 * 1e-2 + 20 * 1e-3, rel=0.05)
