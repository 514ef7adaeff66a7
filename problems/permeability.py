"""Random permeability fields: families by name, parameters and seed.

A sample depends only on (family, parameters, seed, index, grid): its random numbers come from a generator
keyed by (seed, index, family), drawn in an order that neither the parameters nor the grid change. So a sample
keeps its features when the grid is refined, and samples can be made in any order and on any number of
processes.

* ``pdebench``: five Gaussian bumps ``G = sum_m exp(-(|x - X_m|^2) / s_m)``, thresholded at 1.857, values 1
  above and 0.1 below (Takamoto et al. 2022, PDEBench; positions and widths are i.i.d. uniform, the threshold
  is the mean of G).
* ``log_normal``: ``log a`` is a smooth Gaussian field, rescaled so that max(a) / min(a) is exactly
  ``contrast`` and the mean of log a is 0.
* ``thresholded``: 1 where such a field is positive, 1 / ``contrast`` elsewhere.

The Gaussian field is a cosine expansion with the spectrum of the covariance exp(-r^2 / (2 l^2)), l the
correlation length; its variance doubles at a wall, as cosines do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from jaxtyping import Float64

from problems.family import Family
from problems.fields import FieldSpec
from problems.gaussian_field import gaussian_field
from problems.grid import Grid

PDEBENCH_THRESHOLD = 1.857


def _pdebench(
    rng: np.random.Generator, _parameters: Mapping[str, float], grid: Grid
) -> Float64[np.ndarray, "y x"]:
    center_x, center_y = rng.random(5), rng.random(5)
    # 1 - U is never 0
    width = 0.5 * (1.0 - rng.random(5))
    y, x = (c / side for c, side in zip(grid.coordinates(), grid.extent, strict=True))
    bump_y = np.exp(-((y[:, None] - center_y) ** 2) / width)
    bump_x = np.exp(-((x[:, None] - center_x) ** 2) / width)
    return np.where(bump_y @ bump_x.T > PDEBENCH_THRESHOLD, 1.0, 0.1)


def _log_normal(
    rng: np.random.Generator, parameters: Mapping[str, float], grid: Grid
) -> Float64[np.ndarray, "y x"]:
    field = gaussian_field(rng, parameters["correlation_length"], grid)
    spread = float(np.ptp(field)) or 1.0
    return np.asarray(np.exp((field - field.mean()) * (math.log(parameters["contrast"]) / spread)))


def _thresholded(
    rng: np.random.Generator, parameters: Mapping[str, float], grid: Grid
) -> Float64[np.ndarray, "y x"]:
    field = gaussian_field(rng, parameters["correlation_length"], grid)
    return np.where(field > 0, 1.0, 1.0 / parameters["contrast"])


_CORRELATION_LENGTH = FieldSpec(
    "correlation_length", "l", "m", "distance over which the field varies", exclusive_minimum=0.0, rank=0
)
_CONTRAST = FieldSpec(
    "contrast", "c", "1", "largest over smallest permeability", minimum=1.0, maximum=1e8, rank=0
)

FAMILIES: Mapping[str, Family[Float64[np.ndarray, "y x"]]] = MappingProxyType(
    {
        family.name: family
        for family in (
            Family("pdebench", "PDEBench's five thresholded bumps, values 0.1 and 1", (), _pdebench),
            Family(
                "log_normal",
                "smooth log-normal field of exact contrast, geometric mean 1",
                (_CORRELATION_LENGTH, _CONTRAST),
                _log_normal,
            ),
            Family(
                "thresholded",
                "two values, 1 and 1 / contrast, by the sign of a Gaussian field",
                (_CORRELATION_LENGTH, _CONTRAST),
                _thresholded,
            ),
        )
    }
)
