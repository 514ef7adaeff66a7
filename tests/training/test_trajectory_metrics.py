"""Every metric of trajectories, computed by hand on four numbers."""

import math

import numpy as np
import pytest

from problems import EVOLUTION_PROBLEMS
from training import trajectory_metrics as metrics
from training.metrics import STATISTICS

# one sample, one frame, one channel: errors 0, 0, 3, -4 (norm 5) on a reference of norm 10
REFERENCE = np.array([[1.0, 1.0], [7.0, 7.0]]).reshape(1, 1, 1, 2, 2)
PREDICTED = np.array([[1.0, 1.0], [10.0, 3.0]]).reshape(1, 1, 1, 2, 2)
# one sample, two frames, one channel of two cells: norms of the errors 3 and 4, of the references 6 and 8
TWO_FRAMES = np.array([[6.0, 0.0], [0.0, 8.0]]).reshape(1, 2, 1, 1, 2)
TWO_PREDICTED = np.array([[6.0, 3.0], [4.0, 8.0]]).reshape(1, 2, 1, 1, 2)


def test_rmse() -> None:
    assert metrics.rmse(PREDICTED, REFERENCE) == pytest.approx(np.array([[[2.5]]]))


def test_nrmse() -> None:
    assert metrics.nrmse(PREDICTED, REFERENCE) == pytest.approx(np.array([[[0.5]]]))


def test_max_error() -> None:
    assert metrics.max_error(PREDICTED, REFERENCE) == pytest.approx(np.array([[[4.0]]]))


def test_crmse() -> None:
    assert metrics.crmse(PREDICTED, REFERENCE) == pytest.approx(np.array([[[0.25]]]))


def test_brmse() -> None:
    # every cell is a corner: 2 * 25 over 8
    assert metrics.brmse(PREDICTED, REFERENCE) == pytest.approx(np.array([[[2.5]]]))


def test_frmse() -> None:
    # of a 2 x 2 grid the quadrant has the mean alone, and the low band its shell alone
    found = metrics.frmse(PREDICTED, REFERENCE)
    assert found["low"] == pytest.approx(np.array([[[0.25]]]))
    assert found["mid"] == found["high"] == 0.0


def test_relative_l2_is_one_ratio_over_all_frames() -> None:
    assert metrics.relative_l2(TWO_PREDICTED, TWO_FRAMES) == pytest.approx([math.hypot(3, 4) / 10.0])


def test_relative_l2_of_frames() -> None:
    assert metrics.relative_l2_of_frames(TWO_PREDICTED, TWO_FRAMES) == pytest.approx(np.array([[0.5, 0.5]]))


def test_relative_l2_joins_channels() -> None:
    # errors 3 and 4 in two channels, references 6 and 8
    predicted, reference = TWO_PREDICTED.reshape(1, 1, 2, 1, 2), TWO_FRAMES.reshape(1, 1, 2, 1, 2)
    assert metrics.relative_l2_of_frames(predicted, reference) == pytest.approx(np.array([[0.5]]))


def test_perturbation_l2_forgets_the_water_at_rest() -> None:
    reference = np.array([[1.0, 1.0], [4.0, 5.0]]).reshape(1, 1, 2, 2)
    predicted = np.array([[1.0, 1.0], [4.0, 4.0]]).reshape(1, 1, 2, 2)
    # error 1, waves 3 and 4
    assert metrics.perturbation_l2(predicted, reference, 1.0) == pytest.approx(np.array([[0.2]]))


def test_mass_drift() -> None:
    assert metrics.mass_drift(PREDICTED[:, :, 0], REFERENCE[:, :, 0]) == pytest.approx(np.array([[1 / 16]]))


def test_minimum_depth() -> None:
    assert metrics.minimum_depth(-PREDICTED[:, :, 0]) == pytest.approx(np.array([[-10.0]]))


def test_a_perfect_answer_is_perfect_relative_to_nothing() -> None:
    zero = np.zeros((1, 1, 1, 2, 2))
    assert metrics.nrmse(zero, zero) == 0.0
    assert metrics.relative_l2(zero, zero) == 0.0
    assert metrics.nrmse(zero + 1.0, zero) == np.inf


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_infinitely_wrong(bad: float) -> None:
    predicted = PREDICTED.copy()
    predicted[..., 0, 0] = bad
    found = metrics.measure(np.concatenate([predicted, PREDICTED]), np.repeat(REFERENCE, 2, 0), ("h",), 1.0)
    for name, values in found.scores.items():
        assert not np.isnan(values).any(), name
    assert found.scores["diverged"].tolist() == [1.0, 0.0]
    assert found.scores["relative_l2"].tolist() == [np.inf, pytest.approx(0.5)]
    assert found.scores["perturbation_l2"][0] == np.inf
    assert found.summary["relative_l2_max"] == np.inf
    # a neighbor of the median is infinite
    assert found.summary["relative_l2_median"] == np.inf


