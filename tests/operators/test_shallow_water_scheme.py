"""The differentiable shallow water step: against exact solutions, another solver, and its compiled twin."""

import math
from itertools import islice
from typing import get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from torch import Tensor

from operators import shallow_water_kernel
from operators.shallow_water_scheme import Walls, frames, step
from problems import EVOLUTION_PROBLEMS, Grid, coarsen

WALLS: tuple[Walls, ...] = get_args(Walls)
INTERVAL = 0.01


def _rough(ny: int = 24, nx: int = 16, seed: int = 0, batch: int = 1, least: float = 0.5) -> Tensor:
    """White noise: depths of ``least`` to 2, speeds up to 0.5."""
    rng = np.random.default_rng(seed)
    depth = rng.uniform(least, 2.0, (batch, 1, ny, nx))
    return torch.from_numpy(np.concatenate([depth, depth * rng.uniform(-0.5, 0.5, (batch, 2, ny, nx))], 1))


def _smooth(ny: int, nx: int) -> Tensor:
    """A moving hill and a sheared flow on (0, 1)^2, averaged over the cells by 8 x 8 points."""
    y, x = (((torch.arange(8 * n, dtype=torch.float64) + 0.5) / (8 * n)) for n in (ny, nx))
    y, x = torch.meshgrid(y, x, indexing="ij")
    depth = 1.0 + 0.2 * torch.exp(-40.0 * ((x - 0.45) ** 2 + (y - 0.55) ** 2))
    wave = torch.sin(2 * math.pi * x) * torch.sin(math.pi * y) ** 2
    state = torch.stack([depth, 0.1 * wave, 0.05 * depth * wave.flip(0)])
    return state.reshape(3, ny, 8, nx, 8).mean((2, 4))[None]


def _ratios(ny: int, nx: int, interval: float = INTERVAL, side: float = 1.0) -> tuple[float, float]:
    return interval * ny / side, interval * nx / side


# --- its compiled twin, and precision


@pytest.mark.parametrize("walls", WALLS)
def test_compiled_kernel_takes_the_same_steps(walls: Walls) -> None:
    state = _rough(batch=2).float()
    state[1, 0] += 3.0
    # up to three steps a frame
    ratios = 0.9, 0.6
    expected = frames(state, 5, ratios, walls)
    found = shallow_water_kernel.frames(state.numpy(), 5, ratios, walls)
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("walls", WALLS)
def test_compiled_kernel_next_to_dry_ground(walls: Walls) -> None:
    state = _nearly_dry(1e-3, seed=3).float()
    expected = frames(state, 3, (0.3, 0.3), walls)
    found = shallow_water_kernel.frames(state.numpy(), 3, (0.3, 0.3), walls)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_single_precision_is_enough() -> None:
    state = _rough()
    exact = frames(state, 10, (0.4, 0.4), "outflow")
    assert (frames(state.float(), 10, (0.4, 0.4), "outflow") - exact).abs().max() < 2e-5


# --- exact solutions


def _dam_break(left: float, right: float, x: NDArray[np.float64], t: float) -> NDArray[np.float64]:
    """Depth after a wet dam at x = 0 broke: rarefaction, plateau, bore (Stoker 1957, section 10.8)."""
    c0, c1 = math.sqrt(left), math.sqrt(right)

    def mismatch(depth: float) -> float:
        behind = 2.0 * (c0 - math.sqrt(depth))
        through = (depth - right) * math.sqrt(0.5 * (depth + right) / (depth * right))
        return behind - through

    depth = brentq(mismatch, right, left, xtol=1e-14)
    speed = 2.0 * (c0 - math.sqrt(depth))
    bore = depth * speed / (depth - right)
    fan = ((2.0 * c0 - x / t) / 3.0) ** 2
    plateau = np.where(x < bore * t, depth, c1**2)
    return np.where(x < -c0 * t, left, np.where(x < (speed - math.sqrt(depth)) * t, fan, plateau))


def _dam_break_error(cells: int, axis: int) -> float:
    centres = (np.arange(cells) + 0.5) / cells - 0.5
    depth = torch.from_numpy(np.where(centres < 0, 2.0, 1.0)).expand(6, cells)
    state = torch.stack([depth, torch.zeros_like(depth), torch.zeros_like(depth)])[None]
    if axis == 0:
        state = state.mT
    count, time = cells // 4, 0.2
    ratio = time / count * cells
    found = frames(state, count, (ratio, ratio), "outflow")[0, -1, 0]
    row = (found if axis == 1 else found.T).numpy()
    # nothing varies along the dam
    np.testing.assert_array_equal(row, np.broadcast_to(row[:1], row.shape))
    return float(np.abs(row[0] - _dam_break(2.0, 1.0, centres, time)).mean())


