"""The shallow water solvers against PyClaw, exact solutions and conservation laws."""

import itertools
import math
from pathlib import Path

import h5py
import numpy as np
import pytest

from problems import EVOLUTION_PROBLEMS, CannotSolve, Grid, InvalidField
from problems import shallow_water_march as marching
from problems.shallow_water_sweeps import GHOSTS, scratch

PROBLEM = EVOLUTION_PROBLEMS["shallow_water"]
SCHEMES = pytest.mark.parametrize("scheme", PROBLEM.schemes)
WALLS = pytest.mark.parametrize("walls", PROBLEM.walls)
# neither square nor a power of two
GRID = Grid((36, 50), (3.6, 5.0), (-1.8, -2.5))


def state_of(h, hu, hv):
    return {"h": h, "hu": hu, "hv": hv}


def march(state, grid, count, scheme=None, walls=None, start=0):
    """The state after ``count`` frames."""
    return next(itertools.islice(PROBLEM.frames(state, grid, scheme, walls, start), count - 1, None))


def transposed(state):
    return state_of(state["h"].T.copy(), state["hv"].T.copy(), state["hu"].T.copy())


def assert_same(a, b, tolerance):
    for name in ("h", "hu", "hv"):
        np.testing.assert_allclose(a[name], b[name], rtol=0, atol=tolerance, err_msg=name)


def lively(index=0, grid=GRID):
    return PROBLEM.sample("momentum", {}, 5, index, grid)


# PyClaw -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pyclaw():
    """Frame numbers and depths [frame x y] of two of PDEBench's trajectories."""
    trajectories = {}
    with h5py.File(Path(__file__).parents[1] / "data" / "shallow_water_pyclaw.h5") as file:
        for name, group in file.items():
            numbers = np.rint(group["grid/t"][:] / PROBLEM.frame_interval).astype(int)
            trajectories[int(name)] = (numbers, group["data"][..., 0].astype(np.float64))
    return trajectories


@pytest.mark.parametrize("seed", [11, 12])
def test_the_pdebench_family_begins_with_the_bits_of_pyclaws_file(pyclaw, seed):
    state = PROBLEM.sample("pdebench", {}, 0, seed, PROBLEM.grid)
    np.testing.assert_array_equal(state["h"].T, pyclaw[seed][1][0])


@pytest.mark.parametrize("seed", [11, 12])
def test_roe_reproduces_pyclaw(pyclaw, seed):
    """To the rounding of the file's float32, with the file's x axis first."""
    numbers, depths = pyclaw[seed]
    state = PROBLEM.sample("pdebench", {}, seed, 0, PROBLEM.grid)
    frames = [state, *itertools.islice(PROBLEM.frames(state, PROBLEM.grid, "roe-mc-split-v1"), numbers[-1])]
    worst = [np.abs(frames[n]["h"].T - depth).max() for n, depth in zip(numbers, depths, strict=True)]
    assert max(worst) <= 2e-7
    # and not the other way round: the splitting tells the axes apart
    assert np.abs(frames[numbers[-1]]["h"] - depths[-1]).max() > 1e-3


@pytest.mark.parametrize("seed", [11, 12])
def test_hllc_stays_close_to_pyclaw(pyclaw, seed):
    numbers, depths = pyclaw[seed]
    state = PROBLEM.sample("pdebench", {}, seed, 0, PROBLEM.grid)
    frames = [state, *itertools.islice(PROBLEM.frames(state, PROBLEM.grid), numbers[-1])]
    for number, depth in zip(numbers, depths, strict=True):
        assert np.linalg.norm(frames[number]["h"].T - depth) <= 3e-3 * np.linalg.norm(depth)


# exact Riemann solutions ------------------------------------------------------------------------------------


def depth_function(h, side):
    """Change of velocity across the wave from the depth ``side`` to ``h``, and its derivative; g = 1."""
    if h <= side:
        return 2 * (math.sqrt(h) - math.sqrt(side)), 1 / math.sqrt(h)
    root = math.sqrt(0.5 * (1 / h + 1 / side))
    return (h - side) * root, root - 0.25 * (h - side) / (h**2 * root)


