"""Coefficient fields, answers of every quality, and the truth about them from outside ``problems``."""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import numpy as np
import scipy.sparse.linalg
from numpy.typing import NDArray

from problems import STEADY_PROBLEMS, Grid

Array = NDArray[np.float64]
Generator = np.random.Generator


def _sampled(family: str, **parameters: float) -> Callable[[int, Grid], Array]:
    def sample(index: int, grid: Grid) -> Array:
        fields = STEADY_PROBLEMS["darcy"].sample(family, parameters, 71, index, grid)
        return np.asarray(fields["permeability"])

    return sample


def _channels(contrast: float) -> Callable[[int, Grid], Array]:
    """Two to four winding channels of high permeability."""

    def sample(index: int, grid: Grid) -> Array:
        rng, (y, x) = np.random.default_rng((72, index)), grid.coordinates()
        inside = np.zeros(grid.shape, bool)
        for _ in range(rng.integers(2, 5)):
            center = rng.random() + 0.1 * np.sin(2 * np.pi * (rng.integers(1, 4) * x + rng.random()))
            inside |= np.abs(y[:, None] - center) < 0.03 + 0.03 * rng.random()
        field = np.where(inside, 1.0, 1.0 / contrast)
        return field.T.copy() if index % 2 else field

    return sample


def _noise(contrast: float) -> Callable[[int, Grid], Array]:
    """Two values, drawn for each cell by itself."""

    def sample(index: int, grid: Grid) -> Array:
        return np.where(np.random.default_rng((73, index)).random(grid.shape) < 0.5, 1.0, 1.0 / contrast)

    return sample


FAMILIES: Mapping[str, Callable[[int, Grid], Array]] = MappingProxyType(
    {
        "pdebench": _sampled("pdebench"),
        "thresholded 1e1": _sampled("thresholded", correlation_length=0.1, contrast=1e1),
        "thresholded 1e2": _sampled("thresholded", correlation_length=0.1, contrast=1e2),
        "thresholded 1e4": _sampled("thresholded", correlation_length=0.1, contrast=1e4),
        "log-normal 1e2": _sampled("log_normal", correlation_length=0.1, contrast=1e2),
        "log-normal 1e4": _sampled("log_normal", correlation_length=0.1, contrast=1e4),
        "log-normal 1e6": _sampled("log_normal", correlation_length=0.1, contrast=1e6),
        "channels 1e2": _channels(1e2),
        "channels 1e4": _channels(1e4),
        "noise 1e1": _noise(1e1),
    }
)


def _waves(rng: Generator, shape: tuple[int, int], decay: float, highest: int) -> Array:
    """A sum of sines whose amplitude falls as a power of the wave number."""
    y, x = (np.pi * (np.arange(n) + 0.5) / n for n in shape)
    waves = np.arange(1, highest + 1)
    amplitude = np.hypot.outer(waves, waves) ** -decay
    coefficients = amplitude * rng.standard_normal(amplitude.shape)
    return np.asarray(np.sin(np.outer(y, waves)) @ coefficients @ np.sin(np.outer(waves, x)))


def answers(exact: Array, other: Array, rng: Generator) -> Iterator[tuple[str, Array]]:
    """What a surrogate may return, from good to absurd; ``other`` solves another field."""
    size, shape = float(np.abs(exact).mean()), (exact.shape[0], exact.shape[1])

    def off(pattern: Array) -> Array:
        level = 10 ** rng.uniform(-4, -0.5)
        return np.asarray(exact + level * size * pattern / np.sqrt(np.mean(pattern**2)))

    yield "smooth", off(_waves(rng, shape, 1.0, 4))
    yield "rough", off(rng.standard_normal(shape))
    patches = np.kron(rng.standard_normal((shape[0] // 4, shape[1] // 4)), np.ones((4, 4)))
    yield "patchy", off(np.asarray(patches, np.float64))
    yield "neural", off(_waves(rng, shape, 1.5, shape[0] // 2))
    yield "scaled", exact * (1 + 10 ** rng.uniform(-4, 0))
    yield "zero", np.zeros_like(exact)
    yield "inverted", -exact
    yield "another's", other


class Truth:
    """The exact discrete solution of ``tpfa-harmonic-v1``, assembled and solved here."""

    def __init__(self, permeability: Array) -> None:
        ny, nx = permeability.shape
        half = 0.5 / permeability
        across_x, across_y = 1 / (half[:, 1:] + half[:, :-1]), 1 / (half[1:] + half[:-1])
        # f = 1 on the unit square; cells are square in ratio ny / nx
        across_x, across_y = across_x * nx / ny, across_y * ny / nx
        wall_x, wall_y = 2 * permeability * nx / ny, 2 * permeability * ny / nx
        diagonal = np.zeros((ny, nx))
        diagonal[:, 1:] += across_x
        diagonal[:, :-1] += across_x
        diagonal[1:] += across_y
        diagonal[:-1] += across_y
        diagonal[:, [0, -1]] += wall_x[:, [0, -1]]
        diagonal[[0, -1]] += wall_y[[0, -1]]
        along = np.zeros((ny, nx))
        along[:, :-1] = -across_x
        bands = [
            diagonal.ravel(),
            along.ravel()[:-1],
            along.ravel()[:-1],
            -across_y.ravel(),
            -across_y.ravel(),
        ]
        self._matrix = scipy.sparse.diags_array(bands, offsets=[0, 1, -1, nx, -nx], format="csc")
        right_hand_side = np.full(ny * nx, 1.0 / (ny * nx))
        factor = scipy.sparse.linalg.splu(self._matrix)
        found = factor.solve(right_hand_side)
        found += factor.solve(right_hand_side - self._matrix @ found)
        self.exact = found.reshape(ny, nx)
        self._size = self.energy(self.exact)

    def errors(self, answer: Array) -> tuple[float, float, float]:
        """Relative errors in energy, in L2, and at most."""
        off, exact = answer - self.exact, self.exact
        return (
            self.energy(off) / self._size,
            float(np.linalg.norm(off) / np.linalg.norm(exact)),
            float(np.abs(off).max() / np.abs(exact).max()),
        )

    def energy(self, v: Array) -> float:
        """``||v||_A``."""
        return float(np.sqrt(v.ravel() @ (self._matrix @ v.ravel())))
