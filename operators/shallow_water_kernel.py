"""The scheme of ``operators.shallow_water_scheme``, compiled for the CPU: float32, without gradients.

The rows of a sweep are contiguous and its loops have no branches, so that they vectorise; the sweep along y
is the sweep along x of the transposed state.
"""

# mypy: disable-error-code="no-untyped-def"
# numba infers the types of the kernels

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numba
import numpy as np
from jaxtyping import Float32

from operators.shallow_water_scheme import (
    COURANT,
    DRAIN,
    FASTEST,
    GHOSTS,
    LEAST_EDGE,
    MOST_STEPS,
    TINY,
    Walls,
)

_WALLS: dict[Walls, int] = {"outflow": 0, "reflecting": 1, "periodic": 2}
_ZERO, _HALF, _ONE, _TWO = np.float32(0.0), np.float32(0.5), np.float32(1.0), np.float32(2.0)
_TINY, _LEAST_EDGE, _DRAIN = np.float32(TINY), np.float32(LEAST_EDGE), np.float32(DRAIN)
_COURANT, _FASTEST = np.float32(COURANT), np.float32(FASTEST)


def _compiled(function: Callable[..., Any]) -> Any:
    compile_ = partial(numba.njit, nogil=True, fastmath={"contract", "nsz", "arcp"}, error_model="numpy")
    # a run-time type checker may have wrapped it
    function = inspect.unwrap(function)
    try:
        return compile_(cache=True)(function)
    except RuntimeError:
        # neither the package nor the user's cache directory can be written: compile in memory
        return compile_()(function)


def frames(
    state: Float32[np.ndarray, "batch 3 y x"], count: int, ratios: tuple[float, float], walls: Walls
) -> Float32[np.ndarray, "batch count 3 y x"]:
    """See ``shallow_water_scheme.frames``."""
    batch, channels, ny, nx = state.shape
    out = np.empty((batch, count, channels, ny, nx), np.float32)
    for sample in range(batch):
        _march(np.ascontiguousarray(state[sample]), out[sample], *map(np.float32, ratios), _WALLS[walls])
    return out


@_compiled
def _march(state, out, ratio_y, ratio_x, walls):
    ny, nx = state.shape[1], state.shape[2]
    work = np.empty((16, max(ny, nx) + 2 * GHOSTS), np.float32)
    # (h, along, across) by rows of the sweep: as they are along x, transposed along y
    rows = np.empty((3, ny, nx), np.float32)
    columns = np.empty((3, nx, ny), np.float32)
    rows[:] = state
    for frame in range(out.shape[0]):
        _bound_speed(rows)
        steps = _steps(rows, ratio_y, ratio_x)
        part_y, part_x = np.float32(ratio_y / steps), np.float32(ratio_x / steps)
        for done in range(int(steps)):
            # thin water may have gained speed in the step before
            if done > 0:
                _bound_speed(rows)
            if (frame + done) % 2 == 0:
                _sweep(rows, part_x, walls, work)
                _turn(rows, columns)
                _sweep(columns, part_y, walls, work)
                _turn(columns, rows)
            else:
                _turn(rows, columns)
                _sweep(columns, part_y, walls, work)
                _turn(columns, rows)
                _sweep(rows, part_x, walls, work)
        out[frame] = rows


@_compiled
def _bound_speed(q):
    deepest = _ZERO
    for j in range(q.shape[1]):
        for i in range(q.shape[2]):
            deepest = max(deepest, q[0, j, i])
    fastest = _FASTEST * math.sqrt(deepest)
    for j in range(q.shape[1]):
        for i in range(q.shape[2]):
            most = fastest * q[0, j, i]
            q[1, j, i] = min(max(q[1, j, i], -most), most)
            q[2, j, i] = min(max(q[2, j, i], -most), most)


@_compiled
def _steps(q, ratio_y, ratio_x):
    courant = _ZERO
    for j in range(q.shape[1]):
        for i in range(q.shape[2]):
            h = q[0, j, i]
            celerity = math.sqrt(h)
            along_x = ratio_x * (abs(q[1, j, i] / h) + celerity)
            along_y = ratio_y * (abs(q[2, j, i] / h) + celerity)
            courant = max(courant, max(along_x, along_y))
    steps = math.ceil(courant / _COURANT) if courant < _COURANT * MOST_STEPS else MOST_STEPS
    return np.float32(max(steps, 1))


@_compiled
def _turn(source, target):
    """Exchange the axes, and which momentum is along the sweep."""
    for j in range(source.shape[1]):
        for i in range(source.shape[2]):
            target[0, i, j] = source[0, j, i]
            target[1, i, j] = source[2, j, i]
            target[2, i, j] = source[1, j, i]


