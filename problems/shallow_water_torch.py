"""The schemes of ``shallow_water`` for batches of states on any device of torch.

The same fluxes and the same steps as the compiled kernels, in the precision of the state. Every sample takes
the steps that it would take alone, so it does not depend on the others of its batch.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from problems.grid import Grid
from problems.shallow_water_hllc import LEAST_EDGE
from problems.shallow_water_march import (
    COURANT,
    FRAME_INTERVAL,
    MAXIMUM_STEPS,
    SCHEMES,
    WALLS,
    require_sides,
    too_fast,
)
from problems.shallow_water_roe import TINY
from problems.shallow_water_sweeps import DRAIN, GHOSTS, GRAVITY

State = Float[Tensor, "batch channel y x"]
# h, normal and transverse velocity of a row of cells along the direction ``dim``, dt over the spacing ->
# fluxes through the faces from that behind the second ghost on
_Fluxes = Callable[[Tensor, Tensor, Tensor, int, Tensor], tuple[Tensor, Tensor, Tensor]]


def frames(
    state: State, grid: Grid, scheme: str = "hllc-muscl-v1", walls: str = "outflow", start: int = 0
) -> Iterator[State]:
    """States (h, hu, hv) at the frames ``start + 1``, ``start + 2``, ..., without end.

    Raises:
        ValueError: the scheme, the walls or the shape are not what they should be.
        CannotSolve: waves become too fast, or a scheme has broken down.
    """
    if scheme not in _FLUXES:
        raise ValueError(f"unknown scheme {scheme}, expected one of {', '.join(_FLUXES)}")
    if walls not in WALLS:
        raise ValueError(f"unknown walls {walls}, expected one of {', '.join(WALLS)}")
    if state.ndim != 4 or state.shape[1:] != (3, *grid.shape):
        raise ValueError(
            f"a batch of states has the shape [batch, 3, {grid.shape[0]}, {grid.shape[1]}] of h, hu and hv "
            f"on the grid, got {list(state.shape)}"
        )
    require_sides(grid)
    return _march(state, grid, scheme, walls, start)


def _march(state: State, grid: Grid, scheme: str, walls: str, start: int) -> Iterator[State]:
    for frame in itertools.count(start):
        with torch.no_grad():
            state = _advance(state, grid, scheme, walls, frame)
        yield state


def _advance(state: State, grid: Grid, scheme: str, walls: str, frame: int) -> State:
    """From frame number ``frame`` to the next; see ``shallow_water_march.advance``."""
    fluxes, alternating = _FLUXES[scheme], SCHEMES[scheme].alternating
    left = torch.full(state.shape[:1], FRAME_INTERVAL, dtype=torch.float64, device=state.device)
    for step in itertools.count():
        rates = torch.stack([_rate(state, dim, grid, walls) for dim in (-2, -1)]).amax(dim=0)
        # what rounding adds to the time that is left shall not cost a step
        steps = left * rates / COURANT - 1e-9
        if not bool((step + steps <= MAXIMUM_STEPS).all()):
            raise too_fast(scheme, float(rates.max()))
        remaining = torch.ceil(steps).clamp_min(1.0)
        # a sample that has arrived makes steps of no length, which leave it as it is
        dt = left / remaining
        for dim in (-2, -1) if alternating and (frame + step) % 2 else (-1, -2):
            ratio = (dt / grid.spacing[dim]).to(state.dtype)[:, None, None]
            state = _sweep(state, dim, ratio, walls, fluxes)
        left = torch.where(remaining > 1, left - dt, 0.0)
        if not left.any():
            return state
    raise AssertionError("steps never run out")


def _sweep(state: State, dim: int, ratio: Tensor, walls: str, fluxes: _Fluxes) -> State:
    """One step along ``dim``; ``ratio`` [batch 1 1]: dt over the spacing."""
    normal = -dim
    transverse = 3 - normal
    padded = _pad(state, dim, walls, GHOSTS)
    h, n = padded[:, 0], state.shape[dim]
    through = fluxes(h, padded[:, normal] / h, padded[:, transverse] / h, dim, ratio)
    mass = through[0]
    low, high = mass.narrow(dim, 0, n + 2), mass.narrow(dim, 1, n + 2)
    leaving = ratio * (high.clamp_min(0.0) - low.clamp_max(0.0))
    most = DRAIN * h.narrow(dim, GHOSTS - 1, n + 2)
    theta = torch.where(leaving > most, most / leaving, 1.0)
    from_low, from_high = theta.narrow(dim, 0, n + 1), theta.narrow(dim, 1, n + 1)
    factor = torch.where(mass.narrow(dim, 1, n + 1) > 0.0, from_low, from_high)
    after = torch.empty_like(state)
    for channel, flux in zip((0, normal, transverse), through, strict=True):
        limited = flux.narrow(dim, 1, n + 1) * factor
        after[:, channel] = state[:, channel] - ratio * limited.diff(dim=dim)
    return after


def _pad(state: State, dim: int, walls: str, ghosts: int) -> State:
    """The state with ghost cells on both sides of ``dim``."""
    n, device = state.shape[dim], state.device
    outside = torch.arange(-ghosts, n + ghosts, device=device)
    if walls == "periodic":
        return state.index_select(dim, outside % n)
    if walls == "outflow":
        return state.index_select(dim, outside.clamp(0, n - 1))
    mirrored = torch.where(outside < 0, -1 - outside, outside)
    mirrored = torch.where(outside >= n, 2 * n - 1 - outside, mirrored)
    padded = state.index_select(dim, mirrored)
    sides = (padded[:, -dim].narrow(dim, 0, ghosts), padded[:, -dim].narrow(dim, n + ghosts, ghosts))
    for side in sides:
        side.neg_()
    return padded


def _rate(state: State, dim: int, grid: Grid, walls: str) -> Float[Tensor, " batch"]:
    """Cells that the fastest wave along ``dim`` crosses per second."""
    padded = _pad(state, dim, walls, 1)
    u, c = padded[:, -dim] / padded[:, 0], (GRAVITY * padded[:, 0]).sqrt()
    count = state.shape[dim] + 1
    ul, ur, cl, cr = (field.narrow(dim, place, count) for field in (u, c) for place in (0, 1))
    star = (0.5 * (ul + ur) + cl - cr).abs() + 0.5 * (cl + cr) + 0.25 * (ul - ur)
    speed = torch.maximum(star, ul.abs() + cl)
    return speed.amax(dim=(-2, -1)).to(torch.float64) / grid.spacing[dim]


def _slope(values: Tensor, dim: int) -> Tensor:
    """Monotonized central slopes of all cells but the outermost ones."""
    steps = values.diff(dim=dim)
    count = steps.shape[dim] - 1
    low, high = steps.narrow(dim, 0, count), steps.narrow(dim, 1, count)
    mean = 0.5 * (low + high)
    size = torch.minimum(mean.abs(), 2.0 * torch.minimum(low.abs(), high.abs()))
    return torch.where(low * high > 0.0, torch.copysign(size, mean), 0.0)


def _hllc(h: Tensor, u: Tensor, v: Tensor, dim: int, ratio: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fluxes of ``hllc-muscl-v1``."""
    dh, du, dv = (_slope(field, dim) for field in (h, u, v))
    h, u, v = (field.narrow(dim, 1, field.shape[dim] - 2) for field in (h, u, v))
    middle = h - 0.5 * ratio * (u * dh + h * du)
    smooth = middle - 0.5 * dh.abs() > LEAST_EDGE * h
    middle = torch.where(smooth, middle, h)
    dh, du, dv = (torch.where(smooth, 0.5 * slope, 0.0) for slope in (dh, du, dv))
    u_middle, v_middle = u - ratio * (u * du + GRAVITY * dh), v - ratio * u * dv
    faces = h.shape[dim] - 1
    low = (
        (field + slope).narrow(dim, 0, faces)
        for field, slope in ((middle, dh), (u_middle, du), (v_middle, dv))
    )
    high = (
        (field - slope).narrow(dim, 1, faces)
        for field, slope in ((middle, dh), (u_middle, du), (v_middle, dv))
    )
    return _hllc_flux(*low, *high)