def star_state(hl, ul, hr, ur):
    """Depth and velocity between the two waves, by Newton's method from two rarefactions."""
    h = max((0.5 * (math.sqrt(hl) + math.sqrt(hr)) - 0.25 * (ur - ul)) ** 2, 1e-8)
    for _ in range(50):
        (left, slope_l), (right, slope_r) = depth_function(h, hl), depth_function(h, hr)
        step = (left + right + ur - ul) / (slope_l + slope_r)
        h = max(h - step, 0.1 * h)
        if abs(step) < 1e-14 * h:
            break
    return h, 0.5 * (ul + ur) + 0.5 * (depth_function(h, hr)[0] - depth_function(h, hl)[0])


def riemann(xi, left, right):
    """(h, u, v) at x / t = xi of the Riemann problem between two states (h, u, v)."""
    (hl, ul, vl), (hr, ur, vr) = left, right
    h, u = star_state(hl, ul, hr, ur)
    if xi > u:
        # the right side is the left one's mirror image
        mirrored = riemann(-xi, (hr, -ur, vr), (hl, -ul, vl))
        return mirrored[0], -mirrored[1], mirrored[2]
    cl, c = math.sqrt(hl), math.sqrt(h)
    if h > hl:
        shock = ul - math.sqrt(0.5 * h * (h + hl) / hl)
        return (hl, ul, vl) if xi < shock else (h, u, vl)
    if xi < ul - cl:
        return hl, ul, vl
    if xi > u - c:
        return h, u, vl
    c = (ul + 2 * cl - xi) / 3
    return c * c, (ul + 2 * cl + 2 * xi) / 3, vl


def test_the_oracle_knows_a_textbook_dam_break():
    """Stoker's: hl = 1, hr = 0.1 gives h* = 0.3961, u* = 0.7412; the jump conditions hold."""
    h, u = star_state(1.0, 0.0, 0.1, 0.0)
    assert (h, u) == (pytest.approx(0.39617, abs=2e-4), pytest.approx(0.7411, abs=5e-4))
    speed = h * u / (h - 0.1)
    assert speed * h * u == pytest.approx(h * u**2 + 0.5 * h**2 - 0.5 * 0.1**2, rel=1e-10)
    assert u + 2 * math.sqrt(h) == pytest.approx(2 * 1.0, rel=1e-12)


RIEMANN = {
    "dam_break": ((2.0, 0.0, 0.3), (1.0, 0.0, -0.4)),
    "two_rarefactions": ((1.0, -0.5, 0.2), (1.0, 0.6, 0.5)),
    "two_shocks": ((1.0, 0.6, -0.3), (1.2, -0.5, 0.7)),
    "transonic_rarefaction": ((3.0, 0.0, 0.5), (0.2, 0.0, -0.5)),
    "supersonic": ((1.0, 2.0, 0.1), (0.6, 2.2, 0.8)),
}


def riemann_state(values, coordinate, ny):
    h, u, v = (np.tile(row, (ny, 1)) for row in np.array(values).T)
    assert h.shape == (ny, coordinate.size)
    return state_of(h, h * u, h * v)


def riemann_error(case, scheme, cells, along):
    """Mean error of (h, hu, hv) over the jump of the initial state, at t = 0.6."""
    left, right = RIEMANN[case]
    grid = Grid((4, cells), (0.4, 5.0), (0.0, -2.5))
    _, x = grid.coordinates()
    state = riemann_state([left if place < 0 else right for place in x], x, 4)
    expected = riemann_state([riemann(place / 0.6, left, right) for place in x], x, 4)
    if along == "y":
        grid = Grid((cells, 4), (5.0, 0.4), (-2.5, 0.0))
        found = transposed(march(transposed(state), grid, 60, scheme))
    else:
        found = march(state, grid, 60, scheme)
    jump = max(abs(a - b) for a, b in zip(left, right, strict=True))
    return max(np.mean(np.abs(found[name] - expected[name])) / jump for name in found)


