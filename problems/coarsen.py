"""Cell averages on a coarser grid."""

import numpy as np
from jaxtyping import Float64

from problems.fields import Fields


def coarsen(fields: Fields, shape: tuple[int, int]) -> dict[str, Float64[np.ndarray, "... y x"]]:
    """Average conserved fields [... y x] down to ``shape`` (ny, nx).

    Raises:
        ValueError: the cells of the coarse grid are not whole blocks of the fine one's.
    """
    return {name: _average(np.asarray(field), shape) for name, field in fields.items()}


def _average(field: Float64[np.ndarray, "... y x"], shape: tuple[int, int]) -> Float64[np.ndarray, "... Y X"]:
    (*leading, fine_y, fine_x), (ny, nx) = field.shape, shape
    if fine_y % ny or fine_x % nx:
        raise ValueError(
            f"a grid of {fine_y} x {fine_x} cells cannot be averaged down to {ny} x {nx}: "
            "each side must divide the finer one"
        )
    blocks = field.reshape(*leading, ny, fine_y // ny, nx, fine_x // nx)
    return np.asarray(blocks.mean(axis=(-3, -1)))