@pytest.mark.parametrize("axis", [0, 1])
def test_converges_to_the_exact_dam_break(axis: int) -> None:
    errors = [_dam_break_error(cells, axis) for cells in (64, 128, 256)]
    assert errors[0] < 9e-3
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    # first order at the bore, somewhat less at the corners of the rarefaction
    assert orders.min() > 0.85


def test_sheared_water_flows_past_itself_unchanged() -> None:
    """Layers of equal depth slide along each other: an exact steady state, however rough."""
    state = torch.zeros(1, 3, 8, 12, dtype=torch.float64)
    state[:, 0] = 1.3
    state[:, 2] = torch.rand(12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(frames(state, 4, (0.3, 0.3), "outflow")[0, -1], state[0])


def test_small_waves_travel_at_the_celerity() -> None:
    cells, depth, height = 128, 2.0, 1e-5
    x = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    hill = height * torch.sin(2 * math.pi * x).expand(4, cells)
    state = torch.stack([depth + hill, math.sqrt(depth) * hill, torch.zeros_like(hill)])[None]
    period = 1.0 / math.sqrt(depth)
    found = frames(state, 256, (0.0, period / 256 * cells), "periodic")[0, -1]
    assert (found[0] - state[0, 0]).abs().mean() < 5e-3 * height


# --- the reference solver, which is other code


@pytest.fixture(scope="module")
def reference() -> dict[Walls, Tensor]:
    """Ten frames on 256 x 256 cells."""
    problem, found = EVOLUTION_PROBLEMS["shallow_water"], {}
    state = dict(zip(("h", "hu", "hv"), _smooth(256, 256)[0].numpy(), strict=True))
    for walls in WALLS:
        *_, last = islice(problem.frames(state, Grid((256, 256)), "hllc-muscl-v1", walls), 10)
        found[walls] = torch.stack([torch.from_numpy(last[name]) for name in ("h", "hu", "hv")])
    return found


# water flows out through the walls, and an outflow wall is exact to first order only
@pytest.mark.parametrize(("walls", "order"), [("outflow", 1.3), ("reflecting", 1.9), ("periodic", 1.8)])
def test_converges_to_the_reference_solver(
    reference: dict[Walls, Tensor], walls: Walls, order: float
) -> None:
    errors = []
    for cells in (32, 64):
        averaged = coarsen({"q": reference[walls].numpy()}, (cells, cells))["q"]
        found = frames(_smooth(cells, cells), 10, _ratios(cells, cells), walls)[0, -1].numpy()
        errors.append(np.abs(found - averaged).mean(axis=(1, 2)))
    assert errors[1].max() < 4e-4
    assert np.log2(errors[0] / errors[1]).min() > order


# --- what it keeps


@pytest.mark.parametrize("walls", ["reflecting", "periodic"])
def test_mass_is_conserved_to_rounding(walls: Walls) -> None:
    state = _rough(least=0.05)
    marched = frames(state, 20, (0.4, 0.4), walls)[0, :, 0].sum((-2, -1))
    np.testing.assert_allclose(marched, float(state[0, 0].sum()), rtol=1e-13)


def test_momentum_is_conserved_on_a_torus() -> None:
    state = _rough()
    marched = frames(state, 20, (0.4, 0.4), "periodic")[0, :, 1:].sum((-2, -1))
    np.testing.assert_allclose(marched, state[0, 1:].sum((-2, -1)).expand(20, 2), rtol=0, atol=1e-11)


@pytest.mark.parametrize("walls", WALLS)
@pytest.mark.parametrize("depth", [1e-6, 1.0, 1.3])
def test_still_water_stays_exactly_still(walls: Walls, depth: float) -> None:
    state = torch.zeros(1, 3, 8, 12)
    state[:, 0] = depth
    marched = frames(state, 5, (0.4, 0.3), walls)
    assert torch.equal(marched, state[:, None].expand_as(marched))
    compiled = shallow_water_kernel.frames(state.numpy(), 5, (0.4, 0.3), walls)
    np.testing.assert_array_equal(compiled, marched)


def _nearly_dry(film: float, seed: int) -> Tensor:
    """Pools of up to 3 beside a film of water, everything rushing about."""
    rng = np.random.default_rng(seed)
    depth = np.where(rng.random((1, 1, 20, 16)) < 0.5, film, rng.uniform(0.1, 3.0, (1, 1, 20, 16)))
    return torch.from_numpy(np.concatenate([depth, depth * rng.uniform(-0.5, 0.5, (1, 2, 20, 16))], axis=1))


@pytest.mark.parametrize("walls", WALLS)
@pytest.mark.parametrize("film", [1e-6, 1e-3])
def test_depth_stays_positive_next_to_dry_ground(walls: Walls, film: float) -> None:
    state = _nearly_dry(film, seed=0)
    marched = frames(state, 10, (0.3, 0.3), walls)
    assert torch.isfinite(marched).all()
    assert marched[:, :, 0].min() > 0
    if walls != "outflow":
        np.testing.assert_allclose(marched[0, -1, 0].sum(), state[0, 0].sum(), rtol=1e-12)
    compiled = shallow_water_kernel.frames(state.float().numpy(), 100, (0.3, 0.3), walls)
    assert np.isfinite(compiled).all()
    assert compiled[:, :, 0].min() > 0


@pytest.mark.parametrize("walls", WALLS)
def test_a_cell_gives_away_less_than_it_has(walls: Walls) -> None:
    """A step far beyond the stable one would leave negative depths."""
    state, ratio = _rough(), torch.full((1, 1, 1), 2.0, dtype=torch.float64)
    stepped = step(state, (ratio, ratio), walls, x_first=True)[:, 0]
    assert stepped.min() > 0
    if walls != "outflow":
        np.testing.assert_allclose(stepped.sum(), state[:, 0].sum(), rtol=1e-13)


# --- steps within a frame


def test_a_long_frame_takes_several_steps() -> None:
    state, ratio = _rough(), 1.7
    courant = ratio * float((state[:, 1:].abs() / state[:, :1] + state[:, :1].sqrt()).max())
    steps = math.ceil(courant / 0.9)
    assert steps == 4
    part, expected = torch.full((1, 1, 1), ratio / steps, dtype=torch.float64), state
    for number in range(steps):
        expected = step(expected, (part, part), "outflow", x_first=number % 2 == 0)
    assert torch.equal(frames(state, 1, (ratio, ratio), "outflow")[:, 0], expected)


def test_every_trajectory_takes_its_own_steps() -> None:
    calm, wild = _rough(seed=1), _rough(seed=2) * 9.0
    together = frames(torch.cat([calm, wild]), 3, (0.5, 0.5), "reflecting")
    assert torch.equal(together[:1], frames(calm, 3, (0.5, 0.5), "reflecting"))
    assert torch.equal(together[1:], frames(wild, 3, (0.5, 0.5), "reflecting"))


# --- symmetries


def _one_step(state: Tensor, walls: Walls, *, x_first: bool = True) -> Tensor:
    ratio = torch.full((1, 1, 1), 0.3, dtype=torch.float64)
    return step(state, (ratio, ratio), walls, x_first=x_first)


@pytest.mark.parametrize("walls", WALLS)
def test_mirrored_water_flows_mirrored(walls: Walls) -> None:
    state = _rough()
    for axis, channel in ((-1, 1), (-2, 2)):
        signs = torch.ones(3, 1, 1, dtype=torch.float64)
        signs[channel] = -1.0
        mirrored = _one_step(signs * state.flip(axis), walls)
        np.testing.assert_allclose(mirrored, signs * _one_step(state, walls).flip(axis), rtol=0, atol=1e-14)


@pytest.mark.parametrize("walls", WALLS)
def test_axes_are_treated_alike(walls: Walls) -> None:
    state, exchange = _rough(), [0, 2, 1]
    turned = _one_step(state[:, exchange].mT, walls, x_first=False)
    np.testing.assert_array_equal(turned, _one_step(state, walls)[:, exchange].mT)


def test_a_torus_has_no_seam() -> None:
    state = _rough()
    shifted = _one_step(state.roll((5, 3), (-2, -1)), "periodic")
    np.testing.assert_array_equal(shifted, _one_step(state, "periodic").roll((5, 3), (-2, -1)))


# --- gradients


@pytest.mark.parametrize("walls", WALLS)
def test_gradients_are_those_of_finite_differences(walls: Walls) -> None:
    state = _rough(8, 6, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda q: frames(q, 2, (0.3, 0.2), walls), state, eps=1e-7, atol=1e-5, fast_mode=True
    )


def test_gradients_in_still_water_are_finite() -> None:
    state = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    state[:, 0] = 1.0
    state.requires_grad_()
    (slope,) = torch.autograd.grad(frames(state, 2, (0.3, 0.3), "outflow").square().sum(), state)
    assert torch.isfinite(slope).all()
