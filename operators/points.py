"""Where the tokens of a neural operator lie."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from operators.per_grid import per_grid


class Points(NamedTuple):
    """The cell centers of a grid, row by row: token ``row * W + column`` is the cell (row, column).

    Attributes:
        coordinates: (y, x), measured from the center of the domain.
        grid: cells (H, W).
        spacing: (hy, hx), in the unit of the coordinates.
    """

    coordinates: Float[Tensor, "token 2"]
    grid: tuple[int, int]
    spacing: tuple[float, float]


def grid_points(grid: tuple[int, int], spacing: tuple[float, float], like: Tensor) -> Points:
    """The points of a grid, with coordinates of the device and dtype of ``like``."""
    return Points(_coordinates(*grid, *spacing, like.dtype, like.device), grid, spacing)


@per_grid
def _coordinates(
    ny: int, nx: int, hy: float, hx: float, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "token 2"]:
    y, x = (
        (torch.arange(cells, device=device, dtype=dtype) - (cells - 1) / 2) * step
        for cells, step in ((ny, hy), (nx, hx))
    )
    return torch.stack([y[:, None].expand(ny, nx), x.expand(ny, nx)], dim=-1).reshape(ny * nx, 2)
