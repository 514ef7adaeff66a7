"""How large an error field [... y x] is, in float64, by the measures of PDEBench (Takamoto et al. 2022).

Each measure takes the two last axes and leaves the others, so that steady and evolution problems share it.
"""

from functools import cache

import numpy as np
import scipy.fft
from jaxtyping import Float, Float64
from numpy.typing import NDArray

Field = Float[np.ndarray, "... y x"]
# band -> first shell, and the first one that is not in it; the last band goes up to the highest shell
BANDS = {"low": (0, 4), "mid": (4, 12), "high": (12, None)}


def root_mean_square(field: Field) -> Float64[np.ndarray, "..."]:
    """``sqrt(mean f^2)``."""
    return np.asarray(np.sqrt(np.mean(np.square(field, dtype=np.float64), axis=(-2, -1))))


def largest(field: Field) -> Float64[np.ndarray, "..."]:
    """``max |f|``."""
    return np.asarray(np.abs(field).max(axis=(-2, -1)), np.float64)


def mean_size(field: Field) -> Float64[np.ndarray, "..."]:
    """``|mean f|``: of an error, what the field's integral is wrong by, per area."""
    return np.asarray(np.abs(np.mean(field, axis=(-2, -1), dtype=np.float64)))


def edge_root_mean_square(field: Field) -> Float64[np.ndarray, "..."]:
    """``sqrt(sum of f^2 over the four lines of cells at the walls / (2 nx + 2 ny))``; corners count twice."""
    ny, nx = field.shape[-2:]
    lines = (field[..., 0, :], field[..., -1, :], field[..., :, 0], field[..., :, -1])
    squares = sum(np.square(line, dtype=np.float64).sum(axis=-1) for line in lines)
    return np.asarray(np.sqrt(squares / (2 * nx + 2 * ny)))


def shell_power(field: Field) -> Float64[np.ndarray, "... shell"]:
    """Squared Fourier coefficients over (ny nx)^2, summed within shells ``floor(sqrt(i^2 + j^2))``.

    As in PDEBench: of the modes (i, j) only the quadrant ``0 <= i < ny/2, 0 <= j < nx/2`` counts, and shells
    beyond ``min(ny, nx)/2`` are left out.
    """
    ny, nx = field.shape[-2:]
    modes = scipy.fft.rfft2(np.asarray(field, np.float64))[..., : ny // 2, : nx // 2]
    power = (modes.real**2 + modes.imag**2).reshape(*modes.shape[:-2], -1)
    return np.asarray(power @ _membership(ny // 2, nx // 2) / (ny * nx) ** 2)


def band_root_mean_squares(field: Field) -> dict[str, Float64[np.ndarray, "..."]]:
    """PDEBench's fRMSE: the square root of each shell's power, averaged over the shells of each band."""
    return band_means(np.sqrt(shell_power(field)))


def band_means(amplitude: Float64[np.ndarray, "... shell"]) -> dict[str, Float64[np.ndarray, "..."]]:
    """Averages over the shells of each band; 0 where the grid is too coarse to have any."""
    found = {}
    for band, (first, end) in BANDS.items():
        shells = amplitude[..., first:end]
        found[band] = np.asarray(shells.sum(axis=-1) / max(shells.shape[-1], 1))
    return found


@cache
def _membership(rows: int, columns: int) -> NDArray[np.float64]:
    """1 where a mode (row-major) belongs to a shell [mode shell]."""
    i, j = np.mgrid[:rows, :columns]
    shell = np.floor(np.hypot(i, j)).astype(int).ravel()
    return np.asarray(shell[:, None] == np.arange(min(rows, columns)), np.float64)