@SCHEMES
@pytest.mark.parametrize("along", ["x", "y"])
@pytest.mark.parametrize("case", RIEMANN)
def test_converges_to_the_exact_riemann_solution(case, scheme, along):
    """Contacts and shocks at first order in the mean; of the transverse momentum somewhat less."""
    coarse, fine = (riemann_error(case, scheme, cells, along) for cells in (100, 400))
    assert fine < 0.004
    assert fine < 0.45 * coarse


@SCHEMES
def test_a_sonic_point_leaves_no_expansion_shock(scheme):
    """The depth of a transonic rarefaction has no step but the steepness of the fan."""
    left, right = RIEMANN["transonic_rarefaction"]
    grid = Grid((3, 400), (0.1, 5.0), (0.0, -2.5))
    _, x = grid.coordinates()
    found = march(riemann_state([left if place < 0 else right for place in x], x, 3), grid, 60, scheme)
    fan = (x > -0.8) & (x < 0.4)
    steps = np.abs(np.diff(found["h"][1][fan]))
    assert steps.max() < 1.6 * np.median(steps)


@pytest.mark.parametrize("depth", [1e-2, 1e-4, 1e-6, 1e-9])
def test_the_depth_stays_positive_next_to_nearly_dry_ground(depth):
    """A dam of 1 m above next to nothing: Ritter's solution."""
    grid = Grid((3, 200), (0.1, 5.0), (0.0, -2.5))
    _, x = grid.coordinates()
    still = np.zeros((3, 200))
    for frame in itertools.islice(
        PROBLEM.frames(state_of(np.tile(np.where(x < 0, 1.0, depth), (3, 1)), still, still), grid), 100
    ):
        assert frame["h"].min() > 0
    # a rarefaction into a dry bed, away from its tip: c = (2 - x / t) / 3
    fan = (x > -0.8) & (x < 0.6)
    np.testing.assert_allclose(frame["h"][1][fan], ((2 - x[fan]) / 3) ** 2, atol=0.01)


def test_the_depth_stays_positive_where_water_is_torn_apart():
    y, x = (
        coordinate[:, None] if axis == 0 else coordinate for axis, coordinate in enumerate(GRID.coordinates())
    )
    h = np.where(np.hypot(x, y) < 1, 1.0, 1e-5)
    for walls in PROBLEM.walls:
        for frame in itertools.islice(
            PROBLEM.frames(state_of(h, 4 * h * np.sign(x), -3 * h * np.sign(y)), GRID, walls=walls), 40
        ):
            assert frame["h"].min() > 0


# smooth solutions: order of convergence ---------------------------------------------------------------------


def cell_averages(function, grid):
    """Averages over the cells by Gauss's rule with 4 x 4 points."""
    nodes, weights = np.polynomial.legendre.leggauss(4)
    (y, x), (hy, hx) = grid.coordinates(), grid.spacing
    return sum(
        0.25 * weights[a] * weights[b] * function(y[:, None] + 0.5 * hy * nodes[a], x + 0.5 * hx * nodes[b])
        for a in range(4)
        for b in range(4)
    )


def errors(solution, frames, scheme, side, *more):
    """Mean error on three grids; ``solution(t, y, x, side, *more)`` yields h, hu, hv on the torus."""
    found = []
    for cells in (32, 64, 128):
        grid = Grid((cells, cells), (side, side))
        start, end = (
            state_of(
                *(
                    cell_averages(lambda y, x, k=k, t=t: solution(t, y, x, side, *more)[k], grid)
                    for k in range(3)
                )
            )
            for t in (0.0, frames * PROBLEM.frame_interval)
        )
        result = march(start, grid, frames, scheme, "periodic")
        found.append(np.mean([np.abs(result[name] - end[name]) for name in end]))
    return np.array(found)


