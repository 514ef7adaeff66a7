"""Welch's test against one coded here from its definition, Holm's correction by hand."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.integrate import quad

from training.comparison.significance import (
    best_of,
    compare_with_best,
    geometric_mean,
    holm,
    least_difference,
    like_the_best,
)

GOOD, NEAR, BAD = (0.010, 0.011, 0.012), (0.011, 0.0125, 0.0135), (0.030, 0.033, 0.031)


def student_tail(t: float, freedom: float) -> float:
    """Probability that Student's t exceeds ``t`` in size, by integration of its density."""
    constant = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi) / math.gamma(freedom / 2)
    inside = quad(lambda x: constant * (1 + x * x / freedom) ** (-(freedom + 1) / 2), 0.0, abs(t))[0]
    return 1.0 - 2.0 * float(inside)


def welch(one: Sequence[float], other: Sequence[float]) -> float:
    """Welch (1947) with the degrees of freedom of Satterthwaite, for the logarithms."""
    a, b = ([math.log(value) for value in values] for values in (one, other))
    (m1, v1), (m2, v2) = ((sum(v) / len(v), _square_error(v)) for v in (a, b))
    freedom = (v1 + v2) ** 2 / (v1**2 / (len(a) - 1) + v2**2 / (len(b) - 1))
    return student_tail((m1 - m2) / math.sqrt(v1 + v2), freedom)


def _square_error(values: Sequence[float]) -> float:
    """Of the mean."""
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values)


def test_p_values_are_welchs_corrected_by_holm() -> None:
    found = compare_with_best({"bad": BAD, "good": GOOD, "near": NEAR})
    near, bad = welch(NEAR, GOOD), welch(BAD, GOOD)
    assert 0.05 < near < 1.0
    assert bad < 0.05 / 2
    assert math.isnan(found["good"])
    assert found["bad"] == pytest.approx(2 * bad)
    assert found["near"] == pytest.approx(near)
    assert like_the_best({"bad": BAD, "good": GOOD, "near": NEAR}) == {"good", "near"}


def test_the_factor_of_an_error_does_not_matter() -> None:
    errors = {"bad": BAD, "good": GOOD, "near": NEAR}
    found = compare_with_best(errors)
    larger = compare_with_best({name: [40.0 * value for value in values] for name, values in errors.items()})
    assert larger["near"] == pytest.approx(found["near"])
    assert larger["bad"] == pytest.approx(found["bad"])


def test_groups_of_different_size() -> None:
    found = compare_with_best({"one": GOOD, "other": BAD[:2]})
    assert found["other"] == pytest.approx(welch(BAD[:2], GOOD))


def test_holm_by_hand() -> None:
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1; the last may not fall below the one before
    assert found == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.6, "b": 0.7}) == pytest.approx({"a": 1.0, "b": 1.0})
    assert holm({}) == {}


def test_one_seed_is_not_tested() -> None:
    errors = {"one": (0.01,), "other": (0.5,)}
    assert all(math.isnan(value) for value in compare_with_best(errors).values())
    assert like_the_best(errors) == frozenset()
    assert best_of(errors) == "one"


def test_what_has_one_seed_leaves_the_others_to_be_tested() -> None:
    found = compare_with_best({"good": GOOD, "bad": BAD, "begun": (0.2,)})
    assert math.isnan(found["begun"])
    # one test, nothing to correct
    assert found["bad"] == pytest.approx(welch(BAD, GOOD))


@pytest.mark.parametrize("broken", [math.inf, math.nan])
def test_who_diverges_is_neither_best_nor_tested(broken: float) -> None:
    errors = {"diverged": (0.001, broken, 0.001), "good": GOOD, "bad": BAD}
    found = compare_with_best(errors)
    assert best_of(errors) == "good"
    assert math.isnan(found["diverged"])
    assert found["bad"] == pytest.approx(welch(BAD, GOOD))
    assert like_the_best(errors) == {"good"}


def test_when_all_diverge_there_is_no_best() -> None:
    errors = {"one": (math.inf, math.inf), "other": (math.inf, 0.1)}
    assert best_of(errors) is None
    assert all(math.isnan(value) for value in compare_with_best(errors).values())
    assert like_the_best(errors) == frozenset()
    assert best_of({}) is None


def test_without_scatter() -> None:
    same, more = (0.1, 0.1, 0.1), (0.3, 0.3, 0.3)
    assert compare_with_best({"best": same, "equal": same})["equal"] == 1.0
    assert compare_with_best({"best": same, "worse": more})["worse"] == 0.0
    # of one group only: Welch's test with the other one's degrees of freedom
    mean, error = np.log(BAD).mean(), np.log(BAD).std(ddof=1) / math.sqrt(3)
    expected = student_tail((mean - math.log(0.02)) / error, 2)
    assert compare_with_best({"best": (0.02,) * 3, "bad": BAD})["bad"] == pytest.approx(expected)


def test_an_error_of_zero_has_no_logarithm() -> None:
    errors = {"exact": (0.0, 0.0), "good": GOOD}
    assert best_of(errors) == "exact"
    assert all(math.isnan(value) for value in compare_with_best(errors).values())
    assert geometric_mean((0.0, 0.1))[0] == 0.0


def test_geometric_mean_and_its_interval() -> None:
    found = geometric_mean((1.0, 10.0, 100.0))
    assert found.value == pytest.approx(10.0)
    # logarithms to base 10: mean 1, standard deviation 1; Student's 97.5 % quantile of 2 degrees is 4.3027
    half = 4.302653 / math.sqrt(3)
    assert found.low == pytest.approx(10 ** (1 - half), rel=1e-5)
    assert found.high == pytest.approx(10 ** (1 + half), rel=1e-5)


def test_geometric_means_without_interval() -> None:
    single, diverged = geometric_mean((0.25,)), geometric_mean((0.1, math.inf, 0.0))
    assert single.value == pytest.approx(0.25)
    assert diverged.value == math.inf
    assert all(math.isnan(end) for found in (single, diverged) for end in (found.low, found.high))


@pytest.mark.parametrize(
    ("errors", "message"), [((), "at least one seed"), ((0.1, -0.2), "at least 0, got -0.2")]
)
def test_what_is_no_error(errors: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        geometric_mean(errors)


def test_least_difference() -> None:
    # Student's two-sided 5 % and 5 % / 5 quantiles of 4 degrees of freedom: 2.7764 and 4.6041
    assert least_difference(3, 1) == pytest.approx(2.776445 * math.sqrt(2 / 3), rel=1e-5)
    assert least_difference(3, 5) == pytest.approx(4.604095 * math.sqrt(2 / 3), rel=1e-5)


def test_least_difference_is_where_the_test_begins_to_tell() -> None:
    # three values of standard deviation 1, so far apart that they are just told apart, or just not
    spread = np.array([-1.0, 0.0, 1.0]) * 0.1
    for share, told in ((0.999, False), (1.001, True)):
        apart = share * least_difference(3, 1) * 0.1
        errors = {"one": np.exp(spread).tolist(), "other": np.exp(spread + apart).tolist()}
        assert (like_the_best(errors) == {"one"}) is told
