"""A uniform, cell-centred grid on a rectangle."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64


@dataclass(frozen=True)
class Grid:
    """``ny`` by ``nx`` equal cells on a rectangle.

    Attributes:
        shape: number of cells (ny, nx).
        extent: side lengths (Ly, Lx) [m].
        origin: the corner (y, x) with the smallest coordinates [m].
    """

    shape: tuple[int, int]
    extent: tuple[float, float] = (1.0, 1.0)
    origin: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if len(self.shape) != 2 or min(self.shape) < 1:
            raise ValueError(f"a grid has two positive numbers of cells (ny, nx), got {self.shape}")
        if len(self.extent) != 2 or not all(math.isfinite(side) and side > 0 for side in self.extent):
            raise ValueError(f"a grid has two positive side lengths (Ly, Lx) [m], got {self.extent}")

    @property
    def spacing(self) -> tuple[float, float]:
        """Cell sizes (hy, hx) [m]."""
        return self.extent[0] / self.shape[0], self.extent[1] / self.shape[1]

    @property
    def cell_area(self) -> float:
        """Area of a cell [m^2]."""
        return self.spacing[0] * self.spacing[1]

    def coordinates(self) -> tuple[Float64[np.ndarray, " y"], Float64[np.ndarray, " x"]]:
        """Cell centres (y, x) [m]."""
        (ny, nx), (hy, hx), (y, x) = self.shape, self.spacing, self.origin
        return y + (np.arange(ny) + 0.5) * hy, x + (np.arange(nx) + 0.5) * hx