def linear_wave(t, y, x, side, direction, amplitude=1e-6):
    """A sound wave, to within the square of its amplitude, in still water of depth 1."""
    ky, kx = (2 * np.pi * k / side for k in direction)
    k = np.hypot(ky, kx)
    wave = amplitude * np.sin(kx * x + ky * y - k * t)
    return 1 + wave, kx / k * wave, ky / k * wave


def vortex(t, y, x, side=0.5, strength=12.0, width=0.06):
    """Turning water in a stream; its center drifts.

    The depth balances the centrifugal force: h_r = u_theta^2 / r where u_theta = a r exp(-r^2 / (2 w^2)).
    """
    stream_x, stream_y = 0.3, -0.2
    # the nearest image of the center
    dx = (x - stream_x * t + 0 * y) % side - 0.5 * side
    dy = (y - stream_y * t + 0 * x) % side - 0.5 * side
    square = dx**2 + dy**2
    swirl = strength * np.exp(-square / (2 * width**2))
    h = 1 - 0.5 * (strength * width) ** 2 * np.exp(-square / width**2)
    return h, h * (stream_x - dy * swirl), h * (stream_y + dx * swirl)


def test_the_vortex_solves_the_equations():
    """Its residual by central differences, at one instant, away from the seam."""
    e, t, y, x = 1e-5, 0.1, np.linspace(0.15, 0.35, 9)[:, None], np.linspace(0.15, 0.35, 11)

    def flux_x(t, y, x):
        h, hu, hv = vortex(t, y, x)
        return hu, hu**2 / h + h**2 / 2, hu * hv / h

    def flux_y(t, y, x):
        h, hu, hv = vortex(t, y, x)
        return hv, hu * hv / h, hv**2 / h + h**2 / 2

    for k in range(3):
        residual = vortex(t + e, y, x)[k] - vortex(t - e, y, x)[k]
        residual = residual + flux_x(t, y, x + e)[k] - flux_x(t, y, x - e)[k]
        residual = residual + flux_y(t, y + e, x)[k] - flux_y(t, y - e, x)[k]
        assert np.abs(residual / (2 * e)).max() < 1e-6


def order(found):
    """Order of convergence, from the coarsest to the finest grid."""
    return np.log2(found[0] / found[-1]) / (len(found) - 1)


# at a Courant number near 0.9 on every grid, so that the order is one in space and time
LINEAR_SIDE, VORTEX_SIDE = 0.36, 0.5


@pytest.mark.parametrize("direction", [(0, 1), (1, 0), (1, 1), (1, -2)])
def test_a_linear_wave_converges_at_second_order(direction):
    found = errors(linear_wave, 20, "hllc-muscl-v1", LINEAR_SIDE, direction)
    assert order(found) > 1.9


@pytest.mark.parametrize("direction", [(0, 1), (1, 0)])
def test_roe_carries_a_linear_wave_along_the_axes_at_second_order(direction):
    assert order(errors(linear_wave, 20, "roe-mc-split-v1", LINEAR_SIDE, direction)) > 1.9


def test_a_drifting_vortex_converges_at_second_order():
    assert order(errors(vortex, 24, "hllc-muscl-v1", VORTEX_SIDE)) > 2


@pytest.mark.parametrize(
    ("solution", "side", "more"), [(vortex, VORTEX_SIDE, ()), (linear_wave, LINEAR_SIDE, ((1, 1),))]
)
def test_roe_is_of_first_order_across_the_axes(solution, side, more):
    """Godunov's splitting is."""
    assert 0.75 < order(errors(solution, 24, "roe-mc-split-v1", side, *more)) < 1.3


# conservation, symmetry -------------------------------------------------------------------------------------


@SCHEMES
@pytest.mark.parametrize("walls", ["reflecting", "periodic"])
def test_closed_walls_keep_the_mass(scheme, walls):
    state = lively()
    before = PROBLEM.invariants(state, GRID)
    after = PROBLEM.invariants(march(state, GRID, 150, scheme, walls), GRID)
    assert after["mass"] == pytest.approx(before["mass"], rel=1e-14 * 150)
    if walls == "periodic":
        for name in ("momentum_x", "momentum_y"):
            assert after[name] == pytest.approx(before[name], abs=1e-12)
    # shocks dissipate, nothing produces
    assert after["energy"] < before["energy"]


