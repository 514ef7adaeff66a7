"""Depths of shallow water that no discs or bumps make: a straight dam, plane waves, a random surface."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float64

from problems.coarsen import coarsen
from problems.gaussian_field import gaussian_field
from problems.grid import Grid
from problems.shallow_water_discs import SHORTER_SIDE

# cells per side on which what is no average yet is averaged
_FINE = 512
# of a straight dam: depths [m] behind it, and how far from the middle it may be [m]
_DAM_DEPTHS = (1.5, 3.0)
_DAM_DISTANCE = 1.0
# standard deviation of the logarithm of the depth over 1 m, away from the walls
_SURFACE_SPREAD = 0.25
_WAVES = 3
_WAVE_HEIGHTS = (0.05, 0.25)


def fine_grid(grid: Grid) -> Grid:
    """A refinement of a grid, fine enough for averages over its cells."""
    ny, nx = (cells * math.ceil(_FINE / cells) for cells in grid.shape)
    return Grid((ny, nx), grid.extent, grid.origin)


def straight_dam(rng: np.random.Generator, grid: Grid) -> Float64[np.ndarray, "y x"]:
    """Depth [m] of still water that is dammed up behind a line of random direction, 1 m before it."""
    fine = fine_grid(grid)
    sine, cosine = _direction(rng)
    offset = rng.uniform(-_DAM_DISTANCE, _DAM_DISTANCE) * min(grid.extent) / SHORTER_SIDE
    depth = rng.uniform(*_DAM_DEPTHS)
    # how much of a cell lies behind the line, exactly where it is parallel to a side
    width = abs(sine) * fine.spacing[0] + abs(cosine) * fine.spacing[1]
    behind = np.clip((_along(fine, sine, cosine) - offset) / width + 0.5, 0.0, 1.0)
    return _averaged(1.0 + (depth - 1.0) * behind, grid)


def plane_waves(rng: np.random.Generator, wavelength: float, grid: Grid) -> Float64[np.ndarray, "y x"]:
    """Depth [m] of water of 1 m whose surface is the sum of three plane waves of one length [m]."""
    fine = fine_grid(grid)
    depth = np.ones(fine.shape)
    for _ in range(_WAVES):
        sine, cosine = _direction(rng)
        phase, height = rng.uniform(0.0, 2 * np.pi), rng.uniform(*_WAVE_HEIGHTS)
        depth += height * np.sin(2 * np.pi * _along(fine, sine, cosine) / wavelength + phase)
    return _averaged(depth, grid)


def random_surface(rng: np.random.Generator, length: float, grid: Grid) -> Float64[np.ndarray, "y x"]:
    """Depth [m] whose logarithm is a smooth Gaussian field of a correlation length [m]."""
    return _averaged(np.exp(_SURFACE_SPREAD * gaussian_field(rng, length, fine_grid(grid))), grid)


def _direction(rng: np.random.Generator) -> tuple[float, float]:
    """Sine and cosine of a random angle: the components along y and x."""
    angle = rng.uniform(0.0, 2 * np.pi)
    return math.sin(angle), math.cos(angle)


def _along(grid: Grid, sine: float, cosine: float) -> Float64[np.ndarray, "y x"]:
    """Distance [m] from the middle of the domain along a direction."""
    y, x = (
        centers - (corner + side / 2)
        for centers, corner, side in zip(grid.coordinates(), grid.origin, grid.extent, strict=True)
    )
    return np.asarray(sine * y[:, None] + cosine * x[None, :])


def _averaged(depth: Float64[np.ndarray, "y x"], grid: Grid) -> Float64[np.ndarray, "y x"]:
    return np.asarray(coarsen({"h": depth}, grid.shape)["h"])
