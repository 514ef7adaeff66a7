"""Random initial states of the diffusion-reaction problem: families by name, parameters and seed.

* ``pdebench``: white noise, N(0, 1) in every cell of u and v (Takamoto et al. 2022, PDEBench); sample
  (seed, index) is its group number seed + index. Noise depends on the grid, so that a grid whose sides are
  multiples of PDEBench's 128 cells carries the noise of 128 x 128 cells, each of them uniform: the same
  state, resolved better.
* ``band_limited``: u and v are independent smooth Gaussian fields of one correlation length and variance 1.
* ``wide``: the same with a correlation length and an amplitude that differ from sample to sample, both
  log-uniform: 0.03 to 0.3 of the longer side, 0.3 to 1.2.

The smooth families look the same on every grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from jaxtyping import Float64

from problems.family import Family
from problems.fields import Fields, FieldSpec
from problems.gaussian_field import gaussian_field
from problems.grid import Grid

PDEBENCH_SIDE = 128


def _generator_of_group(seed: int, index: int, _name: str) -> np.random.Generator:
    """The generator that PDEBench seeds with the number of a group."""
    return np.random.default_rng(seed + index)


def _pdebench(rng: np.random.Generator, _parameters: Mapping[str, float], grid: Grid) -> Fields:
    refined = all(cells % PDEBENCH_SIDE == 0 for cells in grid.shape)
    ny, nx = (PDEBENCH_SIDE, PDEBENCH_SIDE) if refined else grid.shape
    u, v = (rng.standard_normal(ny * nx).reshape(ny, nx) for _ in range(2))
    return {name: _refined(field, grid.shape) for name, field in (("u", u), ("v", v))}


def _refined(field: Float64[np.ndarray, "y x"], shape: tuple[int, int]) -> Float64[np.ndarray, "Y X"]:
    """Every cell as a block of equal ones."""
    across_y, across_x = (fine // coarse for fine, coarse in zip(shape, field.shape, strict=True))
    return field.repeat(across_y, axis=0).repeat(across_x, axis=1)


def _smooth(rng: np.random.Generator, length: float, grid: Grid) -> dict[str, Float64[np.ndarray, "y x"]]:
    u = gaussian_field(rng, length, grid)
    return {"u": u, "v": gaussian_field(rng, length, grid)}


def _band_limited(rng: np.random.Generator, parameters: Mapping[str, float], grid: Grid) -> Fields:
    return _smooth(rng, parameters["correlation_length"], grid)


def _wide(rng: np.random.Generator, _parameters: Mapping[str, float], grid: Grid) -> Fields:
    length = max(grid.extent) * 0.03 * 10.0 ** rng.random()
    amplitude = 0.3 * 4.0 ** rng.random()
    return {name: amplitude * field for name, field in _smooth(rng, length, grid).items()}


_CORRELATION_LENGTH = FieldSpec(
    "correlation_length", "l", "m", "distance over which the state varies", exclusive_minimum=0.0, rank=0
)

FAMILIES: Mapping[str, Family[Fields]] = MappingProxyType(
    {
        family.name: family
        for family in (
            Family(
                "pdebench", "PDEBench's white noise, N(0, 1) per cell", (), _pdebench, _generator_of_group
            ),
            Family(
                "band_limited",
                "smooth Gaussian u and v of one correlation length, variance 1",
                (_CORRELATION_LENGTH,),
                _band_limited,
            ),
            Family(
                "wide", "smooth Gaussian u and v, correlation length and amplitude of every size", (), _wide
            ),
        )
    }
)
