"""``hllc-muscl-v1``: dimension-split MUSCL-Hancock with the HLLC flux, for the shallow water equations.

One step applies the one-dimensional operators X(dt) and Y(dt), and the next one Y(dt) and X(dt): two steps
are a Strang splitting, so the scheme is of order 2 in space and time where the solution is smooth. Each
operator, in the direction s with velocity u along s and v across:

* slopes of (h, u, v) with the monotonized central limiter;
* half a time step of the primitive equations in each cell, h_t + u h_s + h u_s = 0, u_t + u u_s + g h_s = 0,
  v_t + u v_s = 0 (Hancock), which yields the states on both sides of every face;
* the HLLC flux: with a wave speed estimate to the left and to the right (Einfeldt's, from the Roe average),
  HLL for (h, hu); the transverse momentum is carried by the mass flux with the v of the side it comes from.

It is stable up to a Courant number of 1 in either direction.

Sources: Toro, *Riemann Solvers and Numerical Methods for Fluid Dynamics* (2009), sections 10.4, 14.4, 16.2;
Einfeldt et al. 1991 (wave speeds, positivity).
"""

# mypy: disable-error-code="no-untyped-def"
# numba infers the types of the kernels

import math

from problems.compiled import compiled
from problems.shallow_water_sweeps import GHOSTS, GRAVITY, OWN, ROW, finish_x, finish_y, flux_rows, primitives

LEAST_EDGE = 0.05
"""A cell whose edge would keep less than this share of its depth is reconstructed as a constant."""
# scratch rows: (h, u, v) of three rows of cells, then the states on both sides of two rows of cells
_PRIMITIVE, _EDGE = OWN, OWN + 9


@compiled(inline="always")
def _slope(low, high):
    """Monotonized central: the mean of two differences, at most twice either, 0 at an extremum."""
    small = abs(low) if abs(low) < abs(high) else abs(high)
    mean = 0.5 * (low + high)
    size = abs(mean) if abs(mean) < 2.0 * small else 2.0 * small
    return math.copysign(size, mean) if low * high > 0.0 else 0.0


@compiled()
def _edges(before, here, after, out, count, half):
    """States at the low (first three rows of ``out``) and the high side (last three) after dt / 2.

    ``half``: dt / 2 over the spacing.
    """
    for i in range(count):
        h, u, v = here[i], here[ROW + i], here[2 * ROW + i]
        dh = _slope(h - before[i], after[i] - h)
        du = _slope(u - before[ROW + i], after[ROW + i] - u)
        dv = _slope(v - before[2 * ROW + i], after[2 * ROW + i] - v)
        middle = h - half * (u * dh + h * du)
        smooth = middle - 0.5 * abs(dh) > LEAST_EDGE * h
        middle = middle if smooth else h
        dh = 0.5 * dh if smooth else 0.0
        du = 0.5 * du if smooth else 0.0
        dv = 0.5 * dv if smooth else 0.0
        u_middle = u - 2.0 * half * (u * du + GRAVITY * dh)
        v_middle = v - 2.0 * half * u * dv
        out[i] = middle - dh
        out[ROW + i] = u_middle - du
        out[2 * ROW + i] = v_middle - dv
        out[3 * ROW + i] = middle + dh
        out[4 * ROW + i] = u_middle + du
        out[5 * ROW + i] = v_middle + dv


@compiled()
def _fluxes(low, high, out, count):
    """HLLC flux of (h, hu, hv) between the states ``low`` and ``high``."""
    for i in range(count):
        hl, ul, vl = low[i], low[ROW + i], low[2 * ROW + i]
        hr, ur, vr = high[i], high[ROW + i], high[2 * ROW + i]
        cl, cr = math.sqrt(GRAVITY * hl), math.sqrt(GRAVITY * hr)
        roe_u = (cl * ul + cr * ur) / (cl + cr)
        roe_c = math.sqrt(0.5 * GRAVITY * (hl + hr))
        sl = ul - cl if ul - cl < roe_u - roe_c else roe_u - roe_c
        sr = ur + cr if ur + cr > roe_u + roe_c else roe_u + roe_c
        # a wave that moves the other way has no part in the flux
        sl = sl if sl < 0.0 else 0.0
        sr = sr if sr > 0.0 else 0.0
        width = 1.0 / (sr - sl)
        ml, mr = hl * ul, hr * ur
        mass = (sr * ml - sl * mr + sl * sr * (hr - hl)) * width
        momentum_l = ml * ul + 0.5 * GRAVITY * hl * hl
        momentum_r = mr * ur + 0.5 * GRAVITY * hr * hr
        out[i] = mass
        out[ROW + i] = (sr * momentum_l - sl * momentum_r + sl * sr * (mr - ml)) * width
        out[2 * ROW + i] = mass * (vl if mass > 0.0 else vr)


@compiled()
def sweep_x(q, work, ratio):
    """One step of X in place; ``q``: (h, hu, hv) with ghosts, ``ratio``: dt / hx."""
    n = q.shape[2] - 2 * GHOSTS
    cells, edge = work[_PRIMITIVE * ROW :], work[_EDGE * ROW :]
    for j in range(GHOSTS, q.shape[1] - GHOSTS):
        primitives(q[0, j], q[1, j], q[2, j], cells)
        _edges(cells, cells[1:], cells[2:], edge, n + 4, 0.5 * ratio)
        _fluxes(edge[3 * ROW :], edge[1:], flux_rows(work, 0), n + 3)
        finish_x(q, work, j, ratio)


@compiled()
def sweep_y(q, work, ratio):
    """One step of Y in place; ``ratio``: dt / hy."""
    rows, first, last = q.shape[1], GHOSTS, q.shape[2] - GHOSTS
    n = last - first
    for j in range(rows):
        here = _cells(work, j)
        primitives(q[0, j, first:last], q[2, j, first:last], q[1, j, first:last], here)
        if j >= 2:
            _edges(_cells(work, j - 2), _cells(work, j - 1), here, _edge(work, j - 1), n, 0.5 * ratio)
        if j >= 3:
            _fluxes(_edge(work, j - 2)[3 * ROW :], _edge(work, j - 1), flux_rows(work, j - 1), n)
            finish_y(q, work, j, ratio)


@compiled()
def _cells(work, row):
    return work[(_PRIMITIVE + 3 * (row % 3)) * ROW :]


@compiled()
def _edge(work, row):
    return work[(_EDGE + 6 * (row % 2)) * ROW :]
