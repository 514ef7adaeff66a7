"""The initial states of the diffusion-reaction problem against their definitions."""

import numpy as np
import pytest

from problems import Grid, InvalidField, coarsen
from problems.diffusion_reaction import DiffusionReaction
from problems.diffusion_reaction_families import FAMILIES

PDEBENCH = DiffusionReaction.grid
LENGTH = {"correlation_length": 0.3}
PARAMETERS = {
    "pdebench": {},
    "band_limited": LENGTH,
    "wide": {},
    "noise": {"amplitude": 2.5},
    "strong": LENGTH | {"amplitude": 4.0},
    "patches": LENGTH,
    "stripes": {"wavelength": 0.5},
    "spots": {},
    "spiral": {},
}
RANDOM = ("band_limited", "wide")
SMOOTH = tuple(name for name in PARAMETERS if name not in ("pdebench", "noise"))


def square(side):
    return Grid((side, side), (2.0, 2.0), (-1.0, -1.0))


def sample(family, seed=2, index=3, grid=PDEBENCH):
    return FAMILIES[family].sample(PARAMETERS[family], seed, index, grid)


def test_there_are_parameters_for_all():
    assert set(FAMILIES) == set(PARAMETERS)


@pytest.mark.parametrize(("seed", "index"), [(0, 0), (0, 11), (7, 4)])
def test_pdebench_is_bit_faithful(seed, index):
    """The order of its draws: all of u, then all of v; its seed is the number of the group."""
    rng = np.random.default_rng(seed + index)
    u, v = rng.standard_normal(128**2), rng.standard_normal(128**2)
    state = sample("pdebench", seed, index)
    np.testing.assert_array_equal(state["u"].ravel(), u)
    np.testing.assert_array_equal(state["v"].ravel(), v)


@pytest.mark.parametrize("side", [256, 512])
def test_a_finer_grid_carries_pdebenchs_noise(side):
    coarse, fine = sample("pdebench"), sample("pdebench", grid=square(side))
    for name, field in coarsen(fine, (128, 128)).items():
        np.testing.assert_allclose(field, coarse[name], rtol=1e-15)
        block = side // 128
        assert np.unique(fine[name]).size == coarse[name].size
        assert np.ptp(fine[name][:block, :block]) == 0


@pytest.mark.parametrize("shape", [(64, 64), (24, 32), (128, 192)])
def test_other_grids_carry_noise_of_their_own_cells(shape):
    state = sample("pdebench", grid=Grid(shape, (2.0, 2.0)))
    rng = np.random.default_rng(5)
    np.testing.assert_array_equal(state["u"], rng.standard_normal(shape))
    np.testing.assert_array_equal(state["v"], rng.standard_normal(shape))


