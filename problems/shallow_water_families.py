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

Kinds that ``wide`` does not hold:

* ``deep_dams``: discs of 4 to 8 m over 1 m.
* ``small_dams``: one to four discs with radii of 8 to 20 cm, of 1.1 to 3 m over 1 m.
* ``many_dams``: 8 to 24 small discs of 1.1 to 3 m over 1 m.
* ``steep_bumps``: ``bumps`` that are 5 to 15 cm wide.
* ``low_dams``: discs of 0.6 to 3 m over 0.4 m.
* ``straight_dam``: still water, 1.5 to 3 m deep behind a line of random direction, 1 m before it.
* ``plane_waves``: water at rest under three plane waves of one length, each of an amplitude of 5 to 25 cm.
* ``random_surface``: still water of a depth whose logarithm is a smooth Gaussian field of deviation 0.25.
* ``rapid``: ``momentum`` with a root mean square Froude number of 0.6 to 1.2.

Lengths are those of a domain whose shorter side is 5 m, and scale with it (``pdebench``: do not).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import numpy as np
import scipy
from jaxtyping import Float64

from problems.coarsen import coarsen
from problems.family import Family
from problems.fields import Fields, FieldSpec
from problems.gaussian_field import gaussian_field
from problems.grid import Grid
from problems.shallow_water_discs import SHORTER_SIDE, Discs, places
from problems.shallow_water_surfaces import fine_grid, plane_waves, random_surface, straight_dam
from problems.shallow_water_sweeps import GRAVITY

REST_DEPTH = 1.0
"""Depth [m] of the water around."""

_MOST = 4
_LEAST_DEPTH, _LOWEST_CREST, _GREATEST_DEPTH = 0.7, 1.1, 3.0
_BUMP_WIDTHS, _STEEP_WIDTHS = (0.15, 0.8), (0.05, 0.15)
_DIP_SHARE = 0.25
_FROUDE, _RAPID_FROUDE = (0.05, 0.4), (0.6, 1.2)
# correlation lengths of the velocity over the longer side
_VELOCITY_LENGTHS = (0.06, 0.25)
# points per side where the height of overlapping bumps is looked up
_LATTICE = 96

Depth = Callable[[np.random.Generator, Grid], Float64[np.ndarray, "y x"]]

_DAMS: Depth = Discs().draw
_DEEP_DAMS: Depth = Discs(depths=(4.0, 8.0)).draw
_SMALL_DAMS: Depth = Discs(radii=(0.08, 0.2)).draw
_MANY_DAMS: Depth = Discs(least=8, most=24, radii=(0.1, 0.3)).draw
_LOW_DAMS: Depth = Discs(depths=(0.6, 3.0), rest=0.4).draw


def _draw_pdebench(rng: np.random.Generator, _parameters: Mapping[str, float], grid: Grid) -> Fields:
    radius = rng.uniform(0.3, 0.7)
    y, x = grid.coordinates()
    distance = np.sqrt(x[None, :] ** 2 + y[:, None] ** 2)
    return _still(np.where(distance <= radius, 2.0, REST_DEPTH))


def _draw_still(
    depth: Depth, rng: np.random.Generator, _parameters: Mapping[str, float], grid: Grid
) -> Fields:
    return _still(depth(rng, grid))


def _draw_moving(
    froude: tuple[float, float], rng: np.random.Generator, _parameters: Mapping[str, float], grid: Grid
) -> Fields:
    depth = _DAMS if rng.random() < 0.5 else _bumps
    return _moving(rng, depth, froude, grid)


def _draw_waves(rng: np.random.Generator, parameters: Mapping[str, float], grid: Grid) -> Fields:
    return _still(plane_waves(rng, parameters["wavelength"], grid))


def _draw_surface(rng: np.random.Generator, parameters: Mapping[str, float], grid: Grid) -> Fields:
    return _still(random_surface(rng, parameters["correlation_length"], grid))


def _draw_wide(rng: np.random.Generator, parameters: Mapping[str, float], grid: Grid) -> Fields:
    return _OF_WIDE[rng.integers(3)](rng, parameters, grid)


def _still(depth: Float64[np.ndarray, "y x"]) -> dict[str, Float64[np.ndarray, "y x"]]:
    return {"h": depth, "hu": np.zeros_like(depth), "hv": np.zeros_like(depth)}


def _bumps(
    rng: np.random.Generator, grid: Grid, widths: tuple[float, float] = _BUMP_WIDTHS
) -> Float64[np.ndarray, "y x"]:
    """Depth [m] of Gaussian bumps and dips, averaged over the cells."""
    number, (center_y, center_x) = places(rng, grid, 1, _MOST)
    width = rng.uniform(*widths, _MOST) * min(grid.extent) / SHORTER_SIDE
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
    rng: np.random.Generator, draw_depth: Depth, froude_range: tuple[float, float], grid: Grid
) -> dict[str, Float64[np.ndarray, "y x"]]:
    """Water of a random depth in motion."""
    fine = fine_grid(grid)
    h = draw_depth(rng, fine)
    length = rng.uniform(*_VELOCITY_LENGTHS) * max(grid.extent)
    froude = rng.uniform(*froude_range)
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


_draw_dams = partial(_draw_still, _DAMS)
_draw_bumps = partial(_draw_still, _bumps)
_draw_momentum = partial(_draw_moving, _FROUDE)
_steep_bumps = partial(_bumps, widths=_STEEP_WIDTHS)
_OF_WIDE = (_draw_dams, _draw_bumps, _draw_momentum)

_WAVELENGTH = FieldSpec(
    "wavelength", "l", "m", "distance between two crests", minimum=0.1, maximum=10.0, rank=0
)
_CORRELATION_LENGTH = FieldSpec(
    "correlation_length", "l", "m", "distance over which the depth varies", exclusive_minimum=0.0, rank=0
)

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
            Family(
                "deep_dams",
                "one to four discs of still water, 4 to 8 m deep",
                (),
                partial(_draw_still, _DEEP_DAMS),
            ),
            Family(
                "small_dams", "one to four small discs of still water", (), partial(_draw_still, _SMALL_DAMS)
            ),
            Family(
                "steep_bumps",
                "one to four narrow bumps or dips of still water",
                (),
                partial(_draw_still, _steep_bumps),
            ),
            Family("many_dams", "8 to 24 small discs of still water", (), partial(_draw_still, _MANY_DAMS)),
            Family("low_dams", "discs of still water in water of 0.4 m", (), partial(_draw_still, _LOW_DAMS)),
            Family(
                "straight_dam", "still water behind a straight dam", (), partial(_draw_still, straight_dam)
            ),
            Family("plane_waves", "water at rest under three plane waves", (_WAVELENGTH,), _draw_waves),
            Family(
                "random_surface",
                "still water, a smooth random surface",
                (_CORRELATION_LENGTH,),
                _draw_surface,
            ),
            Family(
                "rapid", "dams or bumps with a fast random velocity", (), partial(_draw_moving, _RAPID_FROUDE)
            ),
        )
    }
)
