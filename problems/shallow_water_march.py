"""The shallow water schemes by name, and the march from frame to frame."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from jaxtyping import Float64

from problems import shallow_water_hllc, shallow_water_roe
from problems.grid import Grid
from problems.shallow_water_sweeps import GHOSTS, MAXIMUM_SIDE, fastest, fill_x, fill_y
from problems.steady import CannotSolve

State = Float64[np.ndarray, "3 y x"]
Sweep = Callable[[State, Float64[np.ndarray, " n"], float], None]

FRAME_INTERVAL = 0.01
"""Time between two frames [s]."""
WALLS = ("outflow", "reflecting", "periodic")
"""Names of the walls, by their numbers in the kernels."""
COURANT = 0.9
"""Largest Courant number of a step; waves may grow faster within it, up to 1."""
MAXIMUM_STEPS = 200
"""Most steps from a frame to the next: enough for waves of 5 m/s where 5 m are ``MAXIMUM_SIDE`` cells."""


@dataclass(frozen=True)
class Scheme:
    """A dimension-split scheme.

    Attributes:
        id: name of the discrete operator.
        sweep_x: a step along x, in place: state with ghosts, scratch, dt / hx.
        sweep_y: the same along y.
        alternating: whether the sweeps change places from step to step.
    """

    id: str
    sweep_x: Sweep
    sweep_y: Sweep
    alternating: bool


SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {
        scheme.id: scheme
        for scheme in (
            Scheme("hllc-muscl-v1", shallow_water_hllc.sweep_x, shallow_water_hllc.sweep_y, True),
            Scheme("roe-mc-split-v1", shallow_water_roe.sweep_x, shallow_water_roe.sweep_y, False),
        )
    }
)


def advance(
    q: State,
    work: Float64[np.ndarray, " n"],
    spacing: tuple[float, float],
    scheme: Scheme,
    walls: int,
    frame: int,
) -> int:
    """From frame number ``frame`` to the next, in place, by as many steps as ``COURANT`` demands.

    Alternating sweeps begin with x where frame and step add up to an even number: two frames, or the steps of
    one, are a symmetric splitting.

    Args:
        q: (h, hu, hv) with ghost cells.
        work: ``scratch()``.
        spacing: (hy, hx) [m].
        scheme: what makes a step.
        walls: index in ``WALLS``.
        frame: number of the frame in ``q``.

    Returns:
        The number of steps.

    Raises:
        CannotSolve: waves are too fast, or the scheme has broken down.
    """
    step, steps, left = 0, 1, FRAME_INTERVAL
    while step < steps:
        fill_x(q, walls)
        fill_y(q, walls)
        remaining = _steps_within(left, _rate(q, work, spacing), scheme.id, step)
        dt, steps = left / remaining, step + remaining
        if scheme.alternating and (frame + step) % 2:
            scheme.sweep_y(q, work, dt / spacing[0])
            fill_x(q, walls)
            scheme.sweep_x(q, work, dt / spacing[1])
        else:
            scheme.sweep_x(q, work, dt / spacing[1])
            fill_y(q, walls)
            scheme.sweep_y(q, work, dt / spacing[0])
        step, left = step + 1, left - dt
    # vectorized maxima, such as that of the speeds, may overlook what is not a number
    if not np.isfinite(q[:, GHOSTS:-GHOSTS, GHOSTS:-GHOSTS]).all():
        raise too_fast(scheme.id, math.nan)
    return step


def expected_steps(
    q: State, work: Float64[np.ndarray, " n"], spacing: tuple[float, float], scheme: Scheme
) -> int:
    """Steps to the next frame if waves stay as fast as they are; for the arguments see ``advance``.

    Behind periodic walls, whose two sides meet: nowhere else are waves faster.

    Raises:
        CannotSolve: waves are too fast.
    """
    walls = WALLS.index("periodic")
    fill_x(q, walls)
    fill_y(q, walls)
    return _steps_within(FRAME_INTERVAL, _rate(q, work, spacing), scheme.id, 0)


def require_sides(grid: Grid) -> None:
    """Raises ``ValueError`` for a grid narrower than the ghost cells or wider than the scratch rows."""
    if min(grid.shape) < GHOSTS or max(grid.shape) > MAXIMUM_SIDE:
        ny, nx = grid.shape
        raise ValueError(f"a side has {GHOSTS} to {MAXIMUM_SIDE} cells, got {ny} x {nx}: use another grid")


def _rate(q: State, work: Float64[np.ndarray, " n"], spacing: tuple[float, float]) -> float:
    """Cells that the fastest wave crosses per second, along x or along y; the ghost cells are filled."""
    speed_y, speed_x = fastest(q, work)
    return float(max(speed_y / spacing[0], speed_x / spacing[1]))


def _steps_within(left: float, rate: float, scheme: str, taken: int) -> int:
    """Least number of equal steps in the time ``left`` [s] where waves cross ``rate`` cells per second.

    Raises:
        CannotSolve: with those ``taken`` before, they are too many.
    """
    # what rounding adds to the time that is left shall not cost a step
    steps = left * rate / COURANT - 1e-9
    if not taken + steps <= MAXIMUM_STEPS:
        raise too_fast(scheme, rate)
    return max(1, math.ceil(steps))


def too_fast(scheme: str, rate: float) -> CannotSolve:
    """What to say of waves that cross ``rate`` cells per second, or not a number."""
    way_out = "use hllc-muscl-v1" if scheme != "hllc-muscl-v1" else "use a coarser grid or smaller velocities"
    return CannotSolve(
        f"{scheme} cannot go on: waves must cross at most {MAXIMUM_STEPS * COURANT / FRAME_INTERVAL:g} cells "
        f"per second, got {rate:g}, as next to nearly dry ground or where hu / h is large; {way_out}"
    )
