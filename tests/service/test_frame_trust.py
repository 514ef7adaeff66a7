"""Calibrated errors between the frames of a card."""

import pytest

from service.frame_trust import Calibration

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
