"""The split diffusion-reaction step: against exact modes, an ODE solver and the reference solver."""

import math
from itertools import islice

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.fft import dctn, idctn
from scipy.integrate import solve_ivp
from torch import Tensor

from operators.diffusion_reaction_scheme import frames, half_step, react
from problems import EVOLUTION_PROBLEMS, Grid, coarsen

# written out anew: the oracles share nothing with the scheme
DU, DV, K = 1e-3, 5e-3, 5e-3
CPU = torch.device("cpu")
EXTENT = (2.0, 3.0)


def _smooth(ny: int, nx: int) -> Tensor:
    """A few cosines that satisfy the boundary condition, at the cell centers."""
    y, x = (math.pi * (torch.arange(n, dtype=torch.float64) + 0.5) / n for n in (ny, nx))
    y, x = torch.meshgrid(y, x, indexing="ij")
    u = 0.8 * torch.cos(x) * torch.cos(2 * y) + 0.3 * torch.cos(3 * x) + 0.1
    v = 0.5 * torch.cos(2 * x) - 0.4 * torch.cos(y) * torch.cos(x)
    return torch.stack([u, v])[None]


# --- diffusion


@pytest.mark.parametrize("mode", [0, 1, 5, 11])
def test_cosines_decay_exactly(mode: int) -> None:
    cells, side, time = 12, 1.7, 40.0
    cosine = torch.cos(math.pi * mode * (torch.arange(cells, dtype=torch.float64) + 0.5) / cells)
    found = half_step(cells, side, time, torch.float64, CPU) @ cosine
    for field, diffusivity in zip(found, (DU, DV), strict=True):
        decay = math.exp(-diffusivity * time * (math.pi * mode / side) ** 2)
        np.testing.assert_allclose(field, decay * cosine, rtol=0, atol=1e-13)


def test_diffusion_preserves_the_mean_and_two_steps_are_one_longer() -> None:
    short, long = (half_step(16, 1.0, time, torch.float64, CPU) for time in (0.5, 1.0))
    np.testing.assert_allclose(short @ short, long, rtol=0, atol=1e-14)
    # what leaves a cell enters another one, and a level field stays level
    for axis in (1, 2):
        np.testing.assert_allclose(short.sum(axis), 1.0, rtol=1e-13)
    np.testing.assert_allclose(short, short.mT, rtol=0, atol=1e-15)


def test_a_long_time_levels_everything() -> None:
    np.testing.assert_allclose(half_step(8, 1.0, 1e5, torch.float64, CPU), 1 / 8, rtol=1e-12)


# --- reaction


def _reaction(u: float, v: float) -> tuple[float, float]:
    return u - u**3 - K - v, u - v


def _uniform(u: float, v: float) -> Tensor:
    return torch.tensor([u, v], dtype=torch.float64).reshape(1, 2, 1, 1).expand(1, 2, 8, 4)


@pytest.mark.parametrize("start", [(0.5, -1.0), (-2.0, 0.3), (0.0, 0.0)])
def test_reaction_is_of_fourth_order(start: tuple[float, float]) -> None:
    exact = solve_ivp(lambda _, q: _reaction(*q), (0.0, 1.0), start, "DOP853", rtol=1e-12, atol=1e-13)
    errors = []
    for steps in (10, 20):
        state = _uniform(*start)
        for _ in range(steps):
            state = react(state, 1.0 / steps)
        errors.append(np.abs(state[0, :, 0, 0].numpy() - exact.y[:, -1]).max())
    assert errors[1] < 1e-5
    assert math.log2(errors[0] / errors[1]) > 3.7


def test_uniform_states_react_only() -> None:
    state = _uniform(0.7, -0.2)
    expected = react(state, 0.05)
    np.testing.assert_allclose(frames(state, 1, 0.05, EXTENT)[:, 0], expected, rtol=1e-13)


def test_the_uniform_equilibrium_stays() -> None:
    rest = _uniform(-(K ** (1 / 3)), -(K ** (1 / 3)))
    np.testing.assert_allclose(frames(rest, 50, 0.05, EXTENT)[0, -1], rest[0], rtol=1e-12)


# --- both


def _semi_discrete(state: NDArray[np.float64], time: float) -> NDArray[np.float64]:
    """Cells as unknowns of an ODE, diffusion by cosine transforms, the steps chosen by SciPy."""
    _, ny, nx = state.shape
    waves_y, waves_x = (np.pi * np.arange(n) / side for n, side in zip((ny, nx), EXTENT, strict=True))
    laplacian = -(waves_y[:, None] ** 2 + waves_x[None] ** 2)

    def rate(_: float, flat: NDArray[np.float64]) -> NDArray[np.float64]:
        u, v = flat.reshape(state.shape)
        spread = [
            diffusivity * idctn(laplacian * dctn(q, type=2, norm="ortho"), type=2, norm="ortho")
            for diffusivity, q in ((DU, u), (DV, v))
        ]
        return np.stack([spread[0] + u - u**3 - K - v, spread[1] + u - v]).ravel()

    found = solve_ivp(rate, (0.0, time), state.ravel(), "DOP853", rtol=1e-10, atol=1e-11)
    return np.asarray(found.y[:, -1]).reshape(state.shape)


def test_splitting_is_of_second_order_in_the_interval() -> None:
    state, time = _smooth(12, 16), 0.8
    exact = _semi_discrete(state[0].numpy(), time)
    errors = [
        np.abs(frames(state, count, time / count, EXTENT)[0, -1].numpy() - exact).max()
        for count in (4, 8, 16)
    ]
    assert errors[-1] < 3e-5
    assert np.log2(np.array(errors[:-1]) / errors[1:]) == pytest.approx(2.0, abs=0.1)


def test_converges_to_the_reference_solver() -> None:
    problem = EVOLUTION_PROBLEMS["diffusion_reaction"]
    fine = dict(zip("uv", _smooth(96, 128)[0].numpy(), strict=True))
    *_, last = islice(problem.frames(fine, Grid((96, 128), EXTENT)), 20)
    errors = []
    for shape in ((24, 32), (48, 64)):
        expected, start = coarsen(last, shape), coarsen(fine, shape)
        state = torch.from_numpy(np.stack([start["u"], start["v"]]))[None]
        found = frames(state, 20, problem.frame_interval, EXTENT)[0, -1].numpy()
        reference = np.stack([expected["u"], expected["v"]])
        errors.append(float(np.linalg.norm(found - reference) / np.linalg.norm(reference)))
    # cells of 0.08 m, then of 0.04 m
    assert errors[0] < 5e-3
    assert errors[1] < 0.35 * errors[0]


@pytest.mark.parametrize("axis", [-1, -2])
def test_mirrored_fields_react_mirrored(axis: int) -> None:
    state = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 2, 8, 12)))
    mirrored = frames(state.flip(axis), 3, 0.05, EXTENT)
    np.testing.assert_allclose(mirrored, frames(state, 3, 0.05, EXTENT).flip(axis), rtol=0, atol=1e-12)


def test_exchanged_axes_exchange_the_sides() -> None:
    state = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 2, 8, 12)))
    exchanged = frames(state.mT, 3, 0.05, EXTENT[::-1])
    np.testing.assert_allclose(exchanged, frames(state, 3, 0.05, EXTENT).mT, rtol=0, atol=1e-12)


def test_white_noise_stays_bounded() -> None:
    state = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 2, 16, 16)))
    assert frames(state, 60, 0.05, (2.0, 2.0)).abs().max() < 5.0


def test_gradients_of_the_split_step() -> None:
    state = _smooth(4, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda q: frames(q, 3, 0.1, EXTENT), state, fast_mode=True)
