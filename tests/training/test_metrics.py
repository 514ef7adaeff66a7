"""Every metric, computed by hand on four numbers."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from training import metrics

# errors 0, 0, 3, -4 (norm 5) on a reference of norm 10
REFERENCE = np.array([[[[1.0, 1.0], [7.0, 7.0]]]])
PREDICTED = np.array([[[[1.0, 1.0], [10.0, 3.0]]]])


def test_relative_l2() -> None:
    assert metrics.relative_l2(PREDICTED, REFERENCE) == pytest.approx([0.5])


def test_rmse() -> None:
    assert metrics.rmse(PREDICTED, REFERENCE) == pytest.approx([2.5])


def test_nrmse() -> None:
    assert metrics.nrmse(PREDICTED, REFERENCE) == pytest.approx([0.5])


def test_max_error() -> None:
    assert metrics.max_error(PREDICTED, REFERENCE) == pytest.approx([4.0])


def test_crmse() -> None:
    assert metrics.crmse(PREDICTED, REFERENCE) == pytest.approx([0.25])


def test_brmse() -> None:
    # every cell is a corner, in two of the lines: 2 * 25 over 2 * 2 + 2 * 2
    assert metrics.brmse(PREDICTED, REFERENCE) == pytest.approx([2.5])


def test_frmse() -> None:
    # of a 2 x 2 grid the quadrant has the mean alone; the low band is its shell alone
    found = metrics.frmse(PREDICTED, REFERENCE)
    assert found == {"low": pytest.approx([0.25]), "mid": [0.0], "high": [0.0]}


def test_relative_energy() -> None:
    ones = np.ones((1, 1, 2, 2))
    reference = np.array([[[[1.0, 0.0], [0.0, 0.0]]]])
    # spacing 1/2, a = 1: the wall faces have transmissibility 2, the inner ones 1.
    # reference: two walls with jump 1 and two inner faces with jump 1 -> 2 + 2 + 1 + 1 = 6
    # error (1, 1; 0, 0): four walls with jump 1 and two inner faces with jump 1 -> 8 + 2 = 10
    predicted = reference + np.array([[[[1.0, 1.0], [0.0, 0.0]]]])
    found = metrics.relative_energy(predicted, reference, ones, (0.5, 0.5), "tpfa-harmonic-v1")
    assert found == pytest.approx([math.sqrt(10.0 / 6.0)])


def test_relative_energy_weighs_faces_by_the_harmonic_mean() -> None:
    permeability = np.array([[[[1.0, 3.0], [1.0, 1.0]]]])
    # faces of cell (0, 0): two walls of 2, one of 1, and one of 2 * 1 * 3 / (1 + 3) = 1.5 -> 6.5
    error = np.array([[[[1.0, 0.0], [0.0, 0.0]]]])
    # faces of cell (1, 0): two walls of 2, two inner ones of 1 -> 6
    reference = np.array([[[[0.0, 0.0], [1.0, 0.0]]]])
    found = metrics.relative_energy(
        reference + error, reference, permeability, (0.5, 0.5), "tpfa-harmonic-v1"
    )
    assert found == pytest.approx([math.sqrt(6.5 / 6.0)])


def test_score_has_every_metric() -> None:
    scores = metrics.score(PREDICTED, REFERENCE, np.ones_like(REFERENCE), (0.5, 0.5), "tpfa-harmonic-v1")
    assert tuple(scores) == metrics.METRICS


def test_quantiles_of_infinite_errors() -> None:
    errors = np.array([1.0, 2.0, np.inf, np.inf])
    assert [metrics.quantile(errors, fraction) for fraction in (0.0, 1 / 3, 0.5, 1.0)] == [
        1,
        2,
        np.inf,
        np.inf,
    ]
    assert metrics.quantile(errors[:, None] * np.ones(2), 1 / 6).tolist() == [1.5, 1.5]


def test_summary() -> None:
    errors: NDArray[np.float64] = np.arange(101.0)
    errors[-1] = 201.0
    found = metrics.summary({"rmse": errors})
    assert found == pytest.approx(
        {
            "rmse_median": 50.0,
            "rmse_mean": 51.0,
            "rmse_p90": 90.0,
            "rmse_p95": 95.0,
            "rmse_max": 201.0,
        }
    )
