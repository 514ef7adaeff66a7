"""``roe-mc-split-v1``: Roe's solver with wave limiters, dimension-split, for the shallow water equations.

The scheme of PDEBench's radial dam break: PyClaw's classic solver of order 2 with dimensional splitting. A
step is a sweep along x and then one along y: Godunov splitting, which makes the scheme one of order 1, of
order 2 along the axes only. Each, in the direction s with velocity u along s and v across:

* waves of Roe's linearisation at every face, with speeds u - c, u, u + c, where u and v are means weighted
  with sqrt(h) and c^2 = g (h_l + h_r) / 2;
* their first-order fluxes, where a transonic rarefaction is split in two (Harten and Hyman's entropy fix);
* the correction |s| (1 - |s| dt / ds) / 2 phi W of every wave W, phi the monotonized central limiter of the
  ratio <W of the upwind face, W> / <W, W>.

Sources: LeVeque, *Finite Volume Methods for Hyperbolic Problems* (2002), sections 6.15, 15.3, 15.4; Clawpack
(BSD-3), Ketcheson et al. 2012.
"""

# mypy: disable-error-code="no-untyped-def"
# numba infers the types of the kernels

import math

from problems.compiled import compiled
from problems.shallow_water_sweeps import GHOSTS, GRAVITY, OWN, ROW, finish_x, finish_y, flux_rows, primitives

# scratch rows: (h, u, v) of two rows of cells, then the waves at three faces
_PRIMITIVE, _WAVES = OWN, OWN + 6
TINY = 1e-14
"""Depth [m] that the middle states of Roe's solver keep at least."""


@compiled()
def _waves(low, high, out, count):
    """Waves between the cells ``low`` and ``high``, and the first-order flux.

    Rows of ``out``: strengths of the three waves, u, v, c, fluxes of (h, hu, hv).
    """
    for i in range(count):
        hl, ul, vl = low[i], low[ROW + i], low[2 * ROW + i]
        hr, ur, vr = high[i], high[ROW + i], high[2 * ROW + i]
        root_l, root_r = math.sqrt(hl), math.sqrt(hr)
        weight = 1.0 / (root_l + root_r)
        u = (root_l * ul + root_r * ur) * weight
        v = (root_l * vl + root_r * vr) * weight
        c = math.sqrt(0.5 * GRAVITY * (hl + hr))
        jump, jump_u, jump_v = hr - hl, hr * ur - hl * ul, hr * vr - hl * vl
        first = ((u + c) * jump - jump_u) / (2.0 * c)
        second = jump_v - v * jump
        third = (jump_u - (u - c) * jump) / (2.0 * c)
        # left-going part of each wave: its speed if negative; of a transonic one, a share of it
        h_low = hl + first if hl + first > TINY else TINY
        h_high = hr - third if hr - third > TINY else TINY
        u_low = (hl * ul + first * (u - c)) / h_low
        u_high = (hr * ur - third * (u + c)) / h_high
        left_first = _left_going(ul - math.sqrt(GRAVITY * hl), u - c, u_low - math.sqrt(GRAVITY * h_low))
        left_second = u if u < 0.0 else 0.0
        left_third = _left_going(u_high + math.sqrt(GRAVITY * h_high), u + c, ur + math.sqrt(GRAVITY * hr))
        left_third = left_third if u < 0.0 else 0.0
        out[i], out[ROW + i], out[2 * ROW + i] = first, second, third
        out[3 * ROW + i], out[4 * ROW + i], out[5 * ROW + i] = u, v, c
        left_first, left_second, left_third = left_first * first, left_second * second, left_third * third
        out[6 * ROW + i] = hl * ul + left_first + left_third
        pressure = 0.5 * GRAVITY * hl * hl
        out[7 * ROW + i] = hl * ul * ul + pressure + left_first * (u - c) + left_third * (u + c)
        out[8 * ROW + i] = hl * ul * vl + (left_first + left_third) * v + left_second


