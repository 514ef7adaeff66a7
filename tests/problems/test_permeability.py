"""The families of permeability fields against their definitions."""

import numpy as np
import pytest

from problems import Grid, InvalidField
from problems.permeability import FAMILIES, PDEBENCH_THRESHOLD

GRID = Grid((64, 64))
SMOOTH = {"correlation_length": 0.1, "contrast": 100.0}


def parameters_of(family: str, **parameters: float) -> dict[str, float]:
    return {spec.name: {**SMOOTH, **parameters}[spec.name] for spec in FAMILIES[family].parameters}


def correlation(a, b) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_pdebench_is_its_formula():
    """The same five bumps, cell by cell."""
    import zlib

    rng = np.random.default_rng([7, 11, zlib.crc32(b"pdebench")])
    center_x, center_y, width = rng.random(5), rng.random(5), 0.5 * (1 - rng.random(5))
    field = FAMILIES["pdebench"].sample({}, 7, 11, Grid((16, 24)))
    for i in range(16):
        for j in range(24):
            y, x = (i + 0.5) / 16, (j + 0.5) / 24
            total = sum(
                np.exp(-((x - center_x[m]) ** 2 + (y - center_y[m]) ** 2) / width[m]) for m in range(5)
            )
            assert field[i, j] == (1.0 if total > PDEBENCH_THRESHOLD else 0.1)


def test_pdebench_has_the_known_statistics():
    """problems.md 1.1.3: P(a = 1) = 0.491, standard deviation of a sample's fraction 0.21."""
    grid = Grid((16, 16))
    fractions = [np.mean(FAMILIES["pdebench"].sample({}, 1, i, grid) == 1.0) for i in range(2000)]
    assert np.mean(fractions) == pytest.approx(0.491, abs=0.02)
    assert np.std(fractions) == pytest.approx(0.21, abs=0.02)


@pytest.mark.parametrize("contrast", [1.0, 10.0, 1e4])
def test_log_normal_has_exactly_its_contrast_and_unit_geometric_mean(contrast):
    for index in range(5):
        field = FAMILIES["log_normal"].sample(parameters_of("log_normal", contrast=contrast), 2, index, GRID)
        assert field.max() / field.min() == pytest.approx(contrast, rel=1e-12)
        assert np.log(field).mean() == pytest.approx(0.0, abs=1e-12)


def test_thresholded_has_two_values():
    fields = [FAMILIES["thresholded"].sample(SMOOTH, 2, index, GRID) for index in range(40)]
    assert set(np.unique(np.stack(fields))) == {0.01, 1.0}
    assert np.mean(np.stack(fields) == 1.0) == pytest.approx(0.5, abs=0.1)


def test_neighbors_correlate_as_the_correlation_length_says():
    """The covariance exp(-r^2 / (2 l^2)) at r = l is 0.61, at r = 3 l it is 0.01; away from the walls."""
    draws = np.stack([np.log(FAMILIES["log_normal"].sample(SMOOTH, 5, index, GRID)) for index in range(300)])[
        :, 16:48, 16:48
    ]
    draws = draws / draws.std(axis=(1, 2), keepdims=True)
    lag = round(0.1 * 64)
    assert np.mean(draws[:, :, :-lag] * draws[:, :, lag:]) == pytest.approx(np.exp(-0.5), abs=0.12)
    assert abs(np.mean(draws[:, : -3 * lag] * draws[:, 3 * lag :])) < 0.25


@pytest.mark.parametrize("family", FAMILIES)
def test_a_finer_grid_shows_the_same_sample(family):
    coarse = FAMILIES[family].sample(parameters_of(family), 1, 4, Grid((32, 32)))
    fine = FAMILIES[family].sample(parameters_of(family), 1, 4, Grid((128, 128)))
    averaged = np.log(fine).reshape(32, 4, 32, 4).mean(axis=(1, 3))
    assert correlation(np.log(coarse), averaged) > 0.95


@pytest.mark.parametrize("family", ["log_normal", "thresholded"])
def test_contrast_scales_a_sample_and_changes_nothing_else(family):
    fields = [FAMILIES[family].sample(parameters_of(family, contrast=c), 1, 4, GRID) for c in (10.0, 1000.0)]
    assert correlation(np.log(fields[0]), np.log(fields[1])) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("family", "parameters", "match"),
    [
        ("log_normal", {"correlation_length": 0.1}, "contrast is missing"),
        ("log_normal", {**SMOOTH, "anisotropy": 2.0}, "unknown field anisotropy"),
        ("pdebench", SMOOTH, "unknown field correlation_length"),
        ("log_normal", {**SMOOTH, "contrast": 0.5}, "contrast must be at least 1, got 0.5"),
        ("log_normal", {**SMOOTH, "contrast": np.inf}, "contrast must be finite"),
        ("thresholded", {**SMOOTH, "correlation_length": 0.0}, "correlation_length must exceed 0 m, got 0"),
    ],
)
def test_bad_parameters_are_refused(family, parameters, match):
    with pytest.raises(InvalidField, match=match):
        FAMILIES[family].sample(parameters, 0, 0, GRID)


def test_a_correlation_length_that_the_expansion_cannot_carry_is_refused():
    with pytest.raises(ValueError, match=r"at least 0.03 of the longer side 2 m, got 0.05"):
        FAMILIES["log_normal"].sample({**SMOOTH, "correlation_length": 0.05}, 0, 0, Grid((8, 8), (1.0, 2.0)))


@pytest.mark.parametrize(("seed", "index"), [(-1, 0), (0, -1)])
def test_negative_seeds_are_refused(seed, index):
    with pytest.raises(ValueError, match="must be at least 0"):
        FAMILIES["pdebench"].sample({}, seed, index, GRID)
