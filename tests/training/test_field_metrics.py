"""Measures of fields, by hand on four numbers; the ones in Fourier space against naive loops."""

import cmath
import math

import numpy as np
import pytest

from training.field_metrics import (
    band_means,
    band_root_mean_squares,
    edge_root_mean_square,
    largest,
    mean_size,
    root_mean_square,
    shell_power,
)

# squares 1, 1, 49, 49 -> mean 25; mean 0 + ... = (1 - 1 + 7 - 7) / 4
FOUR = np.array([[1.0, -1.0], [7.0, -7.0]])


def test_root_mean_square() -> None:
    assert root_mean_square(FOUR) == pytest.approx(5.0)


def test_largest() -> None:
    assert largest(FOUR) == 7.0


@pytest.mark.parametrize(("field", "expected"), [(FOUR, 0.0), (-np.arange(4.0).reshape(2, 2), 1.5)])
def test_mean_size(field: np.ndarray, expected: float) -> None:
    assert mean_size(field) == pytest.approx(expected)


def test_edge_counts_corners_twice() -> None:
    # each of the four cells is in two of the lines: 2 * 100 over 2 * 2 + 2 * 2
    assert edge_root_mean_square(FOUR) == pytest.approx(math.sqrt(200.0 / 8.0))


def test_edge_leaves_the_inner_cells_out() -> None:
    field = np.full((3, 4), 2.0)
    field[1, 1:3] = 1e6
    # lines of 4, 4, 3 and 3 cells
    assert edge_root_mean_square(field) == pytest.approx(2.0)


def naive_shells(field: np.ndarray) -> list[float]:
    """Fourier sums mode by mode, as written down in the definition."""
    ny, nx = field.shape
    shells = [0.0] * min(ny // 2, nx // 2)
    for i in range(ny // 2):
        for j in range(nx // 2):
            mode = sum(
                field[y, x] * cmath.exp(-2j * math.pi * (i * y / ny + j * x / nx))
                for y in range(ny)
                for x in range(nx)
            )
            shell = math.floor(math.sqrt(i * i + j * j))
            if shell < len(shells):
                shells[shell] += abs(mode) ** 2 / (ny * nx) ** 2
    return shells


@pytest.mark.parametrize("shape", [(8, 8), (6, 10)])
def test_shell_power_against_a_naive_loop(shape: tuple[int, int]) -> None:
    field = np.random.default_rng(1).standard_normal(shape)
    np.testing.assert_allclose(shell_power(field), naive_shells(field), rtol=1e-12)


def test_a_wave_is_in_its_shell() -> None:
    x = np.arange(32) / 32
    wave = 4.0 * np.cos(2 * np.pi * 5 * x)[None, :] * np.ones((32, 1))
    # a cosine is two modes of half its amplitude, one of them in the quadrant: 2^2 in shell 5
    expected = np.zeros(16)
    expected[5] = 4.0
    np.testing.assert_allclose(shell_power(wave), expected, atol=1e-12)
    # 8 shells of the middle band
    bands = band_root_mean_squares(wave)
    assert bands["mid"] == pytest.approx(2.0 / 8.0)
    assert bands["low"] == pytest.approx(0.0, abs=1e-12)


def test_bands() -> None:
    amplitude = np.arange(64.0)
    found = band_means(amplitude)
    assert found == {"low": 1.5, "mid": 7.5, "high": 37.5}


def test_a_coarse_grid_has_no_high_band() -> None:
    assert band_root_mean_squares(np.ones((8, 8)))["high"] == 0.0


def test_leading_axes_are_kept() -> None:
    fields = np.random.default_rng(2).standard_normal((3, 2, 8, 8))
    for measure in (root_mean_square, largest, mean_size, edge_root_mean_square, shell_power):
        found = measure(fields)
        np.testing.assert_allclose(found[2, 1], measure(fields[2, 1]), rtol=1e-12)
