"""What the shallow water schemes share: ghost cells, wave speeds, and the second half of a sweep.

A sweep is one step of a one-dimensional scheme along x or along y, for all rows of the grid, in place. It
computes fluxes, which is the scheme's part, and then, which is done here: a cell gives away at most a fixed
share of its water in a sweep. The fluxes out of a cell that would give more are scaled down ("draining",
Bollermann et al. 2011, section 3.2). That binds next to dry ground only, and keeps the depth positive
whatever the data.

For speed all loops run along x, over scratch rows that lie at constant distances in one array, so that LLVM
sees that they do not overlap and vectorizes. A y sweep rolls over the rows: in step j it takes row j in,
computes the fluxes at face j - 1 (between the rows j - 2 and j - 1) and overwrites row j - 3, whose old
values nobody needs any more.
"""

# mypy: disable-error-code="no-untyped-def"
# numba infers the types of the kernels

import math

import numpy as np
from jaxtyping import Float64

from problems.compiled import compiled

GRAVITY = 1.0
"""Acceleration of gravity [m/s^2]."""
GHOSTS = 3
"""Rows and columns outside the walls."""
MAXIMUM_SIDE = 16384
"""Most cells along a side."""

DRAIN = 0.9
"""Share of its water that a cell may give away in one sweep."""

# distance of two scratch rows; not a multiple of a memory page
ROW = MAXIMUM_SIDE + 72
# scratch rows: fluxes at three faces, draining factors of two rows of cells; the rest is the scheme's
_FLUX, _THETA, OWN = 0, 9, 11
_SCRATCH_ROWS = OWN + 36


def scratch() -> Float64[np.ndarray, " n"]:
    """Memory for the sweeps."""
    return np.empty(_SCRATCH_ROWS * ROW)


@compiled()
def flux_rows(work, face):
    """Scratch rows of the fluxes (mass, normal momentum, transverse momentum) at a face."""
    return work[(_FLUX + 3 * (face % 3)) * ROW :]


@compiled()
def _theta_row(work, row):
    return work[(_THETA + row % 2) * ROW :]


@compiled()
def primitives(h, normal, transverse, out):
    """Rows of h, normal and transverse velocity."""
    for i in range(h.size):
        reciprocal = 1.0 / h[i]
        out[i] = h[i]
        out[ROW + i] = normal[i] * reciprocal
        out[2 * ROW + i] = transverse[i] * reciprocal


@compiled()
def _drain(h, low, high, out, ratio):
    """Factor of the fluxes out of each cell; ``low``, ``high``: mass fluxes through its faces."""
    for i in range(h.size):
        leaving = (high[i] if high[i] > 0.0 else 0.0) - (low[i] if low[i] < 0.0 else 0.0)
        most = DRAIN * h[i]
        out[i] = most / (ratio * leaving) if ratio * leaving > most else 1.0


@compiled()
def _limit(flux, low, high, count):
    """Scales fluxes in place by the factor of the cell that they leave."""
    for i in range(count):
        # both are read, so that the choice is one of values and not of addresses
        from_low, from_high = low[i], high[i]
        factor = from_low if flux[i] > 0.0 else from_high
        flux[i] *= factor
        flux[ROW + i] *= factor
        flux[2 * ROW + i] *= factor


@compiled()
def _update(values, low, high, ratio):
    for i in range(values.size):
        values[i] -= ratio * (high[i] - low[i])


@compiled()
def finish_x(q, work, j, ratio):
    """Updates row j from its fluxes in ``flux_rows(work, 0)``, the first of which is at the second ghost."""
    n = q.shape[2] - 2 * GHOSTS
    flux, theta = flux_rows(work, 0), _theta_row(work, 0)
    _drain(q[0, j, GHOSTS - 1 : GHOSTS + n + 1], flux, flux[1:], theta, ratio)
    _limit(flux[1:], theta, theta[1:], n + 1)
    for k in range(3):
        part = flux[k * ROW + 1 : k * ROW + n + 2]
        _update(q[k, j, GHOSTS : GHOSTS + n], part, part[1:], ratio)