def _hllc_flux(
    hl: Tensor, ul: Tensor, vl: Tensor, hr: Tensor, ur: Tensor, vr: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """HLLC flux between two states."""
    cl, cr = (GRAVITY * hl).sqrt(), (GRAVITY * hr).sqrt()
    roe_u, roe_c = (cl * ul + cr * ur) / (cl + cr), (0.5 * GRAVITY * (hl + hr)).sqrt()
    sl = torch.minimum(ul - cl, roe_u - roe_c).clamp_max(0.0)
    sr = torch.maximum(ur + cr, roe_u + roe_c).clamp_min(0.0)
    width, ml, mr = 1.0 / (sr - sl), hl * ul, hr * ur
    mass = (sr * ml - sl * mr + sl * sr * (hr - hl)) * width
    momentum_l, momentum_r = ml * ul + 0.5 * GRAVITY * hl * hl, mr * ur + 0.5 * GRAVITY * hr * hr
    momentum = (sr * momentum_l - sl * momentum_r + sl * sr * (mr - ml)) * width
    return mass, momentum, mass * torch.where(mass > 0.0, vl, vr)


def _roe(h: Tensor, u: Tensor, v: Tensor, dim: int, ratio: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fluxes of ``roe-mc-split-v1``."""
    faces = h.shape[dim] - 1
    hl, hr, ul, ur, vl, vr = (field.narrow(dim, place, faces) for field in (h, u, v) for place in (0, 1))
    root_l, root_r, c = hl.sqrt(), hr.sqrt(), (0.5 * GRAVITY * (hl + hr)).sqrt()
    u, v = ((root_l * a + root_r * b) / (root_l + root_r) for a, b in ((ul, ur), (vl, vr)))
    jump, jump_u, jump_v = hr - hl, hr * ur - hl * ul, hr * vr - hl * vl
    first, third = ((u + c) * jump - jump_u) / (2.0 * c), (jump_u - (u - c) * jump) / (2.0 * c)
    second = jump_v - v * jump
    h_low, h_high = (hl + first).clamp_min(TINY), (hr - third).clamp_min(TINY)
    u_low, u_high = (hl * ul + first * (u - c)) / h_low, (hr * ur - third * (u + c)) / h_high
    left_first = _left_going(ul - (GRAVITY * hl).sqrt(), u - c, u_low - (GRAVITY * h_low).sqrt())
    left_third = _left_going(u_high + (GRAVITY * h_high).sqrt(), u + c, ur + (GRAVITY * hr).sqrt())
    left_first, left_third = left_first * first, torch.where(u < 0.0, left_third, 0.0) * third
    left_second = u.clamp_max(0.0) * second
    waves = ((first, u - c, v), (third, u + c, v))
    first, third = (_limited(*wave, dim, ratio) for wave in waves)
    second = _limited_shear(second, u, dim, ratio)
    inner = [field.narrow(dim, 1, faces - 2) for field in (hl, ul, vl, u, v, c)]
    hl, ul, vl, u, v, c = inner
    first = first + left_first.narrow(dim, 1, faces - 2)
    second = second + left_second.narrow(dim, 1, faces - 2)
    third = third + left_third.narrow(dim, 1, faces - 2)
    mass = hl * ul + first + third
    momentum = hl * ul * ul + 0.5 * GRAVITY * hl * hl + first * (u - c) + third * (u + c)
    return mass, momentum, hl * ul * vl + (first + third) * v + second


def _left_going(before: Tensor, speed: Tensor, behind: Tensor) -> Tensor:
    """Negative part of a wave's speed, of a transonic one a share of it."""
    share = before * (behind - speed) / (behind - before)
    return torch.where((before < 0.0) & (behind > 0.0), share, speed.clamp_max(0.0))


def _limited(strength: Tensor, speed: Tensor, across: Tensor, dim: int, ratio: Tensor) -> Tensor:
    """Correction of the wave strength * (1, speed, across)."""
    count = strength.shape[dim] - 2
    before, here, after = (
        [field.narrow(dim, place, count) for field in (strength, speed, across)] for place in range(3)
    )
    low, dot, high = (
        here[0] * other[0] * (1.0 + here[1] * other[1] + here[2] * other[2])
        for other in (before, here, after)
    )
    return _correction(here[0], here[1], low, dot, high, ratio)


def _limited_shear(strength: Tensor, speed: Tensor, dim: int, ratio: Tensor) -> Tensor:
    """Correction of the wave strength * (0, 0, 1)."""
    count = strength.shape[dim] - 2
    before, here, after = (strength.narrow(dim, place, count) for place in range(3))
    return _correction(here, speed.narrow(dim, 1, count), here * before, here * here, here * after, ratio)


def _correction(
    strength: Tensor, speed: Tensor, low: Tensor, dot: Tensor, high: Tensor, ratio: Tensor
) -> Tensor:
    """|s| (1 - |s| dt / ds) / 2 times the limiter times the strength of a wave."""
    theta = torch.where(speed > 0.0, low, high) / torch.where(dot > 0.0, dot, 1.0)
    phi = torch.minimum(0.5 * (1.0 + theta), (2.0 * theta).clamp_max(2.0)).clamp_min(0.0)
    size = speed.abs()
    return torch.where(dot > 0.0, 0.5 * size * (1.0 - size * ratio) * phi * strength, 0.0)


_FLUXES: Mapping[str, _Fluxes] = MappingProxyType({"hllc-muscl-v1": _hllc, "roe-mc-split-v1": _roe})
