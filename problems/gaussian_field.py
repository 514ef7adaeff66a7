"""Smooth Gaussian random fields on a rectangle, the same on every grid.

A cosine expansion with the spectrum of the covariance exp(-r^2 / (2 l^2)), l the correlation length; the
variance doubles at a wall, as cosines do.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float64

from problems.grid import Grid

# cosines per direction; with l >= 0.03 of the side the first one left out has an amplitude below 2e-4
_MODES = 64


def _cosines(
    coordinate: Float64[np.ndarray, " n"], side: float, length: float
) -> Float64[np.ndarray, "n modes"]:
    """Cosines of the expansion at the cell centres times the square roots of their variances."""
    wavenumber = np.pi * np.arange(_MODES) / side
    amplitude = np.exp(-((length * wavenumber) ** 2) / 4)
    amplitude /= math.sqrt(np.sum(amplitude**2))
    # the mean of a cosine squared is 1/2
    amplitude[1:] *= math.sqrt(2)
    return np.asarray(np.cos(coordinate[:, None] * wavenumber) * amplitude)


def gaussian_field(rng: np.random.Generator, length: float, grid: Grid) -> Float64[np.ndarray, "y x"]:
    """Smooth Gaussian field of mean 0, variance 1 on average and correlation length ``length`` [m]."""
    if length < 0.03 * max(grid.extent):
        side = max(grid.extent)
        raise ValueError(
            f"correlation_length must be at least 0.03 of the longer side {side:g} m, got {length:g}"
        )
    # distances from the walls, wherever the origin lies: about the middle of the domain cosines are symmetric
    y, x = (centres - first for centres, first in zip(grid.coordinates(), grid.origin, strict=True))
    ly, lx = grid.extent
    coefficients = rng.standard_normal((_MODES, _MODES))
    return np.asarray(_cosines(y, ly, length) @ coefficients @ _cosines(x, lx, length).T)