@SCHEMES
def test_lost_mass_has_flowed_out(scheme):
    """What the walls let out, by the trapezoidal rule in time from the momentum at the outermost cells."""
    y, x = GRID.coordinates()
    h = 1 + 0.6 * np.exp(-((x - 1.6) ** 2 + (y[:, None] - 1.0) ** 2) / 0.3)
    state, flow = state_of(h, 0.2 * h, 0.1 * h), []
    (hy, hx), outflow = GRID.spacing, lambda s: (s["hu"][:, -1] - s["hu"][:, 0], s["hv"][-1] - s["hv"][0])
    states = [state, *itertools.islice(PROBLEM.frames(state, GRID, scheme), 150)]
    for frame in states:
        along_x, along_y = outflow(frame)
        flow.append(along_x.sum() * hy + along_y.sum() * hx)
    lost = PROBLEM.invariants(state, GRID)["mass"] - PROBLEM.invariants(states[-1], GRID)["mass"]
    assert lost > 0.3
    assert np.trapezoid(flow, dx=PROBLEM.frame_interval) == pytest.approx(lost, rel=0.01)


def test_waves_leave_through_outflow_walls():
    y, x = GRID.coordinates()
    h = 1 + 0.3 * np.exp(-(x**2 + y[:, None] ** 2) / 0.1)
    after = march(state_of(h, 0 * h, 0 * h), GRID, 500)
    assert np.abs(after["h"] - 1).max() < 0.01


@SCHEMES
def test_a_reflecting_wall_is_a_plane_of_symmetry(scheme):
    """Half of a state that is its own mirror image evolves, beside a wall, as the whole does."""
    state = lively()
    half = {name: field[:, 25:].copy() for name, field in state.items()}
    whole = {
        name: np.concatenate([(-1 if name == "hu" else 1) * field[:, ::-1], field], axis=1)
        for name, field in half.items()
    }
    beside = march(half, Grid((36, 25), (3.6, 2.5)), 60, scheme, "reflecting")
    middle = march(whole, GRID, 60, scheme, "reflecting")
    assert_same({name: field[:, 25:] for name, field in middle.items()}, beside, 1e-12)


@SCHEMES
def test_periodic_walls_have_no_place(scheme):
    """Rolled by any number of cells, the state evolves as before."""

    def rolled(state):
        return {name: np.roll(field, (7, -19), (0, 1)) for name, field in state.items()}

    state = lively()
    direct = march(rolled(state), GRID, 60, scheme, "periodic")
    assert_same(direct, rolled(march(state, GRID, 60, scheme, "periodic")), 1e-12)


@SCHEMES
@WALLS
@pytest.mark.parametrize(("axis", "turned"), [(0, "hv"), (1, "hu")])
def test_mirror_images_stay_mirror_images(scheme, walls, axis, turned):
    def mirrored(state):
        return {
            name: (-1 if name == turned else 1) * np.flip(field, axis).copy() for name, field in state.items()
        }

    state = lively()
    after = march(state, GRID, 60, scheme, walls)
    assert_same(march(mirrored(state), GRID, 60, scheme, walls), mirrored(after), 1e-12)


def test_the_transposed_state_takes_the_sweeps_of_the_other_parity():
    """The splitting breaks the symmetry: exact with the sweeps exchanged, else to the splitting's error."""
    state, across = lively(), Grid(GRID.shape[::-1], GRID.extent[::-1], GRID.origin[::-1])
    after = transposed(march(state, GRID, 60))
    assert_same(march(transposed(state), across, 60, start=1), after, 1e-12)
    same_order = march(transposed(state), across, 60)
    assert 1e-6 < np.abs(same_order["h"] - after["h"]).max() < 0.01