@compiled(inline="always")
def _left_going(before, speed, behind):
    """Negative part of a wave's speed; ``before``, ``behind``: characteristic speeds on its two sides."""
    transonic = before < 0.0 and behind > 0.0
    share = before * (behind - speed) / (behind - before)
    upwind = speed if speed < 0.0 else 0.0
    return share if transonic else upwind


@compiled(inline="always")
def _limited(strength, speed, ratio, dot_low, dot, dot_high):
    """|s| (1 - |s| dt / ds) / 2 times the limiter times the strength of a wave."""
    theta = (dot_low if speed > 0.0 else dot_high) / (dot if dot > 0.0 else 1.0)
    mean = 0.5 * (1.0 + theta)
    twice = 2.0 * theta if theta < 1.0 else 2.0
    phi = mean if mean < twice else twice
    phi = phi if phi > 0.0 and dot > 0.0 else 0.0
    size = abs(speed)
    return 0.5 * size * (1.0 - size * ratio) * phi * strength


@compiled()
def _correct(before, here, after, out, count, ratio):
    """Flux of second order at the face ``here``, between the faces ``before`` and ``after``."""
    for i in range(count):
        first, second, third = here[i], here[ROW + i], here[2 * ROW + i]
        u, v, c = here[3 * ROW + i], here[4 * ROW + i], here[5 * ROW + i]
        ub, vb, cb = before[3 * ROW + i], before[4 * ROW + i], before[5 * ROW + i]
        ua, va, ca = after[3 * ROW + i], after[4 * ROW + i], after[5 * ROW + i]
        low = first * before[i] * (1.0 + (u - c) * (ub - cb) + v * vb)
        high = first * after[i] * (1.0 + (u - c) * (ua - ca) + v * va)
        first = _limited(first, u - c, ratio, low, first * first * (1.0 + (u - c) * (u - c) + v * v), high)
        low, high = third * before[2 * ROW + i], third * after[2 * ROW + i]
        low *= 1.0 + (u + c) * (ub + cb) + v * vb
        high *= 1.0 + (u + c) * (ua + ca) + v * va
        third = _limited(third, u + c, ratio, low, third * third * (1.0 + (u + c) * (u + c) + v * v), high)
        low, high = second * before[ROW + i], second * after[ROW + i]
        second = _limited(second, u, ratio, low, second * second, high)
        out[i] = here[6 * ROW + i] + first + third
        out[ROW + i] = here[7 * ROW + i] + first * (u - c) + third * (u + c)
        out[2 * ROW + i] = here[8 * ROW + i] + (first + third) * v + second


@compiled()
def sweep_x(q, work, ratio):
    """One step along x in place; ``q``: (h, hu, hv) with ghosts, ``ratio``: dt / hx."""
    n = q.shape[2] - 2 * GHOSTS
    cells, waves = work[_PRIMITIVE * ROW :], work[_WAVES * ROW :]
    for j in range(GHOSTS, q.shape[1] - GHOSTS):
        primitives(q[0, j], q[1, j], q[2, j], cells)
        _waves(cells, cells[1:], waves, n + 5)
        _correct(waves, waves[1:], waves[2:], flux_rows(work, 0), n + 3, ratio)
        finish_x(q, work, j, ratio)


@compiled()
def sweep_y(q, work, ratio):
    """One step along y in place; ``ratio``: dt / hy."""
    rows, first, last = q.shape[1], GHOSTS, q.shape[2] - GHOSTS
    n = last - first
    for j in range(rows):
        here = _cells(work, j)
        primitives(q[0, j, first:last], q[2, j, first:last], q[1, j, first:last], here)
        if j >= 1:
            _waves(_cells(work, j - 1), here, _faces(work, j), n)
        if j >= 3:
            before, middle, after = _faces(work, j - 2), _faces(work, j - 1), _faces(work, j)
            _correct(before, middle, after, flux_rows(work, j - 1), n, ratio)
            finish_y(q, work, j, ratio)


@compiled()
def _cells(work, row):
    return work[(_PRIMITIVE + 3 * (row % 2)) * ROW :]


@compiled()
def _faces(work, face):
    return work[(_WAVES + 9 * (face % 3)) * ROW :]
