"""The variation of a field, by hand on four cells and against what it is to tell apart."""

import math

import numpy as np
import pytest

from problems import STEADY_PROBLEMS, Grid, variation

DARCY = STEADY_PROBLEMS["darcy"]


def test_four_cells():
    found = variation(np.array([[1.0, 2.0], [8.0, 4.0]]))
    # the four faces have the ratios 2, 1/2, 8, 2
    mean_square = (1 + 1 + 9 + 1) * math.log(2) ** 2 / 4
    assert found.contrast == pytest.approx(8.0)
    assert found.jump == pytest.approx(8.0)
    assert found.roughness == pytest.approx(math.sqrt(mean_square))


def test_a_jump_down_counts_like_one_up():
    assert variation(np.array([[1.0, 0.1]])).jump == pytest.approx(10.0)
    assert variation(np.array([[0.1], [1.0]])).jump == pytest.approx(10.0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (3, 2)])
def test_a_constant_field_does_not_vary(shape):
    found = variation(np.full(shape, 7.0))
    assert (found.contrast, found.jump, found.roughness) == (1.0, 1.0, 0.0)


def test_a_factor_and_single_precision_change_nothing():
    field = DARCY.sample("log_normal", {"correlation_length": 0.1, "contrast": 50.0}, 1, 0, Grid((32, 32)))
    expected = vars(variation(field["permeability"]))
    assert vars(variation(2.0**-100 * field["permeability"])) == pytest.approx(expected)
    assert vars(variation(field["permeability"].astype(np.float32))) == pytest.approx(expected, rel=1e-6)


def test_a_ratio_beyond_float64_is_infinite():
    assert variation(np.array([[1e-300, 1e300]])).contrast == math.inf


def test_tells_smooth_binary_and_noisy_media_of_one_contrast_apart():
    grid, contrast = Grid((64, 64)), 900.0
    parameters = {"correlation_length": 0.2, "contrast": contrast}
    smooth, binary = (
        variation(DARCY.sample(family, parameters, 1, 0, grid)["permeability"])
        for family in ("log_normal", "thresholded")
    )
    noise = variation(contrast ** np.random.default_rng(0).integers(0, 2, grid.shape))
    assert smooth.contrast == pytest.approx(binary.contrast) == pytest.approx(noise.contrast)
    assert smooth.jump < 2 < binary.jump == pytest.approx(noise.jump)
    assert smooth.roughness < binary.roughness / 4 < noise.roughness / 8
