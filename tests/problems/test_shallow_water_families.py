"""The families of initial states against their definitions."""

import math
import zlib

import numpy as np
import pytest

from problems import EVOLUTION_PROBLEMS, Grid, InvalidField, coarsen

PROBLEM = EVOLUTION_PROBLEMS["shallow_water"]
WIDE = ("dams", "bumps", "momentum", "wide")
EXTENT, ORIGIN = (5.0, 5.0), (-2.5, -2.5)


def grid_of(ny, nx=None):
    return Grid((ny, nx or ny), EXTENT, ORIGIN)


def draw(family, index, grid, seed=3):
    return PROBLEM.sample(family, {}, seed, index, grid)


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


@pytest.mark.parametrize("family", WIDE)
@pytest.mark.parametrize("index", range(6))
def test_a_fine_sample_averages_to_the_coarse_one(family, index):
    fine, coarse = draw(family, index, grid_of(256)), draw(family, index, grid_of(64))
    for name, field in coarsen(fine, (64, 64)).items():
        np.testing.assert_allclose(field, coarse[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", WIDE)
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


def test_lengths_scale_with_the_domain():
    small = PROBLEM.sample("dams", {}, 3, 4, Grid((64, 64), (1.0, 1.0), (7.0, -3.0)))
    np.testing.assert_allclose(small["h"], draw("dams", 4, grid_of(64))["h"], atol=1e-9)


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
