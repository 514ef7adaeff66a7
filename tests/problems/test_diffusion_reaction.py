"""The reference solvers of the diffusion-reaction problem against what shares no code with them."""

from itertools import islice
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.fft
import scipy.linalg
from scipy.integrate import solve_ivp

from problems import Grid, InvalidField
from problems import diffusion_reaction_rk4 as rk4
from problems import diffusion_reaction_strang as strang
from problems.diffusion_reaction import DiffusionReaction

PROBLEM = DiffusionReaction()
ORACLE = Path(__file__).parents[1] / "data" / "diffusion_reaction_scipy.h5"
DU, DV, K = 1e-3, 5e-3, 5e-3
CONSTANTS = (DU, DV, K)
# a side is as long as needed for the cells of PDEBench's grid
SMALL = Grid((24, 16), (24 / 64, 16 / 64))


def noise(grid, seed=0, size=1.0):
    rng = np.random.default_rng(seed)
    return {name: size * rng.standard_normal(grid.shape) for name in "uv"}


def run(state, grid, scheme, count, start=0):
    frames = islice(PROBLEM.frames(state, grid, scheme, start=start), count)
    return np.stack([[frame["u"], frame["v"]] for frame in frames])


def relative(found, expected):
    """Relative RMSE per channel."""
    return np.sqrt(np.sum((found - expected) ** 2, (-2, -1)) / np.sum(expected**2, (-2, -1)))


def rate(q, grid):
    """Time derivatives of q = (u, v), face by face: a face carries flux, a wall none."""
    (hy, hx), (u, v) = grid.spacing, q
    spread = np.zeros_like(q)
    for axis, h in ((1, hy), (2, hx)):
        flux = np.diff(q, axis=axis) / h**2
        ends = [(0, 0)] * 3
        ends[axis] = (1, 0)
        spread -= np.pad(flux, ends)
        ends[axis] = (0, 1)
        spread += np.pad(flux, ends)
    return np.stack([DU * spread[0] + u - u**3 - K - v, DV * spread[1] + u - v])


def dop853(state, grid, times, rtol=1e-9):
    """The exact solution of the finite volumes, [time channel y x]."""
    q = np.stack([state["u"], state["v"]])
    found = solve_ivp(
        lambda _, y: rate(y.reshape(q.shape), grid).ravel(),
        (0, times[-1]),
        q.ravel(),
        method="DOP853",
        rtol=rtol,
        atol=1e-2 * rtol,
        t_eval=times,
    )
    assert found.success
    return found.y.T.reshape(-1, *q.shape)


def linear_growth(decay_u, decay_v, time):
    """What time makes of a small mode about the uniform steady state u = v = -cbrt(k), a 2 x 2 matrix."""
    slope = 1 - 3 * K ** (2 / 3)
    return scipy.linalg.expm(time * np.array([[slope - decay_u, -1], [1, -1 - decay_v]]))


def mode(grid, my, mx):
    y, x = ((np.arange(n) + 0.5) / n for n in grid.shape)
    return np.outer(np.cos(np.pi * my * y), np.cos(np.pi * mx * x))


class TestAgainstScipy:
    def test_the_stored_trajectory(self):
        """PDEBench's scheme, integrated by SciPy with its default tolerance: the difference is its error."""
        with h5py.File(ORACLE) as file:
            times, stored = file["0011/grid/t"][:], np.moveaxis(file["0011/data"][:], -1, 1)
        numbers = np.rint(times / PROBLEM.frame_interval).astype(int)
        state = PROBLEM.sample("pdebench", {}, 11, 0, PROBLEM.grid)
        np.testing.assert_array_equal(np.float32([state["u"], state["v"]]), stored[0])
        found = run(state, PROBLEM.grid, "fv5-rk4-v1", 100)[numbers[1:] - 1]
        assert relative(found, stored[1:]).max() <= 5e-4
        assert relative(found, stored[1:])[:, 0].max() <= 1e-6

    @pytest.mark.parametrize(("scheme", "limit"), [("fv5-rk4-v1", 1e-5), ("fv5-strang-v1", 1e-3)])
    def test_a_precise_integration_on_a_small_grid(self, scheme, limit):
        state = noise(SMALL)
        expected = dop853(state, SMALL, 0.05 * np.arange(1, 41))
        found = run(state, SMALL, scheme, 40)
        assert relative(found, expected).max() <= limit

    @pytest.mark.slow
    def test_a_precise_integration_on_pdebenchs_grid(self):
        state = PROBLEM.sample("pdebench", {}, 7, 4, PROBLEM.grid)
        numbers = np.array([1, 2, 4, 5, 6, 10, 20, 50, 100])
        expected = dop853(state, PROBLEM.grid, 0.05 * numbers)
        for scheme, limit in (("fv5-rk4-v1", 1e-5), ("fv5-strang-v1", 1e-3)):
            found = run(state, PROBLEM.grid, scheme, 100)[numbers - 1]
            assert relative(found, expected).max() <= limit

    def test_cells_that_are_no_squares(self):
        grid = Grid((12, 20), (0.3, 0.2))
        state = noise(grid)
        expected = dop853(state, grid, 0.05 * np.arange(1, 7))
        for scheme, limit in (("fv5-rk4-v1", 1e-5), ("fv5-strang-v1", 1e-3)):
            assert relative(run(state, grid, scheme, 6), expected).max() <= limit


