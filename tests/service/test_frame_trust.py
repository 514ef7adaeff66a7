"""Calibrated errors between the frames of a card, and the hull of the training states."""

import pytest

from service.frame_trust import Calibration, within_hull

CARD = {
    "relative_l2_q90.frame_10": 0.02,
    "relative_l2_q90.frame_30": 0.06,
    "relative_l2_q90.frame_20": 0.03,
    "something_else": 7.0,
}


@pytest.mark.parametrize(
    ("step", "upper"), [(1, 0.02), (10, 0.02), (15, 0.025), (20, 0.03), (29, 0.057), (30, 0.06)]
)
def test_the_error_is_interpolated_between_calibrated_frames(step: int, upper: float) -> None:
    error = Calibration.of(CARD).error(step)
    assert error is not None
    assert (error.kind, error.norm, error.coverage) == ("calibrated", "relative_l2", 0.9)
    assert error.upper == pytest.approx(upper)


def test_nothing_is_said_beyond_the_last_frame_or_without_a_calibration() -> None:
    assert Calibration.of(CARD).error(31) is None
    assert Calibration.of({}).error(1) is None
    assert Calibration.of({"perturbation_l2.frame_10": 0.1}).error(1) is None


HULL = {"depth_max": 3.0, "depth_min_min": 0.5, "depth_max_max": 2.5, "slope_min": -1.0}


@pytest.mark.parametrize(
    ("features", "known"),
    [
        ({"depth_min": 0.5, "depth_max": 2.5}, True),
        ({"depth_min": 0.5 - 1e-8, "depth_max": 2.5 + 1e-7}, True),
        ({"depth_min": 0.49, "depth_max": 2.0}, False),
        ({"depth_min": 0.6, "depth_max": 2.51}, False),
        ({"slope": -1.0 - 1e-8}, True),
        ({"slope": -1.1}, False),
        ({"depth_max": 2.0, "froude_max": 100.0}, True),
        ({"froude_max": 0.0}, False),
    ],
)
def test_a_state_is_within_the_hull_or_not(features: dict[str, float], known: bool) -> None:
    assert within_hull(HULL, features) is known


def test_a_hull_without_bounds_vouches_for_nothing() -> None:
    assert not within_hull({}, {"depth_min": 1.0})
