"""The families of initial states against their definitions."""

import math
import zlib

import numpy as np
import pytest

from problems import EVOLUTION_PROBLEMS, Grid, InvalidField, coarsen

PROBLEM = EVOLUTION_PROBLEMS["shallow_water"]
PARAMETERS = {"plane_waves": {"wavelength": 0.7}, "random_surface": {"correlation_length": 0.4}}
# all but PDEBench's look the same on every grid
ON_EVERY_GRID = tuple(name for name in PROBLEM.families if name != "pdebench")
EXTENT, ORIGIN = (5.0, 5.0), (-2.5, -2.5)


def grid_of(ny, nx=None):
    return Grid((ny, nx or ny), EXTENT, ORIGIN)


def draw(family, index, grid, seed=3):
    return PROBLEM.sample(family, PARAMETERS.get(family, {}), seed, index, grid)


def test_pdebench_is_its_formula():
    """Radius from the group number's generator, depth at the cell centers, bit by bit."""
    for seed, index in ((0, 11), (4, 7), (900, 0)):
        radius = np.random.default_rng(seed + index).uniform(0.3, 0.7)
        state = PROBLEM.sample("pdebench", {}, seed, index, PROBLEM.grid)
        for i in range(128):
            for j in range(0, 128, 7):
                y, x = -2.5 + (i + 0.5) * 5 / 128, -2.5 + (j + 0.5) * 5 / 128
                assert state["h"][i, j] == (2.0 if math.hypot(x, y) <= radius else 1.0)
        assert not state["hu"].any()
        assert not state["hv"].any()