class TestExactSolutions:
    @pytest.mark.parametrize(("my", "mx"), [(0, 1), (3, 0), (5, 2), (23, 15)])
    def test_a_cosine_decays_with_the_eigenvalue_of_the_finite_volumes(self, my, mx):
        field, step = mode(SMALL, my, mx), 0.02
        eigenvalue = sum(
            4 / h**2 * np.sin(np.pi * m / (2 * n)) ** 2
            for m, n, h in zip((my, mx), SMALL.shape, SMALL.spacing, strict=True)
        )
        kernels = tuple(strang.kernel(DV * step / h**2, np.dtype(np.float64)) for h in SMALL.spacing)
        found, line = np.empty_like(field), np.empty(SMALL.shape[1] + 2 * (kernels[1].size - 1))
        for y in range(SMALL.shape[0]):
            strang.diffuse(field, y, kernels, line, found[y])
        np.testing.assert_allclose(found, np.exp(-DV * eigenvalue * step) * field, atol=1e-13)

        row_u, row_v = np.empty(SMALL.shape[1]), np.empty(SMALL.shape[1])
        weights = tuple(h**-2.0 for h in SMALL.spacing)
        for y in range(SMALL.shape[0]):
            rk4.rates(field, field, y, (*CONSTANTS, *weights), row_u, row_v)
            # the reaction of u = v is -u^3 - k and 0
            np.testing.assert_allclose(
                row_u + field[y] ** 3 + K, -DU * eigenvalue * field[y], rtol=0, atol=1e-12
            )
            np.testing.assert_allclose(row_v, -DV * eigenvalue * field[y], rtol=0, atol=1e-12)

    @pytest.mark.parametrize("scheme", PROBLEM.schemes)
    def test_the_uniform_steady_state_stays(self, scheme):
        uniform = np.full((8, 8), -np.cbrt(K))
        found = run({"u": uniform, "v": uniform}, Grid((8, 8)), scheme, 20)
        np.testing.assert_allclose(found, -np.cbrt(K), rtol=1e-5)

    def test_a_small_mode_grows_as_the_differential_equation_says_to_second_order(self):
        """Exact solution of the linearised equations, continuous in space: errors fall by 4 per halving."""
        errors = []
        for side in (16, 32, 64):
            grid, size = Grid((side, side), (1.0, 1.0)), 1e-5
            shape = mode(grid, 3, 2)
            state = {"u": -np.cbrt(K) + size * shape, "v": -np.cbrt(K) + 0.5 * size * shape}
            found = (run(state, grid, "fv5-rk4-v1", 20)[-1] + np.cbrt(K)) / size
            square = np.pi**2 * (3**2 + 2**2)
            expected = linear_growth(DU * square, DV * square, 1.0) @ [1.0, 0.5]
            errors.append(np.abs(found - expected[:, None, None] * shape).max())
        assert errors[-1] < 1e-3
        orders = np.log2(np.divide(errors[:-1], errors[1:]))
        assert orders == pytest.approx([2, 2], abs=0.1)

    def test_space_is_second_order_for_the_full_equations(self):
        """The reference expands in cosines, the solver does not."""
        side, start = 48, {"u": (0.8, 1, 2), "v": (0.5, 2, 0)}
        fine = Grid((side, side), (2.0, 2.0))
        # until fronts form, which 48 cosines would not resolve
        square = (np.pi / 2) ** 2 * (np.arange(side)[:, None] ** 2 + np.arange(side) ** 2)

        def spectral(_, y):
            u, v = y.reshape(2, side, side)
            lap = [scipy.fft.idctn(-square * scipy.fft.dctn(field)) for field in (u, v)]
            return np.stack([DU * lap[0] + u - u**3 - K - v, DV * lap[1] + u - v]).ravel()

        q = np.stack([size * mode(fine, my, mx) for size, my, mx in start.values()])
        end = solve_ivp(spectral, (0, 0.5), q.ravel(), rtol=1e-9, atol=1e-11).y[:, -1].reshape(q.shape)
        waves = scipy.fft.dctn(end, axes=(1, 2), norm="forward")
        errors = []
        for cells in (32, 64, 128):
            grid = Grid((cells, cells), (2.0, 2.0))
            state = {name: size * mode(grid, my, mx) for name, (size, my, mx) in start.items()}
            cosines = np.cos(np.pi * np.outer((np.arange(cells) + 0.5) / cells, np.arange(side)))
            cosines[:, 1:] *= 2
            expected = cosines @ waves @ cosines.T
            errors.append(np.abs(run(state, grid, "fv5-rk4-v1", 10)[-1] - expected).max())
        assert errors[-1] < 1e-3
        assert np.log2(np.divide(errors[:-1], errors[1:])) == pytest.approx([2, 2], abs=0.15)


