"""A shallow-water step for tensors: what a learnt correction starts from.

``h_t + div(h u) = 0``, ``(h u)_t + div(h u u) + grad(g h^2 / 2) = 0`` with g = 1 over a flat bed, by the
MUSCL-Hancock scheme with the monotonized central limiter and the HLLC flux, split into sweeps along x and y
whose order alternates (Strang 1968). Second order where the flow is smooth, conservative, stable up to a
Courant number of 1, and differentiable almost everywhere, so a rollout can be trained through. The depth
stays positive: a cell whose edges would run dry is taken as constant, and none gives away more than a share
of its water ("draining").

``operators.shallow_water_kernel`` is the same scheme, compiled for the CPU and without gradients.

Sources: van Leer 1977 (the limiter) and 1984; Toro, *Shock-Capturing Methods for Free-Surface Shallow Flows*
(2001), chapters 10 and 11; Bollermann et al. 2011, section 3.2 (draining).
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Walls = Literal["outflow", "reflecting", "periodic"]

# cells that a sweep reads on either side
GHOSTS = 3
# under a quotient of slopes; far below any that matters [m^2]
TINY = 1e-12
# an edge that keeps less than this share of its cell's depth makes the cell constant
LEAST_EDGE = 0.05
# share of its water that a cell may give away in a sweep
DRAIN = 0.9
# no water is faster than this many celerities of the deepest: next to dry ground quotients may say so
FASTEST = 4.0
# Courant number that a step may have, and the most steps within a frame
COURANT, MOST_STEPS = 0.9, 100


class _Flow(NamedTuple):
    """Depth, momentum along the sweep and across it, each [batch y x]."""

    depth: Tensor
    along: Tensor
    across: Tensor


def frames(
    state: Float[Tensor, "batch 3 y x"], count: int, ratios: tuple[float, float], walls: Walls
) -> Float[Tensor, "batch count 3 y x"]:
    """The states at the ends of ``count`` equal intervals.

    Each sample takes as many equal steps in an interval as its own Courant number demands, usually one.

    Args:
        state: h [m], hu and hv [m^2/s].
        count: number of intervals.
        ratios: interval over cell size, along y and x [s/m].
        walls: boundary conditions on all four sides.
    """
    marched = []
    for frame in range(count):
        state = _no_faster(state)
        steps = _steps(state.detach(), ratios)
        for done in range(int(steps.max())):
            # thin water may have gained speed in the step before
            state = state if done == 0 else _no_faster(state)
            parts = tuple(ratio / steps[:, None, None] for ratio in ratios)
            stepped = step(state, (parts[0], parts[1]), walls, x_first=(frame + done) % 2 == 0)
            state = torch.where((done < steps)[:, None, None, None], stepped, state)
        marched.append(state)
    return torch.stack(marched, dim=1)


def _no_faster(state: Tensor) -> Tensor:
    """Bound the speed, which binds in cells that are about to fall dry."""
    depth = state[:, :1]
    most = FASTEST * depth.amax(dim=(-2, -1), keepdim=True).sqrt() * depth
    return torch.cat([depth, torch.minimum(torch.maximum(state[:, 1:], -most), most)], dim=1)


def _steps(state: Tensor, ratios: tuple[float | Tensor, float | Tensor]) -> Float[Tensor, " batch"]:
    """Steps that every sample needs within an interval."""
    depth = state[:, 0]
    celerity = depth.sqrt()
    courant = torch.maximum(
        ratios[0] * ((state[:, 2] / depth).abs() + celerity),
        ratios[1] * ((state[:, 1] / depth).abs() + celerity),
    ).amax(dim=(-2, -1))
    return (courant / COURANT).nan_to_num(1.0).ceil().clamp(1.0, float(MOST_STEPS))


def step(
    state: Float[Tensor, "batch 3 y x"],
    ratios: tuple[Float[Tensor, "batch 1 1"], Float[Tensor, "batch 1 1"]],
    walls: Walls,
    *,
    x_first: bool,
) -> Float[Tensor, "batch 3 y x"]:
    """One step of both sweeps.

    Args:
        state: h [m], hu and hv [m^2/s].
        ratios: time step over cell size, along y and x [s/m].
        walls: boundary conditions on all four sides.
        x_first: order of the sweeps; alternate it.
    """
    for dim in (-1, -2) if x_first else (-2, -1):
        state = _sweep(state, ratios[dim], dim, walls)
    return state


def _sweep(state: Tensor, ratio: Tensor, dim: int, walls: Walls) -> Tensor:
    along, across = (1, 2) if dim == -1 else (2, 1)
    padded = _padded(state, dim, walls)
    low, high = _evolved_edges(_Flow(padded[:, 0], padded[:, along], padded[:, across]), ratio, dim)
    cells = padded.shape[dim] - 2
    left = _Flow(*(value.narrow(dim, 0, cells - 1) for value in high))
    right = _Flow(*(value.narrow(dim, 1, cells - 1) for value in low))
    flux = _drained(hllc(left, right), padded[:, 0].narrow(dim, 2, cells - 2), ratio, dim)
    change = [-ratio * value.diff(dim=dim) for value in flux]
    return state + torch.stack([change[0], change[along], change[across]], dim=1)


def _padded(state: Tensor, dim: int, walls: Walls) -> Tensor:
    """Ghost cells on both ends of ``dim``; a reflecting wall turns the momentum across it."""
    n = state.shape[dim]
    first, last = state.narrow(dim, 0, GHOSTS), state.narrow(dim, n - GHOSTS, GHOSTS)
    if walls == "periodic":
        return torch.cat([last, state, first], dim=dim)
    if walls == "outflow":
        before, after = state.narrow(dim, 0, 1).expand_as(first), state.narrow(dim, n - 1, 1).expand_as(last)
        return torch.cat([before, state, after], dim=dim)
    signs = state.new_ones(3, 1, 1)
    signs[1 if dim == -1 else 2] = -1.0
    return torch.cat([first.flip(dim) * signs, state, last.flip(dim) * signs], dim=dim)


def _evolved_edges(cells: _Flow, ratio: Tensor, dim: int) -> tuple[_Flow, _Flow]:
    """Values at the two edges of each inner cell, advanced by half a step (Hancock)."""
    inner = _Flow(*(value.narrow(dim, 1, value.shape[dim] - 2) for value in cells))
    half_slopes = [0.5 * limited_slope(value.diff(dim=dim), dim) for value in cells]
    low = _Flow(*(value - slope for value, slope in zip(inner, half_slopes, strict=True)))
    high = _Flow(*(value + slope for value, slope in zip(inner, half_slopes, strict=True)))
    changes = [
        (-0.5 * ratio) * (after - before)
        for before, after in zip(physical_flux(low), physical_flux(high), strict=True)
    ]
    lowest = torch.minimum(low.depth, high.depth) + changes[0]
    wet = lowest > LEAST_EDGE * inner.depth
    return (
        _Flow(
            *(torch.where(wet, v + change, cell) for v, change, cell in zip(low, changes, inner, strict=True))
        ),
        _Flow(
            *(
                torch.where(wet, v + change, cell)
                for v, change, cell in zip(high, changes, inner, strict=True)
            )
        ),
    )


def limited_slope(differences: Tensor, dim: int) -> Tensor:
    """Monotonized central: the mean of two one-sided differences, at most twice either; 0 if signs differ."""
    count = differences.shape[dim] - 1
    before, after = differences.narrow(dim, 0, count), differences.narrow(dim, 1, count)
    size = torch.minimum(2.0 * torch.minimum(before.abs(), after.abs()), 0.5 * (before + after).abs())
    return torch.where(before * after > 0, size * before.sign(), 0.0)


def physical_flux(flow: _Flow) -> _Flow:
    """The exact flux along the sweep."""
    speed = flow.along / flow.depth
    return _Flow(flow.along, flow.along * speed + 0.5 * flow.depth * flow.depth, flow.across * speed)


def hllc(left: _Flow, right: _Flow) -> _Flow:
    """Flux between two states: HLL for depth and momentum along, upwind for momentum across (the contact)."""
    speed_left, speed_right = left.along / left.depth, right.along / right.depth
    celerity_left, celerity_right = left.depth.sqrt(), right.depth.sqrt()
    slow = torch.minimum(speed_left - celerity_left, speed_right - celerity_right).clamp_max(0.0)
    fast = torch.maximum(speed_left + celerity_left, speed_right + celerity_right).clamp_min(0.0)
    width = 1.0 / (fast - slow)
    weight_left, weight_right, damping = fast * width, slow * width, slow * fast * width
    mass = weight_left * left.along - weight_right * right.along + damping * (right.depth - left.depth)
    pushed_left = left.along * speed_left + 0.5 * left.depth * left.depth
    pushed_right = right.along * speed_right + 0.5 * right.depth * right.depth
    momentum = weight_left * pushed_left - weight_right * pushed_right + damping * (right.along - left.along)
    carried = torch.where(mass > 0, left.across / left.depth, right.across / right.depth)
    return _Flow(mass, momentum, mass * carried)


def _drained(flux: _Flow, depth: Tensor, ratio: Tensor, dim: int) -> _Flow:
    """The fluxes through the faces of the domain's cells, scaled by what the cell they leave can give."""
    cells = depth.shape[dim]
    leaving = flux.depth.narrow(dim, 1, cells).clamp_min(0.0) - flux.depth.narrow(dim, 0, cells).clamp_max(
        0.0
    )
    share = (DRAIN * depth / (ratio * leaving + TINY)).clamp_max(1.0)
    inner = _Flow(*(value.narrow(dim, 1, cells - 1) for value in flux))
    before, after = share.narrow(dim, 0, cells - 1), share.narrow(dim, 1, cells - 1)
    factor = torch.where(inner.depth > 0, before, after)
    return _Flow(*(value * factor for value in inner))