@pytest.mark.parametrize("family", SMOOTH)
def test_smooth_families_do_not_depend_on_the_grid(family):
    coarse, fine = sample(family, grid=square(32)), sample(family, grid=square(96))
    for name in ("u", "v"):
        # the middle of three fine cells is a coarse cell's center
        np.testing.assert_allclose(fine[name][1::3, 1::3], coarse[name], rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", RANDOM)
def test_u_and_v_are_independent(family):
    states = [sample(family, index=index, grid=square(16)) for index in range(300)]
    u, v = (np.stack([state[name] for state in states]) for name in ("u", "v"))
    assert abs(np.mean(u * v) / np.sqrt(np.mean(u**2) * np.mean(v**2))) < 0.05


def test_band_limited_fields_have_variance_1():
    states = [sample("band_limited", index=index, grid=square(16)) for index in range(300)]
    for name in ("u", "v"):
        assert np.mean([np.mean(state[name] ** 2) for state in states]) == pytest.approx(1.0, abs=0.1)


def test_wide_states_differ_in_amplitude_and_correlation_length():
    grid = square(64)
    states = [sample("wide", index=index, grid=grid) for index in range(200)]
    size = np.array([np.sqrt(np.mean(s["u"] ** 2 + s["v"] ** 2) / 2) for s in states])
    # root mean squares scatter about the amplitude, 0.3 to 1.2
    assert np.quantile(size, [0.05, 0.5, 0.95]) == pytest.approx([0.3, 0.58, 1.2], rel=0.25)
    # rms gradient of a field with the covariance exp(-r^2 / (2 l^2)), away from the walls: rms sqrt(2) / l
    length = []
    for state in states:
        inner = state["u"] - state["u"].mean()
        dy, dx = np.gradient(inner, grid.spacing[0])
        length.append(np.sqrt(2 * np.mean(inner**2) / np.mean(dy**2 + dx**2)))
    low, middle, high = np.quantile(length, [0.05, 0.5, 0.95])
    assert 0.06 < low < 0.1
    assert 0.14 < middle < 0.22
    assert 0.3 < high < 0.6


@pytest.mark.parametrize(
    ("family", "amplitude", "of"), [("noise", 2.5, "pdebench"), ("strong", 4.0, "band_limited")]
)
def test_an_amplitude_is_one(family, amplitude, of):
    """Seeds of families differ: sizes are compared."""
    found, plain = (
        np.stack([sample(each, index=index, grid=square(64))["v"] for index in range(100)])
        for each in (family, of)
    )
    assert np.std(found) == pytest.approx(amplitude * np.std(plain), rel=0.1)


def test_patches_are_nearly_1_or_minus_1():
    states = np.stack([sample("patches", index=index, grid=square(64))["u"] for index in range(40)])
    assert np.abs(states).max() <= 1
    # of a Gaussian field 81 % are beyond 0.2, where tanh(8 * 0.2) is 0.92, so some more beyond 0.9
    assert np.mean(np.abs(states) > 0.9) == pytest.approx(0.855, abs=0.03)
    assert np.mean(states > 0) == pytest.approx(0.5, abs=0.1)


def test_stripes_are_plane_waves():
    """A plane wave and its Laplacian are parallel: lap u = -(2 pi / l)^2 u."""
    grid = square(256)
    for index in range(4):
        for field in sample("stripes", index=index, grid=grid).values():
            inner = field[1:-1, 1:-1]
            laplacian = field[2:, 1:-1] + field[:-2, 1:-1] + field[1:-1, 2:] + field[1:-1, :-2] - 4 * inner
            laplacian /= grid.spacing[0] ** 2
            np.testing.assert_allclose(laplacian, -((2 * np.pi / 0.5) ** 2) * inner, atol=0.4)
            assert 0.28 < np.abs(field).max() <= 1.5


def test_spots_are_positive_and_leave_room():
    states = [sample("spots", index=index, grid=square(64)) for index in range(40)]
    fields = np.stack([state[name] for state in states for name in ("u", "v")])
    assert fields.min() >= 0
    assert 0.8 < np.median(fields.max(axis=(1, 2))) < 3.0
    assert 0.1 < np.mean(fields < 0.05) < 0.8


def test_a_spiral_begins_with_crossed_fronts():
    for index in range(8):
        state = sample("spiral", index=index, grid=square(128))
        u, v = state["u"], state["v"]
        assert np.mean(np.abs(u) > 0.99) > 0.6
        assert np.abs(v).max() == pytest.approx(0.5, abs=1e-3)
        # gradients are at right angles
        (uy, ux), (vy, vx) = np.gradient(u), np.gradient(v)
        across = np.abs(uy * vx - ux * vy).max()
        assert np.abs(uy * vy + ux * vx).max() < 1e-2 * across
        # all four combinations of signs
        assert len({(a, b) for a, b in zip(np.sign(u).ravel(), np.sign(v).ravel(), strict=True)}) == 4


@pytest.mark.parametrize(
    ("family", "parameters", "match"),
    [
        ("pdebench", {"correlation_length": 0.1}, "unknown field correlation_length"),
        ("band_limited", {}, "correlation_length is missing"),
        ("band_limited", {"correlation_length": 0.0}, "correlation_length must exceed 0 m, got 0"),
        ("noise", {"amplitude": 0.0}, "amplitude must exceed 0"),
        ("noise", {"amplitude": 11.0}, "amplitude must"),
        ("stripes", {"wavelength": 0.01}, "wavelength must"),
    ],
)
def test_bad_parameters_are_refused(family, parameters, match):
    with pytest.raises(InvalidField, match=match):
        FAMILIES[family].sample(parameters, 0, 0, PDEBENCH)


def test_a_correlation_length_that_the_expansion_cannot_carry_is_refused():
    with pytest.raises(ValueError, match=r"at least 0.03 of the longer side 2 m, got 0.05"):
        FAMILIES["band_limited"].sample({"correlation_length": 0.05}, 0, 0, PDEBENCH)