@compiled()
def finish_y(q, work, j, ratio):
    """Updates row j - 3, once the fluxes at face j - 1 are known."""
    first, last = GHOSTS, q.shape[2] - GHOSTS
    before, low, high = flux_rows(work, j - 3), flux_rows(work, j - 2), flux_rows(work, j - 1)
    if j >= 4:
        _drain(q[0, j - 2, first:last], low, high, _theta_row(work, j - 2), ratio)
    if j >= 5:
        _limit(low, _theta_row(work, j - 3), _theta_row(work, j - 2), last - first)
    if j >= 6:
        _update(q[0, j - 3, first:last], before, low, ratio)
        _update(q[2, j - 3, first:last], before[ROW:], low[ROW:], ratio)
        _update(q[1, j - 3, first:last], before[2 * ROW :], low[2 * ROW :], ratio)


@compiled()
def fill_x(q, walls):
    """Ghost columns; ``walls``: 0 outflow, 1 reflecting, 2 periodic."""
    n = q.shape[2] - 2 * GHOSTS
    for k in range(3):
        sign = -1.0 if walls == 1 and k == 1 else 1.0
        for j in range(GHOSTS, q.shape[1] - GHOSTS):
            for i in range(GHOSTS):
                inside = _mirrored(i, n, walls)
                q[k, j, GHOSTS - 1 - i] = sign * q[k, j, GHOSTS + inside]
                q[k, j, GHOSTS + n + i] = sign * q[k, j, GHOSTS + n - 1 - inside]


@compiled()
def fill_y(q, walls):
    """Ghost rows."""
    n = q.shape[1] - 2 * GHOSTS
    for k in range(3):
        sign = -1.0 if walls == 1 and k == 2 else 1.0
        for i in range(GHOSTS):
            inside = _mirrored(i, n, walls)
            for x in range(GHOSTS, q.shape[2] - GHOSTS):
                q[k, GHOSTS - 1 - i, x] = sign * q[k, GHOSTS + inside, x]
                q[k, GHOSTS + n + i, x] = sign * q[k, GHOSTS + n - 1 - inside, x]


@compiled()
def _mirrored(ghost, cells, walls):
    """The cell that a ghost takes its values from, both counted from the wall."""
    if walls == 0:
        return 0
    return ghost if walls == 1 else cells - 1 - ghost


@compiled()
def _velocities(h, hu, hv, out):
    """u, v and the speed c of long waves."""
    for i in range(h.size):
        reciprocal = 1.0 / h[i]
        out[i] = hu[i] * reciprocal
        out[ROW + i] = hv[i] * reciprocal
        out[2 * ROW + i] = math.sqrt(GRAVITY * h[i])


@compiled()
def _fastest(u, c, u_next, c_next, out):
    """Largest speed in a cell, and between it and the next one if they part by two rarefactions."""
    for i in range(out.size):
        star = abs(0.5 * (u[i] + u_next[i]) + c[i] - c_next[i])
        star += 0.5 * (c[i] + c_next[i]) + 0.25 * (u[i] - u_next[i])
        speed = abs(u[i]) + c[i]
        speed = speed if speed > star else star
        out[i] = speed if speed > out[i] else out[i]


@compiled()
def fastest(q, work):
    """Largest speeds (y, x) of waves, ghost cells included."""
    rows, n = q.shape[1], q.shape[2] - 2 * GHOSTS
    first = GHOSTS - 1
    own = work[OWN * ROW :]
    along_y, along_x = own[6 * ROW : 6 * ROW + n + 1], own[7 * ROW : 7 * ROW + n + 1]
    along_y[:] = 0.0
    along_x[:] = 0.0
    columns = slice(first, first + n + 2)
    # the corners hold nothing: a row of ghosts is read between the walls only
    inside = slice(GHOSTS, GHOSTS + n)
    for j in range(first, rows - first):
        here, before = own[3 * ROW * (j % 2) :], own[3 * ROW * ((j - 1) % 2) :]
        ghost = j == first or j == rows - GHOSTS
        part = inside if ghost else columns
        _velocities(q[0, j, part], q[1, j, part], q[2, j, part], here[1:] if ghost else here)
        if not ghost:
            _fastest(here, here[2 * ROW :], here[1:], here[2 * ROW + 1 :], along_x)
        if j > first:
            v, c = before[ROW + 1 :], before[2 * ROW + 1 :]
            _fastest(v, c, here[ROW + 1 :], here[2 * ROW + 1 :], along_y[:n])
    return along_y.max(), along_x.max()
