"""The radial spectrum of fields of which the power of every wave is known."""

import numpy as np
import pytest

from problems import Grid
from training.spectrum import RadialSpectrum

GRID = Grid((32, 32), (2.0, 2.0), (-1.0, -1.0))


def test_rings_are_half_waves_of_the_domain() -> None:
    spectrum = RadialSpectrum.on(GRID)
    # the lowest ring: one half-wave of 2 m along one axis (0.25 / m), and along both
    assert spectrum.wavenumber[0] == pytest.approx((2 + np.sqrt(2)) / 3 * 0.25)
    assert spectrum.wavenumber[-1] < 32 / 2 / 2.0
    assert (np.diff(spectrum.wavenumber) > 0).all()


def test_a_standing_wave_is_in_its_ring() -> None:
    spectrum = RadialSpectrum.on(GRID)
    _, x = GRID.coordinates()
    # six half-waves along x; its mean square is 9 / 2
    field = 3.0 * np.cos(6 * np.pi * (x + 1.0) / 2.0)[None, :] * np.ones((32, 1))
    found = spectrum(field)
    i, j = np.mgrid[:32, :32]
    modes = np.rint(np.hypot(i, j)) == 6
    assert found[5] == pytest.approx(4.5 / modes.sum())
    assert np.delete(found, 5).max() < 1e-12


def test_all_modes_have_the_power_of_the_field() -> None:
    spectrum = RadialSpectrum.on(GRID)
    rng = np.random.default_rng(0)
    fields = rng.standard_normal((200, 32, 32))
    # white noise: every mode has the same share of the variance
    assert spectrum(fields).mean(axis=0) == pytest.approx(1.0 / 32**2, rel=0.15)


def test_a_uniform_field_has_no_waves() -> None:
    assert RadialSpectrum.on(GRID)(np.full((32, 32), 7.0)).max() < 1e-20


def test_rectangles_and_leading_axes() -> None:
    grid = Grid((16, 32), (1.0, 2.0))
    spectrum = RadialSpectrum.on(grid)
    y, x = grid.coordinates()
    # 4 half-waves of 1 m: as long as 8 half-waves of 2 m
    along_y = np.cos(4 * np.pi * y)[:, None] * np.ones(32)
    along_x = np.cos(8 * np.pi * x / 2.0)[None, :] * np.ones((16, 1))
    found = spectrum(np.stack([along_y, along_x]))
    assert found.shape == (2, len(spectrum.wavenumber))
    assert found.argmax(axis=1).tolist() == [7, 7]
