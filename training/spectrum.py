"""The power spectrum of fields with walls, averaged over directions."""

from dataclasses import dataclass
from typing import Self, final

import numpy as np
import scipy.fft
from jaxtyping import Float, Float64
from numpy.typing import NDArray

from problems import Grid


@final
@dataclass(frozen=True)
class RadialSpectrum:
    """Averages the squared cosine coefficients of fields on one grid over rings of equal wavenumber.

    Cosines (the field continued evenly beyond its walls) make no jump where the domain ends, as the Fourier
    modes of a field that is not periodic would.

    Attributes:
        wavenumber: mean wavenumber of each ring, in cycles per length [1/m].
    """

    wavenumber: Float64[np.ndarray, " ring"]
    _weights: Float64[np.ndarray, "mode ring"]

    @classmethod
    def on(cls, grid: Grid) -> Self:
        """Rings as wide as the lowest wavenumber; the mean of the field and the corners are left out."""
        (ny, nx), (ly, lx) = grid.shape, grid.extent
        # cosine number i has i half-waves
        wavenumber = np.hypot(np.arange(ny)[:, None] / (2 * ly), np.arange(nx) / (2 * lx)).ravel()
        lowest = 1.0 / (2 * max(ly, lx))
        count = int(min(ny / ly, nx / lx) / 2 / lowest + 0.5) - 1
        ring = np.rint(wavenumber / lowest).astype(int)
        weights = np.asarray(ring[:, None] == 1 + np.arange(count), np.float64)
        weights /= weights.sum(axis=0)
        return cls(wavenumber @ weights, weights)

    def __call__(self, field: Float[np.ndarray, "... y x"]) -> Float64[np.ndarray, "... ring"]:
        """Mean power of a mode in each ring; all modes together have the power ``mean f^2``."""
        coefficients: NDArray[np.float64] = scipy.fft.dctn(
            np.asarray(field, np.float64), axes=(-2, -1), norm="ortho"
        )
        power = coefficients**2 / (field.shape[-2] * field.shape[-1])
        return np.asarray(power.reshape(*power.shape[:-2], -1) @ self._weights)