class TestOrderInTime:
    GRID = Grid((12, 16), (0.5, 0.7))

    def errors(self, advance, counts):
        state = noise(self.GRID, size=0.8)
        expected = dop853(state, self.GRID, np.array([0.4]), rtol=1e-12)[0]
        return np.array([np.abs(advance(state, count) - expected).max() for count in counts])

    def test_runge_kutta_is_of_fourth_order(self):
        weights = tuple(h**-2.0 for h in self.GRID.spacing)

        def advance(state, count):
            u, v = state["u"].copy(), state["v"].copy()
            rk4.integrate(u, v, 0.4 / count, count, (*CONSTANTS, *weights))
            return np.stack([u, v])

        errors = self.errors(advance, (20, 40, 80))
        assert np.log2(errors[:-1] / errors[1:]) == pytest.approx([4, 4], abs=0.25)

    def test_splitting_is_of_second_order(self):
        def advance(state, count):
            return np.stack(
                strang.split(state["u"], state["v"], self.GRID, 0.4 / count, count, precision=np.float64)
            )

        errors = self.errors(advance, (40, 80, 160))
        assert np.log2(errors[:-1] / errors[1:]) == pytest.approx([2, 2], abs=0.15)


class TestBalancesAndSymmetry:
    def test_nothing_passes_the_walls(self):
        """Means change by the reaction alone: d<u>/dt = <u - u^3> - k - <v>, d<v>/dt = <u> - <v>."""
        grid = SMALL
        u, v = noise(grid).values()
        rate_u, rate_v = np.empty(grid.shape), np.empty(grid.shape)
        weights = tuple(h**-2.0 for h in grid.spacing)
        for y in range(grid.shape[0]):
            rk4.rates(u, v, y, (*CONSTANTS, *weights), rate_u[y], rate_v[y])
        assert rate_u.mean() == pytest.approx(np.mean(u - u**3) - K - v.mean(), abs=1e-13)
        assert rate_v.mean() == pytest.approx(u.mean() - v.mean(), abs=1e-13)

    @pytest.mark.parametrize(("scheme", "limit"), [("fv5-rk4-v1", 1e-6), ("fv5-strang-v1", 2e-5)])
    def test_the_means_of_a_trajectory_keep_their_balance(self, scheme, limit):
        """Simpson's rule over two frames, once the short waves have gone."""
        u, v = run(noise(SMALL), SMALL, scheme, 30)[20:].swapaxes(0, 1)
        for field, change in ((u, u - u**3 - K - v), (v, u - v)):
            mean, rates = field.mean((1, 2)), change.mean((1, 2))
            integral = 0.1 / 6 * (rates[:-2] + 4 * rates[1:-1] + rates[2:])
            assert np.abs(mean[2:] - mean[:-2] - integral).max() <= limit

    @pytest.mark.parametrize(("scheme", "limit"), [("fv5-rk4-v1", 1e-12), ("fv5-strang-v1", 1e-5)])
    def test_the_symmetries_of_the_square(self, scheme, limit):
        grid = Grid((16, 16), (0.25, 0.25))
        state = noise(grid)
        found = run(state, grid, scheme, 4)
        for turn in (np.flipud, np.fliplr, np.transpose, np.rot90):
            turned = run({name: turn(field).copy() for name, field in state.items()}, grid, scheme, 4)
            expected = np.array([[turn(field) for field in frame] for frame in found])
            np.testing.assert_allclose(turned, expected, rtol=0, atol=limit)

    @pytest.mark.parametrize(("scheme", "limit"), [("fv5-rk4-v1", 1e-12), ("fv5-strang-v1", 1e-5)])
    def test_a_mirror_image_beyond_a_wall_changes_nothing(self, scheme, limit):
        state = noise(Grid((8, 8), (0.1, 0.1)))
        doubled = {name: np.concatenate([field, field[:, ::-1]], 1) for name, field in state.items()}
        found = run(state, Grid((8, 8), (0.1, 0.1)), scheme, 3)
        wide = run(doubled, Grid((8, 16), (0.1, 0.2)), scheme, 3)
        np.testing.assert_allclose(wide[..., :8], found, rtol=0, atol=limit)

    @pytest.mark.parametrize("scheme", PROBLEM.schemes)
    def test_one_row_is_a_line(self, scheme):
        """A row, a column and a square of equal rows hold the same; a single cell reacts."""
        row = noise(Grid((1, 12)))
        wide = {name: np.repeat(field, 3, axis=0) for name, field in row.items()}
        line = run(row, Grid((1, 12), (0.1, 0.2)), scheme, 2)
        square = run(wide, Grid((3, 12), (0.3, 0.2)), scheme, 2)
        column = run(
            {name: field.T.copy() for name, field in row.items()}, Grid((12, 1), (0.2, 0.1)), scheme, 2
        )
        np.testing.assert_allclose(square, np.repeat(line, 3, axis=2), rtol=0, atol=1e-5)
        np.testing.assert_allclose(column, line.swapaxes(2, 3), rtol=0, atol=1e-5)
        cell = Grid((1, 1))
        alone = run(noise(cell), cell, scheme, 2)
        np.testing.assert_allclose(alone, dop853(noise(cell), cell, np.array([0.05, 0.1])), rtol=1e-4)