@SCHEMES
@WALLS
def test_still_water_stays_still(scheme, walls):
    still = np.zeros(GRID.shape)
    after = march(state_of(still + 1.7, still, still), GRID, 20, scheme, walls)
    np.testing.assert_allclose(after["h"], 1.7, rtol=1e-15)
    assert max(np.abs(after[name]).max() for name in ("hu", "hv")) < 1e-14


@SCHEMES
def test_a_uniform_stream_stays_uniform(scheme):
    flat = np.ones(GRID.shape)
    state = state_of(1.3 * flat, 0.9 * flat, -2.1 * flat)
    assert_same(march(state, GRID, 20, scheme, "periodic"), state, 1e-12)


@SCHEMES
def test_a_march_can_be_taken_up_again(scheme):
    """To the bit, on a grid where a frame takes an odd number of steps."""
    grid = Grid((160, 120), (1.0, 0.75))
    state = PROBLEM.sample("wide", {}, 2, 0, grid)
    whole, middle = march(state, grid, 12, scheme), march(state, grid, 5, scheme)
    for name, field in march(middle, grid, 7, scheme, start=5).items():
        np.testing.assert_array_equal(field, whole[name])


def test_frames_are_the_callers_own():
    state = lively()
    copy = {name: field.copy() for name, field in state.items()}
    frames = PROBLEM.frames(state, GRID)
    first = next(frames)
    kept = {name: field.copy() for name, field in first.items()}
    for field in first.values():
        field[:] = np.nan
    assert np.isfinite(next(frames)["h"]).all()
    assert_same(march(state, GRID, 1), kept, 0)
    assert_same(state, copy, 0)


# cost -------------------------------------------------------------------------------------------------------


def steps_taken(state, grid, scheme, walls):
    """Steps of one frame, by taking them."""
    padded = np.ones((3, *(side + 2 * GHOSTS for side in grid.shape)))
    padded[:, GHOSTS:-GHOSTS, GHOSTS:-GHOSTS] = [state[name] for name in ("h", "hu", "hv")]
    number = marching.WALLS.index(walls)
    return marching.advance(padded, scratch(), grid.spacing, marching.SCHEMES[scheme], number, 0)


def test_the_cost_of_a_uniform_flow():
    """|u| + sqrt(g h) is 5 m/s along x, 3 m/s along y."""
    h = np.full((8, 10), 4.0)
    state = state_of(h, 3 * h, -h)
    # 5 m/s over 0.001 m, 0.01 s: 50 cells, of which a step may cross 0.9
    assert PROBLEM.cell_steps(state, Grid((8, 10), (1.0, 0.01))) == 56 * 80
    # 3 m/s over 0.00125 m: 24 cells
    assert PROBLEM.cell_steps(state, Grid((8, 10), (0.01, 1.0))) == 27 * 80
    assert PROBLEM.cell_steps(state, Grid((8, 10), (8.0, 10.0))) == 80


@SCHEMES
@WALLS
@pytest.mark.parametrize(("extent", "least"), [((3.6, 5.0), 1), ((0.36, 0.5), 2), ((0.1, 0.14), 5)])
def test_the_cost_is_that_of_the_steps_taken(scheme, walls, extent, least):
    grid = Grid(GRID.shape, extent)
    for family in ("dams", "bumps", "momentum", "pdebench"):
        state = PROBLEM.sample(family, {}, 5, 0, grid)
        taken = steps_taken(state, grid, scheme, walls)
        assert taken >= least
        # where waves gain or lose speed on the way, some steps more or fewer
        assert PROBLEM.cell_steps(state, grid, scheme) / math.prod(grid.shape) == pytest.approx(taken, abs=1)