@_compiled
def _pad(row, sign, walls, out):
    n = row.size
    out[GHOSTS : GHOSTS + n] = row
    for ghost in range(GHOSTS):
        if walls == 0:
            first, last = row[0], row[n - 1]
        elif walls == 1:
            first, last = sign * row[GHOSTS - 1 - ghost], sign * row[n - 1 - ghost]
        else:
            first, last = row[n - GHOSTS + ghost], row[ghost]
        out[ghost], out[GHOSTS + n + ghost] = first, last


@_compiled
def _sweep(q, ratio, walls, work):
    n = q.shape[2]
    h, a, b = work[0, : n + 6], work[1, : n + 6], work[2, : n + 6]
    low_h, low_a, low_b = work[3], work[4], work[5]
    high_h, high_a, high_b = work[6], work[7], work[8]
    flux_h, flux_a, flux_b, share = work[9], work[10], work[11], work[12]
    for j in range(q.shape[1]):
        _pad(q[0, j], _ONE, walls, h)
        _pad(q[1, j], -_ONE, walls, a)
        _pad(q[2, j], _ONE, walls, b)
        _edges(h, a, b, low_h, low_a, low_b, high_h, high_a, high_b, _HALF * ratio, n + 4)
        _hllc(high_h, high_a, high_b, low_h[1:], low_a[1:], low_b[1:], flux_h, flux_a, flux_b, n + 3)
        _share(h[2:], flux_h, share, ratio, n + 2)
        for i in range(n + 1):
            factor = share[i] if flux_h[i + 1] > _ZERO else share[i + 1]
            flux_h[i] = flux_h[i + 1] * factor
            flux_a[i] = flux_a[i + 1] * factor
            flux_b[i] = flux_b[i + 1] * factor
        for i in range(n):
            q[0, j, i] -= ratio * (flux_h[i + 1] - flux_h[i])
            q[1, j, i] -= ratio * (flux_a[i + 1] - flux_a[i])
            q[2, j, i] -= ratio * (flux_b[i + 1] - flux_b[i])


@_compiled
def _half_slope(before, after):
    size = min(min(abs(before), abs(after)), np.float32(0.25) * abs(before + after))
    return math.copysign(size, before) if before * after > _ZERO else _ZERO


@_compiled
def _edges(h, a, b, low_h, low_a, low_b, high_h, high_a, high_b, half, count):
    for i in range(count):
        hi, ai, bi = h[i + 1], a[i + 1], b[i + 1]
        dh = _half_slope(hi - h[i], h[i + 2] - hi)
        da = _half_slope(ai - a[i], a[i + 2] - ai)
        db = _half_slope(bi - b[i], b[i + 2] - bi)
        h0, a0, b0, h1, a1, b1 = hi - dh, ai - da, bi - db, hi + dh, ai + da, bi + db
        u0, u1 = a0 / h0, a1 / h1
        change_h = half * (a1 - a0)
        change_a = half * (a1 * u1 - a0 * u0 + _HALF * (h1 * h1 - h0 * h0))
        change_b = half * (b1 * u1 - b0 * u0)
        wet = min(h0, h1) - change_h > _LEAST_EDGE * hi
        low_h[i] = h0 - change_h if wet else hi
        low_a[i] = a0 - change_a if wet else ai
        low_b[i] = b0 - change_b if wet else bi
        high_h[i] = h1 - change_h if wet else hi
        high_a[i] = a1 - change_a if wet else ai
        high_b[i] = b1 - change_b if wet else bi


@_compiled
def _hllc(left_h, left_a, left_b, right_h, right_a, right_b, flux_h, flux_a, flux_b, count):
    for i in range(count):
        hl, al, hr, ar = left_h[i], left_a[i], right_h[i], right_a[i]
        inverse_l, inverse_r = _ONE / hl, _ONE / hr
        ul, ur = al * inverse_l, ar * inverse_r
        cl, cr = math.sqrt(hl), math.sqrt(hr)
        slow = min(min(ul - cl, ur - cr), _ZERO)
        fast = max(max(ul + cl, ur + cr), _ZERO)
        width = _ONE / (fast - slow)
        wl, wr, damping = fast * width, slow * width, slow * fast * width
        mass = wl * al - wr * ar + damping * (hr - hl)
        flux_h[i] = mass
        flux_a[i] = wl * (al * ul + _HALF * hl * hl) - wr * (ar * ur + _HALF * hr * hr) + damping * (ar - al)
        flux_b[i] = mass * (left_b[i] * inverse_l if mass > _ZERO else right_b[i] * inverse_r)


@_compiled
def _share(h, flux, share, ratio, count):
    for i in range(count):
        leaving = max(flux[i + 1], _ZERO) - min(flux[i], _ZERO)
        share[i] = min(_DRAIN * h[i] / (ratio * leaving + _TINY), _ONE)
