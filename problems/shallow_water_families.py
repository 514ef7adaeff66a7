"""Random initial states of the shallow water problem: families by name and seed.

Every random number is drawn in an order that does not depend on the grid, and fields are cell averages, so a
sample on a coarse grid is the average of the same sample on a finer one; up to 512 cells a side that holds to
rounding for grids that divide each other, since products of fields are averaged from such a fine grid.

* ``pdebench``: still water, depth 2 m at the cell centers within R of the origin, 1 m elsewhere; R from
  ``numpy.random.default_rng(seed + index).uniform(0.3, 0.7)`` (Takamoto et al. 2022, PDEBench's radial dam
  break; bit by bit its initial states, which do depend on the grid).
* ``dams``: still water, one to four discs of depth 1.1 to 3 m over 1 m, anywhere; the deeper one where they
  overlap.
* ``bumps``: still water, one to four Gaussian bumps or shallow dips, between 0.7 and 3 m.
* ``momentum``: one of these two, in motion: a random velocity that fades towards the walls, of a root mean
  square Froude number of at most 0.4.
* ``wide``: one of the last three.

Lengths are those of a domain whose shorter side is 5 m, and scale with it (``pdebench``: do not).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import scipy
from jaxtyping import Float64

from problems.coarsen import coarsen
from problems.compiled import compiled
from problems.family import Family
from problems.fields import Fields
from problems.gaussian_field import gaussian_field
from problems.grid import Grid
from problems.shallow_water_sweeps import GRAVITY

REST_DEPTH = 1.0
"""Depth [m] of the water around."""

_SHORTER_SIDE = 5.0
_MOST = 4
_LEAST_DEPTH, _LOWEST_CREST, _GREATEST_DEPTH = 0.7, 1.1, 3.0
_DISC_RADII = (0.2, 0.9)
_BUMP_WIDTHS = (0.15, 0.8)
_DIP_SHARE = 0.25
_FROUDE = (0.05, 0.4)
# correlation lengths of the velocity over the longer side
_VELOCITY_LENGTHS = (0.06, 0.25)
# lines across a disc by which its area is integrated; along a line it is exact
_LINES = 4096
# cells per side on which products of fields are averaged
_FINE = 512
# points per side where the height of overlapping bumps is looked up
_LATTICE = 96


def _draw_pdebench(rng: np.random.Generator, _parameters: Mapping[str, float], grid: Grid) -> Fields:
    radius = rng.uniform(0.3, 0.7)
    y, x = grid.coordinates()
    distance = np.sqrt(x[None, :] ** 2 + y[:, None] ** 2)
    return _still(np.where(distance <= radius, 2.0, REST_DEPTH))


def _draw_dams(rng: np.random.Generator, _parameters: Mapping[str, float], grid: Grid) -> Fields:
    return _still(_dams(rng, grid))


def _draw_bumps(rng: np.random.Generator, _parameters: Mapping[str, float], grid: Grid) -> Fields:
    return _still(_bumps(rng, grid))


def _draw_momentum(rng: np.random.Generator, _parameters: Mapping[str, float], grid: Grid) -> Fields:
    depth = _dams if rng.random() < 0.5 else _bumps
    return _moving(rng, depth, grid)


def _draw_wide(rng: np.random.Generator, parameters: Mapping[str, float], grid: Grid) -> Fields:
    draw = (_draw_dams, _draw_bumps, _draw_momentum)[rng.integers(3)]
    return draw(rng, parameters, grid)


def _still(depth: Float64[np.ndarray, "y x"]) -> dict[str, Float64[np.ndarray, "y x"]]:
    return {"h": depth, "hu": np.zeros_like(depth), "hv": np.zeros_like(depth)}


def _places(rng: np.random.Generator, grid: Grid) -> tuple[int, Float64[np.ndarray, "two n"]]:
    """How many discs or bumps, and their centers (y, x) [m]; the first ones count."""
    number = int(rng.integers(1, _MOST + 1))
    centers = rng.random((_MOST, 2)) * np.array(grid.extent) + np.array(grid.origin)
    return number, np.asarray(centers.T)


def _dams(rng: np.random.Generator, grid: Grid) -> Float64[np.ndarray, "y x"]:
    """Depth [m] of discs of still water, averaged over the cells."""
    number, (center_y, center_x) = _places(rng, grid)
    radius = rng.uniform(*_DISC_RADII, _MOST) * min(grid.extent) / _SHORTER_SIDE
    depth = rng.uniform(_LOWEST_CREST, _GREATEST_DEPTH, _MOST)
    # deeper ones later: a disc covers those before it
    order = np.argsort(depth[:number])
    lines = math.ceil(_LINES / grid.shape[0])
    edges_x = grid.origin[1] + np.arange(grid.shape[1] + 1) * grid.spacing[1]
    averages = np.empty(grid.shape)
    _integrate_discs(
        center_y[order], center_x[order], radius[order], depth[order] - REST_DEPTH,
        edges_x, grid.origin[0], grid.spacing[0], lines, averages,
    )  # fmt: skip
    return REST_DEPTH + averages


@compiled()
def _integrate_discs(  # type: ignore[no-untyped-def]
    center_y, center_x, radius, height, edges_x, bottom, hy, lines, averages
):
    """Averages of the height of the last disc that covers a point, 0 where none does."""
    number = center_y.size
    low, high = np.empty(number), np.empty(number)
    breaks = np.empty(2 * number)
    hx = edges_x[1] - edges_x[0]
    for j in range(averages.shape[0]):
        averages[j] = 0.0
        for line in range(lines):
            y = bottom + (j + (line + 0.5) / lines) * hy
            for k in range(number):
                half = math.sqrt(max(radius[k] ** 2 - (y - center_y[k]) ** 2, 0.0))
                low[k] = max(center_x[k] - half, edges_x[0])
                high[k] = max(min(center_x[k] + half, edges_x[-1]), low[k])
                breaks[2 * k], breaks[2 * k + 1] = low[k], high[k]
            breaks.sort()
            for s in range(2 * number - 1):
                left, right = breaks[s], breaks[s + 1]
                middle, top = 0.5 * (left + right), 0.0
                for k in range(number):
                    if low[k] < middle < high[k]:
                        top = height[k]
                if top == 0.0:
                    continue
                i = min(max(int((left - edges_x[0]) / hx) - 1, 0), averages.shape[1] - 1)
                while i < averages.shape[1] and edges_x[i] < right:
                    covered = min(right, edges_x[i + 1]) - max(left, edges_x[i])
                    averages[j, i] += top * max(covered, 0.0) / (hx * lines)
                    i += 1


def _bumps(rng: np.random.Generator, grid: Grid) -> Float64[np.ndarray, "y x"]:
    """Depth [m] of Gaussian bumps and dips, averaged over the cells."""
    number, (center_y, center_x) = _places(rng, grid)
    width = rng.uniform(*_BUMP_WIDTHS, _MOST) * min(grid.extent) / _SHORTER_SIDE
    crest = rng.uniform(_LOWEST_CREST - REST_DEPTH, _GREATEST_DEPTH - REST_DEPTH, _MOST)
    trough = rng.uniform(_LEAST_DEPTH - REST_DEPTH, 0.0, _MOST)
    height = np.where(rng.random(_MOST) < _DIP_SHARE, trough, crest)
    lattice = Grid((_LATTICE, _LATTICE), grid.extent, grid.origin)
    bumps = (center_y[:number], center_x[:number], width[:number], height[:number])
    total = _gaussians(*bumps, lattice)
    # overlapping ones must not leave the range
    shrink = max(1.0, total.max() / (_GREATEST_DEPTH - REST_DEPTH), total.min() / (_LEAST_DEPTH - REST_DEPTH))
    return np.asarray(REST_DEPTH + _gaussians(*bumps, grid) / shrink)


def _gaussians(
    center_y: Float64[np.ndarray, " n"],
    center_x: Float64[np.ndarray, " n"],
    width: Float64[np.ndarray, " n"],
    height: Float64[np.ndarray, " n"],
    grid: Grid,
) -> Float64[np.ndarray, "y x"]:
    """Cell averages of ``sum_k height_k exp(-|x - center_k|^2 / (2 width_k^2))``."""
    sides = []
    for axis, center in enumerate((center_y, center_x)):
        edges = grid.origin[axis] + np.arange(grid.shape[axis] + 1) * grid.spacing[axis]
        integral = (
            np.sqrt(np.pi / 2) * width * scipy.special.erf((edges[:, None] - center) / (math.sqrt(2) * width))
        )
        sides.append(np.diff(integral, axis=0) / grid.spacing[axis])
    return np.asarray((sides[0] * height) @ sides[1].T)


def _moving(
    rng: np.random.Generator,
    draw_depth: Callable[[np.random.Generator, Grid], Float64[np.ndarray, "y x"]],
    grid: Grid,
) -> dict[str, Float64[np.ndarray, "y x"]]:
    """Water of a random depth in motion."""
    refinement = [math.ceil(_FINE / cells) for cells in grid.shape]
    fine = Grid((grid.shape[0] * refinement[0], grid.shape[1] * refinement[1]), grid.extent, grid.origin)
    h = draw_depth(rng, fine)
    length = rng.uniform(*_VELOCITY_LENGTHS) * max(grid.extent)
    froude = rng.uniform(*_FROUDE)
    window = _window(fine)
    u, v = window * gaussian_field(rng, length, fine), window * gaussian_field(rng, length, fine)
    scale = froude / math.sqrt(np.mean((u**2 + v**2) / (GRAVITY * h)))
    return coarsen({"h": h, "hu": scale * h * u, "hv": scale * h * v}, grid.shape)


def _window(grid: Grid) -> Float64[np.ndarray, "y x"]:
    """1 in the middle of the domain, 0 at its walls."""
    y, x = (np.sin(np.pi * (np.arange(cells) + 0.5) / cells) ** 2 for cells in grid.shape)
    return np.asarray(y[:, None] * x[None, :])


def _pdebench_generator(seed: int, index: int, _name: str) -> np.random.Generator:
    """PDEBench's: group number ``seed + index``."""
    return np.random.default_rng(seed + index)


FAMILIES: Mapping[str, Family[Fields]] = MappingProxyType(
    {
        family.name: family
        for family in (
            Family(
                "pdebench", "PDEBench's radial dam break", (), _draw_pdebench, generator=_pdebench_generator
            ),
            Family("dams", "one to four discs of still water, up to 3 m deep", (), _draw_dams),
            Family("bumps", "one to four smooth bumps or dips of still water", (), _draw_bumps),
            Family("momentum", "dams or bumps with a random velocity", (), _draw_momentum),
            Family("wide", "dams, bumps, or either of them in motion", (), _draw_wide),
        )
    }
)