@pytest.mark.parametrize("family", ON_EVERY_GRID)
@pytest.mark.parametrize("index", range(6))
def test_a_fine_sample_averages_to_the_coarse_one(family, index):
    fine, coarse = draw(family, index, grid_of(256)), draw(family, index, grid_of(64))
    for name, field in coarsen(fine, (64, 64)).items():
        np.testing.assert_allclose(field, coarse[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", ON_EVERY_GRID)
def test_a_grid_of_another_shape_shows_the_same_sample(family):
    """96 and 40 divide neither each other nor the lines of integration."""
    for index in range(3):
        first, second = (
            coarsen(draw(family, index, grid_of(*shape)), (8, 8)) for shape in ((96, 40), (64, 64))
        )
        for name in first:
            np.testing.assert_allclose(first[name], second[name], rtol=0, atol=2e-3)


@pytest.mark.parametrize("index", range(4))
def test_dams_are_discs_averaged_over_cells(index):
    """Against 64 x 64 points in every cell; the deeper disc wins."""
    rng = np.random.default_rng([3, index, zlib.crc32(b"dams")])
    number = int(rng.integers(1, 5))
    centers = rng.random((4, 2)) * 5 - 2.5
    radii, depths = rng.uniform(0.2, 0.9, 4), rng.uniform(1.1, 3.0, 4)
    points = -2.5 + (np.arange(24 * 64) + 0.5) * 5 / (24 * 64)
    h = np.ones((points.size, points.size))
    for k in range(number):
        inside = (points[:, None] - centers[k, 0]) ** 2 + (points - centers[k, 1]) ** 2 < radii[k] ** 2
        h = np.where(inside & (depths[k] > h), depths[k], h)
    expected = h.reshape(24, 64, 24, 64).mean(axis=(1, 3))
    np.testing.assert_allclose(draw("dams", index, grid_of(24))["h"], expected, atol=5e-3)


def test_depths_stay_within_the_families_range():
    for index in range(60):
        dams, bumps = (draw(family, index, grid_of(48))["h"] for family in ("dams", "bumps"))
        assert dams.min() >= 1 - 1e-12
        assert dams.max() <= 3 + 1e-12
        assert bumps.min() >= 0.7 - 1e-3
        assert bumps.max() <= 3 + 1e-3


def test_bumps_are_smooth_and_dips_are_among_them():
    samples = [draw("bumps", index, grid_of(128))["h"] for index in range(40)]
    # a Gaussian of width 0.15 m and height 2 m has a slope of 8.1 at most
    assert max(np.abs(np.diff(h, axis=1)).max() for h in samples) < 2 * 8.1 * 5 / 128
    assert 3 < sum(h.min() < 0.99 for h in samples) < 30


def test_moving_water_fades_towards_the_walls():
    for index in range(12):
        state = draw("momentum", index, grid_of(64))
        h, speed = state["h"], np.hypot(state["hu"], state["hv"]) / state["h"]
        froude = math.sqrt(np.mean(speed**2 / h))
        assert 0.045 < froude < 0.405
        rim = max(speed[0].max(), speed[-1].max(), speed[:, 0].max(), speed[:, -1].max())
        assert rim < 0.05 * speed.max()


def test_wide_holds_all_three():
    samples = [draw("wide", index, grid_of(32)) for index in range(60)]
    moving = sum(state["hu"].any() for state in samples)
    smooth = sum(PROBLEM.features(state, grid_of(32))["roughness"] > 0 for state in samples)
    assert smooth == 60
    assert 10 < moving < 32
    still = [state["h"] for state in samples if not state["hu"].any()]
    # still water beside a disc is level
    assert 10 < sum(np.mean(h == 1.0) > 0.2 for h in still) < 35


@pytest.mark.parametrize("family", ["dams", "many_dams", "straight_dam"])
def test_lengths_scale_with_the_domain(family):
    small = PROBLEM.sample(family, {}, 3, 4, Grid((64, 64), (1.0, 1.0), (7.0, -3.0)))
    np.testing.assert_allclose(small["h"], draw(family, 4, grid_of(64))["h"], atol=1e-9)


@pytest.mark.parametrize(
    ("family", "rest", "lowest", "highest"),
    [("deep_dams", 1.0, 4.0, 8.0), ("many_dams", 1.0, 1.1, 3.0), ("low_dams", 0.4, 0.6, 3.0)],
)
def test_other_dams_have_their_depths(family, rest, lowest, highest):
    depths = [draw(family, index, grid_of(512))["h"] for index in range(8)]
    assert {float(h.min()) for h in depths} == {rest}
    # inside of a disc, or of several
    inside = [h[h > rest + 0.999 * (h.max() - rest)].max() for h in depths]
    assert lowest - 1e-9 <= min(inside)
    assert max(inside) <= highest + 1e-9


def test_small_dams_are_smaller_than_dams():
    shares = [np.mean(draw("small_dams", index, grid_of(128))["h"] > 1.0) for index in range(20)]
    # one to four discs of a radius of 8 to 20 cm on 25 m^2, and the cells that they touch
    assert np.pi * 0.08**2 / 25 < min(shares)
    assert max(shares) < 4 * np.pi * (0.2 + 0.06) ** 2 / 25


def test_steep_bumps_are_steeper_than_bumps():
    samples = [draw("steep_bumps", index, grid_of(512))["h"] for index in range(20)]
    slopes = [np.abs(np.diff(h, axis=1)).max() / np.abs(h - 1).max() * 512 / 5 for h in samples]
    # a Gaussian's largest slope is its height over its width times e^(1/2)
    assert min(slopes) > 0.9 / (0.15 * math.sqrt(math.e))
    assert max(slopes) < 1.1 / (0.05 * math.sqrt(math.e))


def test_many_dams_are_many_and_small():
    shares = [np.mean(draw("many_dams", index, grid_of(128))["h"] > 1.0) for index in range(20)]
    # 8 to 24 discs of a radius of 0.1 to 0.3 m on 25 m^2, some of which overlap
    assert 0.05 < np.mean(shares) < 0.12


def test_a_straight_dam_has_the_area_behind_a_line():
    for index in range(6):
        state = draw("straight_dam", index, grid_of(64))
        rng = np.random.default_rng([3, index, zlib.crc32(b"straight_dam")])
        angle, offset, depth = rng.uniform(0, 2 * np.pi), rng.uniform(-1, 1), rng.uniform(1.5, 3.0)
        points = -2.5 + (np.arange(2048) + 0.5) * 5 / 2048
        behind = np.sin(angle) * points[:, None] + np.cos(angle) * points > offset
        expected = 1.0 + (depth - 1.0) * coarsen({"h": behind.astype(float)}, (64, 64))["h"]
        np.testing.assert_allclose(state["h"], expected, atol=0.03)
        assert np.mean(state["h"]) == pytest.approx(np.mean(expected), abs=1e-4)
        assert not (state["hu"].any())
        assert not (state["hv"].any())


@pytest.mark.parametrize("wavelength", [0.5, 1.25])
def test_plane_waves_have_one_length(wavelength):
    """All of the surface's spectrum lies on a ring, up to the leakage of a window."""
    state = PROBLEM.sample("plane_waves", {"wavelength": wavelength}, 3, 2, grid_of(128))
    window = np.hanning(128)
    power = np.abs(np.fft.fft2((state["h"] - 1) * window[:, None] * window)) ** 2
    cycles = np.hypot(*np.meshgrid(*2 * [np.fft.fftfreq(128, 5 / 128)]))
    off = np.abs(cycles - 1 / wavelength)
    assert power[off < 0.6].sum() > 0.995 * power.sum()
    # three amplitudes of 5 to 25 cm
    assert 0.05 * math.sqrt(1.5) * 0.8 < np.std(state["h"]) < 0.25 * math.sqrt(1.5) * 1.2


def test_a_random_surface_is_log_normal_and_smooth():
    depths = np.stack([draw("random_surface", index, grid_of(64))["h"] for index in range(60)])
    assert np.std(np.log(depths)) == pytest.approx(0.25, rel=0.1)
    assert abs(np.mean(np.log(depths))) < 0.03
    # rms slope of a field with the covariance exp(-r^2 / (2 l^2)) along one direction: deviation / l
    slopes = np.diff(np.log(depths), axis=2)[:, 16:48, 16:48] / (5 / 64)
    assert np.sqrt(np.mean(slopes**2)) == pytest.approx(0.25 / 0.4, rel=0.15)


def test_rapid_water_is_rapid():
    for index in range(8):
        state = draw("rapid", index, grid_of(64))
        h, speed = state["h"], np.hypot(state["hu"], state["hv"]) / state["h"]
        assert 0.58 < math.sqrt(np.mean(speed**2 / h)) < 1.21


@pytest.mark.parametrize("family", PROBLEM.families)
def test_seeds_and_indices_tell_samples_apart(family):
    def drawn(seed, index):
        return draw(family, index, grid_of(40), seed)

    first = drawn(1, 2)
    for name, field in drawn(1, 2).items():
        np.testing.assert_array_equal(field, first[name])
    assert not np.array_equal(first["h"], drawn(1, 9)["h"])
    assert not np.array_equal(first["h"], drawn(8, 2)["h"])


def test_bad_requests_are_refused():
    with pytest.raises(ValueError, match="unknown family tsunami, expected one of pdebench, dams, bumps"):
        PROBLEM.sample("tsunami", {}, 0, 0, PROBLEM.grid)
    with pytest.raises(InvalidField, match="unknown field radius"):
        PROBLEM.sample("dams", {"radius": 1.0}, 0, 0, PROBLEM.grid)
    with pytest.raises(ValueError, match="seed and index must be at least 0"):
        PROBLEM.sample("dams", {}, -1, 0, PROBLEM.grid)
