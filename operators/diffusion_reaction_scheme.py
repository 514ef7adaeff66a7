"""A FitzHugh-Nagumo step for tensors: what a learnt correction starts from.

``u_t = Du lap u + u - u^3 - k - v``, ``v_t = Dv lap v + u - v`` with zero flux through the walls, by Strang
splitting (Strang 1968): half a step of diffusion, a step of reaction by the classical Runge-Kutta method,
half a step of diffusion. Diffusion is exact for what the grid resolves: the heat semigroup in the basis of
cosines that satisfy the boundary condition, two matrix products for each field. It is stable for any step;
the reaction is for the steps of a frame and values up to about 7, ten times what the equation settles at.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from operators.per_grid import per_grid

DIFFUSIVITIES = (1e-3, 5e-3)
K = 5e-3


def frames(
    state: Float[Tensor, "batch 2 y x"], count: int, interval: float, extent: tuple[float, float]
) -> Float[Tensor, "batch count 2 y x"]:
    """The states at the ends of ``count`` equal intervals [s], one step each.

    Args:
        state: u and v.
        count: number of intervals.
        interval: length of an interval [s].
        extent: side lengths (Ly, Lx) [m].
    """
    ny, nx = state.shape[-2:]
    half_y = half_step(ny, extent[0], 0.5 * interval, state.dtype, state.device)
    half_x = half_step(nx, extent[1], 0.5 * interval, state.dtype, state.device)
    marched = []
    for _ in range(count):
        state = half_y @ state @ half_x
        state = react(state, interval)
        state = half_y @ state @ half_x
        marched.append(state)
    return torch.stack(marched, dim=1)


def react(state: Float[Tensor, "batch 2 y x"], interval: float) -> Float[Tensor, "batch 2 y x"]:
    """The reaction alone, by one classical Runge-Kutta step of fourth order."""
    first = _rate(state)
    second = _rate(state + 0.5 * interval * first)
    third = _rate(state + 0.5 * interval * second)
    fourth = _rate(state + interval * third)
    return state + (interval / 6.0) * (first + 2.0 * (second + third) + fourth)


def _rate(state: Tensor) -> Tensor:
    u, v = state[:, 0], state[:, 1]
    return torch.stack([u - u * u * u - K - v, u - v], dim=1)


@per_grid
def half_step(
    cells: int, side: float, time: float, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "2 n n"]:
    """The heat semigroup of both fields along one axis: symmetric, its rows sum to 1 (cell averages)."""
    mode = torch.arange(cells, dtype=torch.float64, device=device)
    place = (torch.arange(cells, dtype=torch.float64, device=device) + 0.5) / cells
    size: float = torch.sym_sqrt(2.0 / cells)
    cosines = torch.cos(math.pi * mode[:, None] * place) * size
    cosines[0] /= math.sqrt(2.0)
    diffusivity = torch.tensor(DIFFUSIVITIES, dtype=torch.float64, device=device)[:, None]
    decay = torch.exp(-diffusivity * time * (math.pi * mode / side) ** 2)
    return (cosines.T * decay[:, None, :] @ cosines).to(dtype)
