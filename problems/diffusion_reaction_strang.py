"""``fv5-strang-v1``: the same finite volumes, split into half a reaction, diffusion, half a reaction.

The diffusion of the five-point operator is solved exactly. In one dimension, its kernel after the time t is
``exp(-2 a) I_n(2 a)`` for cells n apart, with ``a = D t / h^2`` and the modified Bessel function I_n; walls
without flux mirror the state; the two directions follow one another. The kernel falls off so fast that a
short convolution is several times faster than cosine transforms. The reaction of a cell is one step of the
classical Runge-Kutta scheme. All of it in float32.

Source: Strang 1968, *On the construction and comparison of difference schemes*; Lindeberg 1990, *Scale-space
for discrete signals*, for the kernel.
"""

# mypy: disable-error-code="no-untyped-def"
# numba infers the types of the kernels

import math
from functools import lru_cache

import numpy as np
import scipy
from jaxtyping import Float, Float64

from problems.compiled import compiled
from problems.diffusion_reaction_equation import (
    CONSTANT,
    DIFFUSIVITY_U,
    DIFFUSIVITY_V,
    FRAME_INTERVAL,
    stiffness_of_reaction,
)
from problems.grid import Grid

SCHEME = "fv5-strang-v1"

_GRADED_STEPS = (16, 8, 8, 4, 4, 4, 4, 4)
_SMOOTH_STEPS = 2
# step times stiffness up to which one Runge-Kutta step is good for a reaction
_REACTION_LIMIT = 0.5


def steps(frame: int, _grid: Grid, largest_u: float, largest_v: float) -> int:
    """Steps from ``frame`` to the next for max |u| and max |v|; diffusion is exact on any grid."""
    graded = _GRADED_STEPS[frame] if frame < len(_GRADED_STEPS) else _SMOOTH_STEPS
    stiffness = stiffness_of_reaction(largest_u, largest_v)
    return max(graded, math.ceil(FRAME_INTERVAL * stiffness / _REACTION_LIMIT))


def advance(
    u: Float64[np.ndarray, "y x"], v: Float64[np.ndarray, "y x"], grid: Grid, frame: int
) -> tuple[Float64[np.ndarray, "y x"], Float64[np.ndarray, "y x"]]:
    """The state one frame after ``frame``."""
    count = steps(frame, grid, float(np.abs(u).max()), float(np.abs(v).max()))
    return split(u, v, grid, FRAME_INTERVAL / count, count)


def split(
    u: Float64[np.ndarray, "y x"],
    v: Float64[np.ndarray, "y x"],
    grid: Grid,
    step: float,
    count: int,
    precision: type[np.floating] = np.float32,
) -> tuple[Float64[np.ndarray, "y x"], Float64[np.ndarray, "y x"]]:
    """The state after ``count`` steps of ``step`` [s]."""
    dtype = np.dtype(precision)
    hy, hx = grid.spacing
    kernels_u, kernels_v = (
        tuple(kernel(d * step / h**2, dtype) for h in (hy, hx)) for d in (DIFFUSIVITY_U, DIFFUSIVITY_V)
    )
    state = u.astype(dtype), v.astype(dtype)
    u, v = integrate(*state, kernels_u, kernels_v, count, dtype.type(step), dtype.type(CONSTANT))
    return u.astype(np.float64), v.astype(np.float64)


@lru_cache(maxsize=64)
def kernel(a: float, dtype: np.dtype[np.floating]) -> Float[np.ndarray, " reach"]:
    """Weights of the cells 0, 1, 2, ... away; what is left out is below rounding, and the sum is 1."""
    reach = 1 + math.ceil(10.0 * math.sqrt(2.0 * a) + 12.0)
    weights = scipy.special.ive(np.arange(reach), 2.0 * a)
    kept = max(1, int(np.count_nonzero(weights > 0.05 * np.finfo(dtype).eps)))
    weights = weights[:kept]
    return np.asarray(weights / (2.0 * weights.sum() - weights[0]), dtype)


@compiled()
def integrate(u, v, kernels_u, kernels_v, count, step, constant):
    """The state after ``count`` steps; ``u`` and ``v`` are overwritten."""
    half = step / u.dtype.type(2)
    next_u, next_v = np.empty_like(u), np.empty_like(v)
    line_u, line_v = _line(u, kernels_u), _line(v, kernels_v)
    for y in range(u.shape[0]):
        _react(u[y], v[y], half, constant)
    for done in range(count):
        # the second half of one reaction and the first of the next are one
        reaction = half if done == count - 1 else step
        for y in range(u.shape[0]):
            diffuse(u, y, kernels_u, line_u, next_u[y])
            diffuse(v, y, kernels_v, line_v, next_v[y])
            _react(next_u[y], next_v[y], reaction, constant)
        u, v, next_u, next_v = next_u, next_v, u, v
    return u, v


@compiled()
def _line(field, kernels):
    """Room for a row and what the walls mirror of it."""
    return np.empty(field.shape[1] + 2 * (kernels[1].size - 1), field.dtype)


@compiled()
def diffuse(field, y, kernels, line, out):
    """Row ``y`` after diffusion."""
    along_y, along_x = kernels
    nx, margin = out.size, along_x.size - 1
    _weigh_rows(field, y, along_y, line[margin : margin + nx])
    for x in range(margin):
        line[margin - 1 - x] = line[margin + _mirror(-1 - x, nx)]
        line[margin + nx + x] = line[margin + _mirror(nx + x, nx)]
    _weigh_cells(line, along_x, out)


@compiled()
def _mirror(index, size):
    """The cell inside the walls that the cell ``index`` outside them is a mirror image of."""
    index %= 2 * size
    return index if index < size else 2 * size - 1 - index


@compiled()
def _weigh_rows(field, y, weights, out):
    ny, nx = field.shape
    here = field[y]
    for x in range(nx):
        out[x] = weights[0] * here[x]
    for n in range(1, weights.size):
        below, above, weight = field[_mirror(y - n, ny)], field[_mirror(y + n, ny)], weights[n]
        for x in range(nx):
            out[x] += weight * (below[x] + above[x])


@compiled()
def _weigh_cells(row, weights, out):
    margin = weights.size - 1
    for x in range(out.size):
        out[x] = weights[0] * row[margin + x]
    for n in range(1, weights.size):
        weight, left, right = weights[n], row[margin - n :], row[margin + n :]
        for x in range(out.size):
            out[x] += weight * (left[x] + right[x])


@compiled(inline="always")
def _rate(u, v, constant):
    """Rate of the activator in a cell."""
    return u - u * u * u - constant - v


@compiled()
def _react(u, v, step, constant):
    """One Runge-Kutta step of the reaction in a row."""
    half, sixth = step / u.dtype.type(2), step / u.dtype.type(6)
    two = u.dtype.type(2)
    for x in range(u.size):
        u0, v0 = u[x], v[x]
        a, b = _rate(u0, v0, constant), u0 - v0
        u1, v1 = u0 + half * a, v0 + half * b
        c, d = _rate(u1, v1, constant), u1 - v1
        u2, v2 = u0 + half * c, v0 + half * d
        e, f = _rate(u2, v2, constant), u2 - v2
        u3, v3 = u0 + step * e, v0 + step * f
        u[x] = u0 + sixth * (a + two * (c + e) + _rate(u3, v3, constant))
        v[x] = v0 + sixth * (b + two * (d + f) + (u3 - v3))