def random_fields(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two samples of more frames than are measured at a time, three channels."""
    rng = np.random.default_rng(seed)
    reference = (2.0 + 0.2 * rng.standard_normal((2, 11, 3, 6, 8))).astype(np.float32)
    return reference + 0.1 * rng.standard_normal(reference.shape).astype(np.float32), reference


def test_measures_agree_with_the_metrics_one_by_one() -> None:
    predicted, reference = random_fields(3)
    found = metrics.measure(predicted, reference, ("h", "hu", "hv"), 1.0)
    depth = predicted[:, :, 0], reference[:, :, 0]
    expected = {
        "rmse": metrics.rmse(predicted, reference),
        "nrmse": metrics.nrmse(predicted, reference),
        "relative_l2": metrics.relative_l2_of_frames(predicted, reference),
        "max_error": metrics.max_error(predicted, reference),
        "crmse": metrics.crmse(predicted, reference),
        "brmse": metrics.brmse(predicted, reference),
        "perturbation_l2": metrics.perturbation_l2(*depth, 1.0),
        "mass_drift": metrics.mass_drift(*depth),
        "minimum_depth": metrics.minimum_depth(depth[0]),
        **{f"frmse_{band}": values for band, values in metrics.frmse(predicted, reference).items()},
    }
    assert set(found.curves) - {"reference_rms"} == set(expected)
    for name, curve in expected.items():
        np.testing.assert_allclose(found.curves[name], curve, rtol=1e-12, atol=1e-15, err_msg=name)


def test_scores() -> None:
    predicted, reference = random_fields(4)
    found = metrics.measure(predicted, reference, ("h", "hu", "hv"), 1.0)
    curves, scores = found.curves, found.scores
    np.testing.assert_allclose(scores["relative_l2"], metrics.relative_l2(predicted, reference))
    one = predicted[:, :, 1:2], reference[:, :, 1:2]
    np.testing.assert_allclose(scores["relative_l2_hu"], metrics.relative_l2(*one))
    np.testing.assert_allclose(scores["rmse_hv"], curves["rmse"][:, :, 2].mean(axis=1))
    np.testing.assert_allclose(scores["perturbation_l2"], curves["perturbation_l2"].mean(axis=1))
    np.testing.assert_allclose(scores["brmse"], curves["brmse"].mean(axis=(1, 2)))
    np.testing.assert_array_equal(scores["max_error"], curves["max_error"].max(axis=(1, 2)))
    np.testing.assert_array_equal(scores["mass_drift"], curves["mass_drift"].max(axis=1))
    np.testing.assert_array_equal(scores["minimum_depth"], predicted[:, :, 0].min(axis=(1, 2, 3)))
    assert scores["negative_depth"].tolist() == [0.0, 0.0]


def test_negative_depth_is_how_far_below_zero() -> None:
    found = metrics.measure(REFERENCE - 3.0, REFERENCE, ("h",), 1.0)
    assert found.scores["negative_depth"].tolist() == [2.0]


@pytest.mark.parametrize("name", sorted(EVOLUTION_PROBLEMS))
def test_scores_have_the_names_that_limits_are_set_for(name: str) -> None:
    problem = EVOLUTION_PROBLEMS[name]
    channels = [spec.name for spec in problem.outputs]
    fields = np.ones((1, 2, len(channels), 4, 4))
    found = metrics.measure(fields, fields, channels, problem.rest.get("h"))
    assert set(found.scores) == set(metrics.metric_names(problem))
    assert set(found.summary) == set(metrics.summary_names(problem))
    assert f"{metrics.headline(name)}_{STATISTICS[0]}" in found.summary


def test_headlines() -> None:
    assert metrics.headline("shallow_water") == "perturbation_l2"
    assert metrics.headline("diffusion_reaction") == "relative_l2"


def test_groups_of_samples_are_joined() -> None:
    predicted, reference = random_fields(5)
    whole = metrics.measure(predicted, reference, ("u", "v", "w"), None)
    parts = [
        metrics.measure(predicted[i : i + 1], reference[i : i + 1], ("u", "v", "w"), None) for i in (0, 1)
    ]
    joined = metrics.concatenate(parts)
    for name, values in whole.scores.items():
        np.testing.assert_array_equal(joined.scores[name], values)
