"""Random initial states of the diffusion-reaction problem: families by name, parameters and seed.

* ``pdebench``: white noise, N(0, 1) in every cell of u and v (Takamoto et al. 2022, PDEBench); sample
  (seed, index) is its group number seed + index. Noise depends on the grid, so that a grid whose sides are
  multiples of PDEBench's 128 cells carries the noise of 128 x 128 cells, each of them uniform: the same
  state, resolved better.
* ``band_limited``: u and v are independent smooth Gaussian fields of one correlation length and variance 1.
* ``wide``: the same with a correlation length and an amplitude that differ from sample to sample, both
  log-uniform: 0.03 to 0.3 of the longer side, 0.3 to 1.2.

Kinds that these do not hold:

* ``noise``: ``pdebench`` times an amplitude.
* ``strong``: ``band_limited`` times an amplitude.
* ``stripes``: u and v are plane waves of one length, of random directions, phases and amplitudes up to 1.5.
* ``spots``: 3 to 12 Gaussian spots of u and of v, 0.8 to 1.5 high and 0.04 to 0.12 of the longer side wide,
  over 0.
* ``spiral``: u is 1 and -1 on the two sides of a line, v 0.5 and -0.5 on those of a line across: the broken
  front that excitable media make a spiral of. Fronts are 0.03 of the longer side wide.
* ``patches``: u and v are the hyperbolic tangents of eight times a smooth Gaussian field: nearly 1 or -1.

All but ``pdebench`` and ``noise`` look the same on every grid.
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

_PATCH_STEEPNESS = 8.0
_STRIPE_AMPLITUDES = (0.3, 1.5)
_FEWEST_SPOTS, _MOST_SPOTS = 3, 12
# over the longer side
_SPOT_WIDTHS = (0.04, 0.12)
_SPOT_HEIGHTS = (0.8, 1.5)
# over the longer side, and over the shorter one
_FRONT_WIDTH, _FRONT_OFFSET = 0.03, 0.2


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


def _noise(rng: np.random.Generator, parameters: Mapping[str, float], grid: Grid) -> Fields:
    return _scaled(parameters["amplitude"], _pdebench(rng, {}, grid))


def _scaled(amplitude: float, state: Fields) -> dict[str, Float64[np.ndarray, "y x"]]:
    return {name: amplitude * np.asarray(field) for name, field in state.items()}


def _band_limited(rng: np.random.Generator, parameters: Mapping[str, float], grid: Grid) -> Fields:
    return _smooth(rng, parameters["correlation_length"], grid)


def _wide(rng: np.random.Generator, _parameters: Mapping[str, float], grid: Grid) -> Fields:
    length = max(grid.extent) * 0.03 * 10.0 ** rng.random()
    amplitude = 0.3 * 4.0 ** rng.random()
    return _scaled(amplitude, _smooth(rng, length, grid))


def _strong(rng: np.random.Generator, parameters: Mapping[str, float], grid: Grid) -> Fields:
    return _scaled(parameters["amplitude"], _smooth(rng, parameters["correlation_length"], grid))


def _patches(rng: np.random.Generator, parameters: Mapping[str, float], grid: Grid) -> Fields:
    fields = _smooth(rng, parameters["correlation_length"], grid)
    return {name: np.tanh(_PATCH_STEEPNESS * field) for name, field in fields.items()}


def _stripes(rng: np.random.Generator, parameters: Mapping[str, float], grid: Grid) -> Fields:
    state = {}
    for name in ("u", "v"):
        angle, phase = rng.uniform(0.0, 2 * np.pi, 2)
        amplitude = rng.uniform(*_STRIPE_AMPLITUDES)
        wavenumber = 2 * np.pi / parameters["wavelength"]
        state[name] = amplitude * np.sin(wavenumber * _along(angle, grid) + phase)
    return state


def _spots(rng: np.random.Generator, _parameters: Mapping[str, float], grid: Grid) -> Fields:
    y, x = grid.coordinates()
    state = {}
    for name in ("u", "v"):
        number = rng.integers(_FEWEST_SPOTS, _MOST_SPOTS + 1)
        center_y, center_x = (
            corner + side * rng.random(number) for corner, side in zip(grid.origin, grid.extent, strict=True)
        )
        width = rng.uniform(*_SPOT_WIDTHS, number) * max(grid.extent)
        height = rng.uniform(*_SPOT_HEIGHTS, number)
        along_y, along_x = (
            np.exp(-((points[:, None] - centers) ** 2) / (2 * width**2))
            for points, centers in ((y, center_y), (x, center_x))
        )
        state[name] = np.asarray((height * along_y) @ along_x.T)
    return state


def _spiral(rng: np.random.Generator, _parameters: Mapping[str, float], grid: Grid) -> Fields:
    angle = rng.uniform(0.0, 2 * np.pi)
    width = _FRONT_WIDTH * max(grid.extent)
    offset_u, offset_v = rng.uniform(-_FRONT_OFFSET, _FRONT_OFFSET, 2) * min(grid.extent)
    return {
        "u": np.tanh((_along(angle, grid) - offset_u) / width),
        "v": 0.5 * np.tanh((_along(angle + np.pi / 2, grid) - offset_v) / width),
    }


def _along(angle: float, grid: Grid) -> Float64[np.ndarray, "y x"]:
    """Distance [m] from the middle of the domain along a direction, which makes this angle with x."""
    y, x = (
        centers - (corner + side / 2)
        for centers, corner, side in zip(grid.coordinates(), grid.origin, grid.extent, strict=True)
    )
    return np.asarray(np.sin(angle) * y[:, None] + np.cos(angle) * x[None, :])


_CORRELATION_LENGTH = FieldSpec(
    "correlation_length", "l", "m", "distance over which the state varies", exclusive_minimum=0.0, rank=0
)
_AMPLITUDE = FieldSpec(
    "amplitude", "a", "1", "what u and v are multiplied by", exclusive_minimum=0.0, maximum=10.0, rank=0
)
_WAVELENGTH = FieldSpec(
    "wavelength", "l", "m", "distance between two crests", minimum=0.05, maximum=5.0, rank=0
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
            Family("noise", "PDEBench's white noise times an amplitude", (_AMPLITUDE,), _noise),
            Family(
                "strong",
                "smooth Gaussian u and v of one correlation length, times an amplitude",
                (_CORRELATION_LENGTH, _AMPLITUDE),
                _strong,
            ),
            Family("patches", "patches where u, and v, is nearly 1 or -1", (_CORRELATION_LENGTH,), _patches),
            Family("stripes", "plane waves of u and of v", (_WAVELENGTH,), _stripes),
            Family("spots", "3 to 12 Gaussian spots of u and of v", (), _spots),
            Family("spiral", "a front of u across a front of v", (), _spiral),
        )
    }
)
