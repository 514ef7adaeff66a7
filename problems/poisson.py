"""The Poisson equation that ``two_point_flux`` makes of a = 1: ``L w = r``.

A sine transform along x takes the equation apart into one tridiagonal system along y for each wave; these are
eliminated (Hockney 1965). Half the price of a transform along both axes. On small grids the transform is a
product with matrices, one for the symmetric and one for the antisymmetric half.
"""

# mypy: disable-error-code="no-untyped-def"
# numba infers the types of the kernels

from functools import lru_cache

import numpy as np
import scipy
from jaxtyping import Float64

from problems.compiled import compiled
from problems.grid import Grid
from problems.two_point_flux import Scheme

# beyond so many cells along x the fast transform is faster than matrices
_MATRICES = 256


def solve(
    right_hand_side: Float64[np.ndarray, "y x"], grid: Grid, scheme: Scheme
) -> Float64[np.ndarray, "y x"]:
    """``L^{-1} r``."""
    ratio, nx = grid.spacing[1] / grid.spacing[0], grid.shape[1]
    if nx % 2 or nx > _MATRICES:
        kind = scheme.sine_transform
        waves = scipy.fft.dst(right_hand_side, kind, axis=1, norm="ortho")
        _eliminate(waves, _inverse_pivots(grid, scheme), ratio)
        return np.asarray(scipy.fft.idst(waves, kind, axis=1, norm="ortho", overwrite_x=True))
    sines, half = _half_sines(nx, scheme), nx // 2
    # odd waves are symmetric about the middle, even ones antisymmetric
    left, right = right_hand_side[:, :half], right_hand_side[:, : half - 1 : -1]
    waves = np.empty(grid.shape)
    np.matmul(left + right, sines[0], out=waves[:, :half])
    np.matmul(left - right, sines[1], out=waves[:, half:])
    _eliminate(waves, _sorted_inverse_pivots(grid, scheme), ratio)
    even, odd = waves[:, :half] @ sines[0].T, waves[:, half:] @ sines[1].T
    np.add(even, odd, out=waves[:, :half])
    np.subtract(even, odd, out=waves[:, : half - 1 : -1])
    return waves


@lru_cache(maxsize=16)
def _half_sines(n: int, scheme: Scheme) -> Float64[np.ndarray, "2 half half"]:
    """First halves of the orthonormal waves 1, 3, 5, ... and 2, 4, 6, ..., one a column."""
    between = n - 1 + 2 * scheme.wall_distance
    cells, waves = np.arange(n // 2) + scheme.wall_distance, np.arange(1, n + 1)
    sines = np.sin(np.pi / between * np.outer(cells, waves)) * np.sqrt(2.0 / between)
    if scheme.sine_transform == 2:
        # the last wave changes its sign from cell to cell
        sines[:, -1] *= np.sqrt(0.5)
    return np.stack([sines[:, ::2], sines[:, 1::2]])


@lru_cache(maxsize=4)
def _sorted_inverse_pivots(grid: Grid, scheme: Scheme) -> Float64[np.ndarray, "y x"]:
    """Those of the odd waves first."""
    inverse = _inverse_pivots(grid, scheme)
    return np.concatenate([inverse[:, ::2], inverse[:, 1::2]], axis=1)


def _wave(n: int, ratio: float, scheme: Scheme) -> Float64[np.ndarray, " n"]:
    """Eigenvalues of the second difference along an axis of n cells."""
    # the wave of number k vanishes on two planes that lie n - 1 + 2 wall_distance cells apart
    between = n - 1 + 2 * scheme.wall_distance
    return np.asarray(ratio * 4 * np.sin(0.5 * np.pi * np.arange(1, n + 1) / between) ** 2)


# 8 MiB each on the largest grids
@lru_cache(maxsize=4)
def _inverse_pivots(grid: Grid, scheme: Scheme) -> Float64[np.ndarray, "y x"]:
    """Inverse pivots of the elimination along y, for each wave along x."""
    (ny, nx), (hy, hx) = grid.shape, grid.spacing
    ratio, waves = hx / hy, _wave(nx, hy / hx, scheme)
    inverse = np.empty((ny, nx))
    for i in range(ny):
        faces = sum(1.0 if inside else 1.0 / scheme.wall_distance for inside in (i > 0, i < ny - 1))
        before = ratio**2 * inverse[i - 1] if i else 0.0
        inverse[i] = 1.0 / (ratio * faces + waves - before)
    return inverse


@compiled()
def _eliminate(waves, inverse, ratio):
    ny, nx = waves.shape
    for k in range(nx):
        waves[0, k] *= inverse[0, k]
    for i in range(1, ny):
        for k in range(nx):
            waves[i, k] = (waves[i, k] + ratio * waves[i - 1, k]) * inverse[i, k]
    for i in range(ny - 2, -1, -1):
        for k in range(nx):
            waves[i, k] += ratio * inverse[i, k] * waves[i + 1, k]