def test_the_cost_is_that_of_the_walls_that_take_the_most():
    """The deep and the shallow end of a slope meet behind periodic walls only, as a breaking dam."""
    grid = Grid((4, 40), (0.1, 0.1))
    h = np.linspace(0.1, 2.0, 40) ** 2 + np.zeros(grid.shape)
    state = state_of(h, 0 * h, 0 * h)
    taken = {walls: steps_taken(state, grid, "hllc-muscl-v1", walls) for walls in PROBLEM.walls}
    assert taken["periodic"] > max(taken["outflow"], taken["reflecting"])
    # |c - c'| + (c + c') / 2 = 2.95 m/s, with c = 2 m/s and c' = 0.1 m/s, over 0.0025 m, 0.01 s, 0.9
    assert PROBLEM.cell_steps(state, grid) == 14 * 160


# numbers, bad input -----------------------------------------------------------------------------------------


def test_invariants_and_features_of_four_cells():
    grid = Grid((2, 2), (4.0, 2.0))
    state = state_of(
        np.array([[1.0, 2.0], [1.0, 4.0]]),
        np.array([[0.0, 1.0], [2.0, 0.0]]),
        np.array([[0.0, 1.0], [0, -4]]),
    )
    # kinetic: 0, 2/4, 4/2, 16/8; potential: 1/2, 4/2, 1/2, 16/2; cells of 2 m^2
    assert PROBLEM.invariants(state, grid) == {
        "mass": 16.0,
        "momentum_x": 6.0,
        "momentum_y": -6.0,
        "energy": 2 * (4.5 + 11.0),
        "depth_min": 1.0,
        "depth_max": 4.0,
    }
    frames = {name: np.stack([field, field]) for name, field in state.items()}
    frames["h"][1, 0, 0] = 0.0
    assert PROBLEM.frame_invariants(frames, grid)[0].tolist() == [16.0, 6.0, -6.0, 2 * (4.5 + 11.0), 1.0, 4.0]
    assert np.isnan(PROBLEM.frame_invariants(frames, grid)[1]).all()
    # |u|: 0, 1/sqrt 2, 2, 1; over sqrt h: 0, 1/2, 2, 1/2; steps of h: 1, 3, 0, 2 over the range 3
    # slopes: 0 and 2 / 2 along y, 1 and 3 along x; departures from 2: 1, 0, 1, 2
    assert PROBLEM.features(state, grid) == pytest.approx(
        {
            "depth_min": 1.0,
            "depth_max": 4.0,
            "froude_max": 2.0,
            "roughness": 0.5,
            "wavenumber": np.sqrt(11 / 6),
        }
    )


def test_a_level_surface_has_no_roughness():
    flat = np.ones((4, 4))
    features = PROBLEM.features(state_of(flat, flat, flat), Grid((4, 4)))
    assert (features["roughness"], features["wavenumber"]) == (0.0, 0.0)
    # what differs by the least that float64 can tell, and what has no square there
    for h in (np.ones((4, 4)), np.full((4, 4), 1e90)):
        h[1, 2] = np.nextafter(h[0, 0], np.inf) if h[0, 0] == 1 else 3e90
        found = PROBLEM.features(state_of(h, 0 * h, 0 * h), Grid((4, 4)))["wavenumber"]
        assert found == pytest.approx(np.sqrt(4 * 16 / (15 / 16)), rel=0.1)


@pytest.mark.parametrize(("waves", "shape"), [(2, (4, 400)), (5, (4, 800))])
def test_the_wavenumber_of_a_sine_wave_is_its_own(waves, shape):
    grid = Grid(shape, (1.0, 3.0))
    k = 2 * np.pi * waves / 3.0
    h = 2.0 + np.broadcast_to(np.sin(k * grid.coordinates()[1]), shape)
    still = np.zeros(shape)
    assert PROBLEM.features(state_of(h, still, still), grid)["wavenumber"] == pytest.approx(k, rel=0.01)


