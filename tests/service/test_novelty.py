"""What an input is compared with, what decides, and what is said about it."""

from typing import Any

import numpy as np
import pytest

from problems import ErrorBound, variation
from service.errors import InvalidField
from service.novelty import UNUSUAL, Novelty, outside, require_in_range, state_novelty, steady_novelty
from service.versions.served import ServedVersion

STATES = {"depth_max": 3.0, "depth_min_min": 0.5, "depth_max_max": 2.5, "slope_min": -1.0}
FIELDS = {"contrast_min": 1.0, "contrast_max": 10.0, "jump_max": 10.0, "roughness_max": 5.0}
USUAL = {"l2_estimate_q95": 0.01}
# a binary field of contrast 10, and one of contrast 100
KNOWN = variation(np.where(np.arange(64).reshape(8, 8) % 16 < 8, 1.0, 0.1))
FAR = variation(np.where(np.arange(64).reshape(8, 8) % 16 < 8, 1.0, 0.01))


def version(**about: Any) -> ServedVersion:
    shape = {"name": "d", "version": 3, "problem": "darcy", "scheme": "s", "grids": ((8, 8),)}
    return ServedVersion(**(shape | {"training_hull": FIELDS} | about))


def bound(l2_estimate: float, steps: int = 0) -> ErrorBound:
    return ErrorBound("guaranteed", "energy", 0.0, 0.2, l2_estimate, steps)


@pytest.mark.parametrize(
    ("features", "known"),
    [
        ({"depth_min": 0.5, "depth_max": 2.5}, True),
        ({"depth_min": 0.5 - 1e-8, "depth_max": 2.5 + 1e-7}, True),
        ({"depth_min": 0.49, "depth_max": 2.0}, False),
        ({"depth_min": 0.6, "depth_max": 2.51}, False),
        ({"slope": -1.0 - 1e-8}, True),
        ({"slope": -1.1}, False),
        ({"slope": np.nan}, False),
        ({"depth_max": 2.0, "froude_max": 100.0}, True),
        ({"froude_max": 0.0}, False),
    ],
)
def test_a_state_is_within_the_hull_or_not(features: dict[str, float], known: bool) -> None:
    assert (not outside(STATES, features)) is known
    (novelty,) = state_novelty(STATES, [features])
    assert (novelty.in_distribution, novelty.score) == (known, None)


def test_a_hull_without_bounds_vouches_for_nothing() -> None:
    assert not state_novelty({}, [{"depth_min": 1.0}])[0].in_distribution
    assert not steady_novelty(version(training_hull={"jump_max": 10.0}), [KNOWN])[0].in_distribution


def test_what_is_off_is_named() -> None:
    assert outside(STATES, {"depth_min": 0.25, "depth_max": 4.0}) == (
        "depth_min 0.25, training min 0.5",
        "depth_max 4, training max 2.5",
    )
    (novelty,) = steady_novelty(version(), [FAR])
    assert novelty.explanation == "contrast 100, training max 10; jump 100, training max 10"


def test_unusual_features_of_a_state_are_a_flag() -> None:
    features = {"depth_min": 1.0}
    below, at = state_novelty(STATES, [features, features], [np.nextafter(UNUSUAL, 0), UNUSUAL])
    assert (below.in_distribution, below.explanation) == (True, "")
    assert not at.in_distribution
    assert "99.0 %" in at.explanation


def test_a_measured_error_decides_and_features_alone_do_not() -> None:
    found = steady_novelty(
        version(calibration=USUAL), [KNOWN] * 4, [*map(bound, (0.01, 0.011, np.nan, np.inf))], [1.0] * 4
    )
    assert [each.in_distribution for each in found] == [True, False, False, False]
    assert found[0] == Novelty(in_distribution=True, score=1.0, explanation="")
    assert found[1].explanation == "relative L2 error about 0.011, in distribution 95 % stay below 0.01"


def test_an_estimate_by_solver_steps_is_compared_with_errors() -> None:
    known = version(calibration={**USUAL, "relative_l2_q95": 0.012})
    bounds = [bound(0.011), bound(0.011, 1), bound(0.013, 1)]
    found = steady_novelty(known, [KNOWN] * 3, bounds)
    assert [each.in_distribution for each in found] == [False, True, False]
    # where only estimates without steps were calibrated, those with steps say nothing
    (unknown,) = steady_novelty(version(calibration=USUAL), [KNOWN], [bound(0.5, 1)], [0.5])
    assert unknown.in_distribution


def test_without_a_measured_error_features_decide() -> None:
    for known in (version(calibration=USUAL), version()):
        for bounds in ([], [bound(0.5)]):
            if known.calibration and bounds:
                continue
            found = steady_novelty(known, [KNOWN, KNOWN], bounds * 2, [0.5, 1.0])
            assert [each.in_distribution for each in found] == [True, False]


def test_an_easy_field_outside_of_the_hull_is_a_flag_all_the_same() -> None:
    (found,) = steady_novelty(version(calibration=USUAL), [FAR], [bound(1e-4)], [0.1])
    assert (found.in_distribution, found.score) == (False, 0.1)


def test_a_version_may_refuse_what_it_has_not_learnt() -> None:
    strict = version(hard_range="refuse")
    reasons = [(), outside(FIELDS, vars(FAR))]
    require_in_range(version(), "permeability", reasons, single=False)
    require_in_range(strict, "permeability", [()], single=True)
    with pytest.raises(InvalidField, match=r"contrast 100, training max 10.*another model") as caught:
        require_in_range(strict, "permeability", reasons, single=False)
    assert (caught.value.rule, caught.value.index) == ("out-of-range", (1,))
    with pytest.raises(InvalidField) as caught:
        require_in_range(strict, "permeability", reasons[1:], single=True)
    assert caught.value.index is None


def test_a_scaled_or_mirrored_field_varies_as_before() -> None:
    field = np.random.default_rng(3).lognormal(size=(8, 12))
    for image in (1e3 * field, field[::-1], field[:, ::-1], field.T, np.rot90(field)):
        for name, value in vars(variation(image)).items():
            assert value == pytest.approx(getattr(variation(field), name), rel=1e-12)