@pytest.mark.parametrize("scheme", PROBLEM.schemes)
@pytest.mark.parametrize("start", [0, 50])
def test_rough_and_large_states_stay_bounded_wherever_they_start(scheme, start):
    fine = Grid((96, 96), (0.4, 0.4))
    found = run(noise(fine, size=3.0), fine, scheme, 2, start)
    assert np.abs(found).max() < 5
    checkers = 100.0 * (-1.0) ** np.add.outer(np.arange(8), np.arange(8))
    grid = Grid((8, 8), (0.1, 0.1))
    found = run({"u": checkers, "v": np.full((8, 8), 100.0)}, grid, scheme, 3, start)
    assert np.abs(found).max() <= 100.0


@pytest.mark.parametrize("size", [0.3, 4.0])
@pytest.mark.parametrize("start", [0, 3, 5, 50])
def test_the_cost_is_that_of_the_steps_taken(size, start):
    """So many steps and no other number make the next frame, to the bit."""
    grid = Grid((9, 13), (0.2, 0.3))
    state = noise(grid, size=size)
    weights = [spacing**-2.0 for spacing in grid.spacing]

    def by_runge_kutta(count):
        u, v = state["u"].copy(), state["v"].copy()
        rk4.integrate(u, v, 0.05 / count, count, (*CONSTANTS, *weights))
        return np.stack([u, v])

    def by_splitting(count):
        return np.stack(strang.split(state["u"], state["v"], grid, 0.05 / count, count))

    for scheme, advance in ((rk4.SCHEME, by_runge_kutta), (strang.SCHEME, by_splitting)):
        count, left = divmod(PROBLEM.cell_steps(state, grid, scheme, start), 9 * 13)
        assert left == 0
        found = run(state, grid, scheme, 1, start)[0]
        np.testing.assert_array_equal(found, advance(count))
        assert not np.array_equal(found, advance(count + 1))
        assert not np.array_equal(found, advance(count - 1))


def test_a_wild_state_costs_many_steps():
    """3 u^2 = 3e4 /s and 4 Dv (1 / hy^2 + 1 / hx^2) = 10486 /s, 0.05 s, steps of 1.6 of their inverse."""
    grid = Grid((4, 4), (4 * 2 / 1024, 4 * 2 / 1024))
    wild = {"u": np.full((4, 4), -100.0), "v": np.zeros((4, 4))}
    assert PROBLEM.cell_steps(wild, grid, "fv5-rk4-v1") == 1266 * 16
    assert PROBLEM.cell_steps(wild, grid, "fv5-strang-v1") == 3000 * 16


def test_features_by_hand():
    u, v = np.array([[1.0, -1.0], [2.0, 0.0]]), np.array([[0.5, -3.0], [0.0, 0.0]])
    features = PROBLEM.features({"u": u, "v": v}, Grid((2, 2)))
    # differences 2, 2, 1, 1 with the mean square 2.5; mean square of u 1.5
    assert features == pytest.approx({"u_max": 2.0, "v_max": 3.0, "roughness_u": np.sqrt(2.5 / 1.5)})
    assert PROBLEM.invariants({"u": u, "v": v}, Grid((2, 2))) == pytest.approx(
        {"mean_u": 0.5, "mean_v": -0.625}
    )
    zero = np.zeros((2, 2))
    assert PROBLEM.features({"u": zero, "v": zero}, Grid((2, 2)))["roughness_u"] == 0.0


@pytest.mark.parametrize(("value", "match"), [(101.0, "at most 100"), (-101.0, "at least -100")])
def test_states_beyond_the_solver_are_refused(value, match):
    state = {"u": np.full((4, 4), value), "v": np.zeros((4, 4))}
    with pytest.raises(InvalidField, match=f"u must be {match}, got {value:g}"):
        PROBLEM.frames(state, Grid((4, 4)))