def test_the_wavenumber_of_a_narrow_heap_is_large_however_wide_the_water():
    """A disc of 1 m has 8 R / s faces with a slope of 1 / s: k^2 = 8 R / s^3 over pi R^2 / s^2, s = 2 cm."""
    found = {}
    for side, radius in ((4.0, 0.2), (8.0, 0.2), (8.0, 0.8)):
        cells = int(side * 50)
        grid = Grid((cells, cells), (side, side), (-side / 2, -side / 2))
        y, x = grid.coordinates()
        h = 1.0 + (np.hypot(y[:, None], x) < radius)
        found[side, radius] = PROBLEM.features(state_of(h, 0 * h, 0 * h), grid)["wavenumber"]
        assert found[side, radius] == pytest.approx(np.sqrt(8 / (np.pi * radius * 0.02)), rel=0.03)
    assert found[4.0, 0.2] == pytest.approx(found[8.0, 0.2], rel=0.03)


def test_the_roe_scheme_says_when_it_breaks_down():
    grid = Grid((3, 200), (0.1, 5.0), (0.0, -2.5))
    _, x = grid.coordinates()
    still = np.zeros((3, 200))
    state = state_of(np.tile(np.where(x < 0, 1.0, 1e-4), (3, 1)), still, still)
    with pytest.raises(CannotSolve, match="use hllc-muscl-v1"):
        march(state, grid, 100, "roe-mc-split-v1")


@SCHEMES
def test_waves_that_are_too_fast_are_refused(scheme):
    state = lively()
    state["hu"][3, 4] = 1e6
    for begin in (lambda: march(state, GRID, 1, scheme), lambda: PROBLEM.cell_steps(state, GRID, scheme)):
        with pytest.raises(
            CannotSolve, match=r"waves must cross at most 18000 cells per second, got [0-9.]+e\+"
        ):
            begin()


def test_waves_that_become_too_fast_within_a_frame_are_refused():
    """Over a thin film: the front of a breaking dam begins at 3/2 of sqrt(g h) and ends at twice that."""
    spacing = 1.5 * 0.01 / (0.9 * 190)
    grid = Grid((3, 400), (3 * spacing, 400 * spacing))
    still = np.zeros(grid.shape)
    film = state_of(np.where(np.arange(400) < 200, 1.0, 1e-6) + still, still, still)
    assert PROBLEM.cell_steps(film, grid) == 190 * still.size
    with pytest.raises(CannotSolve, match="at most 18000 cells per second"):
        march(film, grid, 1)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"h": np.zeros(GRID.shape)}, "h must exceed 0 m, got 0"),
        ({"h": np.full(GRID.shape, np.nan)}, "h must be finite"),
        ({"hu": np.full(GRID.shape, np.inf)}, "hu must be finite"),
        ({"hv": np.zeros((4, 4))}, "hv must have the grid's shape"),
        ({"depth": np.zeros(GRID.shape)}, "unknown field depth"),
        ({"h": np.ones(GRID.shape, np.complex128)}, "h must hold real numbers"),
    ],
)
def test_a_bad_state_is_refused_before_the_first_frame(change, match):
    for use in (PROBLEM.frames, PROBLEM.invariants, PROBLEM.features):
        with pytest.raises(InvalidField, match=match):
            use({**lively(), **change}, GRID)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"scheme": "upwind"}, "unknown scheme upwind, expected one of hllc-muscl-v1, roe-mc-split-v1"),
        ({"walls": "glass"}, "unknown walls glass, expected one of outflow, reflecting, periodic"),
        ({"start": -1}, "start must be at least 0, got -1"),
    ],
)
def test_bad_options_are_refused_before_the_first_frame(options, match):
    with pytest.raises(ValueError, match=match):
        PROBLEM.frames(lively(), GRID, **options)


@pytest.mark.parametrize("shape", [(2, 8), (8, 2), (3, 16385)])
def test_a_grid_that_the_kernels_cannot_hold_is_refused(shape):
    flat = np.ones(shape)
    with pytest.raises(ValueError, match="a side has 3 to 16384 cells, got"):
        PROBLEM.frames(state_of(flat, flat, flat), Grid(shape))


def test_integers_and_single_precision_are_states_too():
    flat = np.ones((8, 8), np.float32)
    after = march(state_of(2 * flat.astype(int), 0 * flat, flat), Grid((8, 8)), 3, walls="periodic")
    assert all(field.dtype == np.float64 for field in after.values())
