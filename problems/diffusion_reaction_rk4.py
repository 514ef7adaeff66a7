"""``fv5-rk4-v1``: five-point finite volumes and the classical Runge-Kutta scheme of fourth order.

The flux through a face is the difference of its two cells over their distance; a wall has no flux. Steps are
graded: the first frames after white noise need shorter ones than what follows.
"""

# mypy: disable-error-code="no-untyped-def"
# numba infers the types of the kernels

import math

import numpy as np
from jaxtyping import Float64

from problems.compiled import compiled
from problems.diffusion_reaction_equation import (
    CONSTANT,
    DIFFUSIVITY_U,
    DIFFUSIVITY_V,
    FRAME_INTERVAL,
    stiffness_of_diffusion,
    stiffness_of_reaction,
)
from problems.grid import Grid

SCHEME = "fv5-rk4-v1"

# frames after the initial state that a rough one needs to become smooth
_ROUGH_FRAMES = 4
_ROUGH_STEPS, _SMOOTH_STEPS = 20, 5
# step times stiffness: the scheme is stable up to 2.78; in rough frames it also has to damp what it cannot
# resolve: its factor is 0.27 at 1.6, 0.56 at 2.4
_ROUGH_LIMIT, _SMOOTH_LIMIT = 1.6, 2.4


def steps(frame: int, grid: Grid, largest_u: float, largest_v: float) -> int:
    """Steps from ``frame`` to the next for max |u| and max |v|."""
    stiffness = stiffness_of_diffusion(grid) + stiffness_of_reaction(largest_u, largest_v)
    least, limit = (_ROUGH_STEPS, _ROUGH_LIMIT) if frame < _ROUGH_FRAMES else (_SMOOTH_STEPS, _SMOOTH_LIMIT)
    return max(least, math.ceil(FRAME_INTERVAL * stiffness / limit))


def advance(
    u: Float64[np.ndarray, "y x"], v: Float64[np.ndarray, "y x"], grid: Grid, frame: int
) -> tuple[Float64[np.ndarray, "y x"], Float64[np.ndarray, "y x"]]:
    """The state one frame after ``frame``."""
    count = steps(frame, grid, float(np.abs(u).max()), float(np.abs(v).max()))
    u, v = u.copy(), v.copy()
    hy, hx = grid.spacing
    constants = (DIFFUSIVITY_U, DIFFUSIVITY_V, CONSTANT, hy**-2.0, hx**-2.0)
    integrate(u, v, FRAME_INTERVAL / count, count, constants)
    return u, v


@compiled()
def integrate(u, v, step, count, constants):
    """``count`` steps in place."""
    sum_u, stage_u, other_u = np.empty_like(u), np.empty_like(u), np.empty_like(u)
    sum_v, stage_v, other_v = np.empty_like(v), np.empty_like(v), np.empty_like(v)
    row_u, row_v = np.empty_like(u[0]), np.empty_like(v[0])
    for _ in range(count):
        for y in range(u.shape[0]):
            rates(u, v, y, constants, row_u, row_v)
            _first(u[y], row_u, step, sum_u[y], stage_u[y])
            _first(v[y], row_v, step, sum_v[y], stage_v[y])
        for y in range(u.shape[0]):
            rates(stage_u, stage_v, y, constants, row_u, row_v)
            _middle(u[y], row_u, step, 0.5, sum_u[y], other_u[y])
            _middle(v[y], row_v, step, 0.5, sum_v[y], other_v[y])
        for y in range(u.shape[0]):
            rates(other_u, other_v, y, constants, row_u, row_v)
            _middle(u[y], row_u, step, 1.0, sum_u[y], stage_u[y])
            _middle(v[y], row_v, step, 1.0, sum_v[y], stage_v[y])
        for y in range(u.shape[0]):
            rates(stage_u, stage_v, y, constants, row_u, row_v)
            _last(sum_u[y], row_u, step, u[y])
            _last(sum_v[y], row_v, step, v[y])


@compiled()
def _first(state, rate, step, total, stage):
    for x in range(state.size):
        total[x] = state[x] + step / 6.0 * rate[x]
        stage[x] = state[x] + step / 2.0 * rate[x]


@compiled()
def _middle(state, rate, step, share, total, stage):
    for x in range(state.size):
        total[x] += step / 3.0 * rate[x]
        stage[x] = state[x] + share * step * rate[x]


@compiled()
def _last(total, rate, step, state):
    for x in range(state.size):
        state[x] = total[x] + step / 6.0 * rate[x]


@compiled()
def rates(u, v, y, constants, row_u, row_v):
    """Time derivatives in row ``y``."""
    diffusivity_u, diffusivity_v, constant, weight_y, weight_x = constants
    _laplacian(u, y, diffusivity_u * weight_y, diffusivity_u * weight_x, row_u)
    _laplacian(v, y, diffusivity_v * weight_y, diffusivity_v * weight_x, row_v)
    here_u, here_v = u[y], v[y]
    for x in range(row_u.size):
        a, b = here_u[x], here_v[x]
        row_u[x] += a - a * a * a - constant - b
        row_v[x] += a - b


@compiled()
def _laplacian(field, y, weight_y, weight_x, row):
    """Weighted differences to the four neighbors; a cell beyond a wall equals the one before it."""
    ny, nx = field.shape
    below, here, above = field[max(y - 1, 0)], field[y], field[min(y + 1, ny - 1)]
    for x in range(1, nx - 1):
        across_y = below[x] + above[x] - 2.0 * here[x]
        across_x = here[x - 1] + here[x + 1] - 2.0 * here[x]
        row[x] = weight_y * across_y + weight_x * across_x
    for x in (0, nx - 1):
        across_y = below[x] + above[x] - 2.0 * here[x]
        across_x = here[max(x - 1, 0)] + here[min(x + 1, nx - 1)] - 2.0 * here[x]
        row[x] = weight_y * across_y + weight_x * across_x
