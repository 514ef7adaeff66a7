"""Depths of shallow water that is dammed up in discs, averaged over the cells of a grid."""

from __future__ import annotations

import math
from typing import NamedTuple, final

import numpy as np
from jaxtyping import Float64

from problems.compiled import compiled
from problems.grid import Grid

SHORTER_SIDE = 5.0
"""Shorter side [m] of the domain whose lengths the families speak of."""

# lines across a disc by which its area is integrated; along a line it is exact
_LINES = 4096


@final
class Discs(NamedTuple):
    """What discs are drawn from.

    Attributes:
        least: smallest number of discs.
        most: largest number of discs.
        radii: bounds of the radii [m], on a domain whose shorter side is 5 m.
        depths: bounds of the depths [m] of the discs.
        rest: depth [m] of the water around.
    """

    least: int = 1
    most: int = 4
    radii: tuple[float, float] = (0.2, 0.9)
    depths: tuple[float, float] = (1.1, 3.0)
    rest: float = 1.0

    def draw(self, rng: np.random.Generator, grid: Grid) -> Float64[np.ndarray, "y x"]:
        """Depth [m] of discs of still water; the deeper one where they overlap."""
        number, (center_y, center_x) = places(rng, grid, self.least, self.most)
        radius = rng.uniform(*self.radii, self.most) * min(grid.extent) / SHORTER_SIDE
        depth = rng.uniform(*self.depths, self.most)
        # deeper ones later: a disc covers those before it
        order = np.argsort(depth[:number])
        lines = math.ceil(_LINES / grid.shape[0])
        edges_x = grid.origin[1] + np.arange(grid.shape[1] + 1) * grid.spacing[1]
        averages = np.empty(grid.shape)
        _integrate_discs(
            center_y[order], center_x[order], radius[order], depth[order] - self.rest,
            edges_x, grid.origin[0], grid.spacing[0], lines, averages,
        )  # fmt: skip
        return np.asarray(self.rest + averages)


def places(
    rng: np.random.Generator, grid: Grid, least: int, most: int
) -> tuple[int, Float64[np.ndarray, "two n"]]:
    """How many discs or bumps, and ``most`` centers (y, x) [m], of which the first ones count."""
    number = int(rng.integers(least, most + 1))
    centers = rng.random((most, 2)) * np.array(grid.extent) + np.array(grid.origin)
    return number, np.asarray(centers.T)


@compiled()
def _integrate_discs(  # type: ignore[no-untyped-def]
    center_y, center_x, radius, height, edges_x, bottom, hy, lines, averages
):
    """Averages of the height of the last disc that covers a point, 0 where none does."""
    number = center_y.size
    low, high = np.empty(number), np.empty(number)
    breaks = np.empty(2 * number)
    hx = edges_x[1] - edges_x[0]
    for j in range(averages.shape[0]):
        averages[j] = 0.0
        for line in range(lines):
            y = bottom + (j + (line + 0.5) / lines) * hy
            for k in range(number):
                half = math.sqrt(max(radius[k] ** 2 - (y - center_y[k]) ** 2, 0.0))
                low[k] = max(center_x[k] - half, edges_x[0])
                high[k] = max(min(center_x[k] + half, edges_x[-1]), low[k])
                breaks[2 * k], breaks[2 * k + 1] = low[k], high[k]
            breaks.sort()
            for s in range(2 * number - 1):
                left, right = breaks[s], breaks[s + 1]
                middle, top = 0.5 * (left + right), 0.0
                for k in range(number):
                    if low[k] < middle < high[k]:
                        top = height[k]
                if top == 0.0:
                    continue
                i = min(max(int((left - edges_x[0]) / hx) - 1, 0), averages.shape[1] - 1)
                while i < averages.shape[1] and edges_x[i] < right:
                    covered = min(right, edges_x[i + 1]) - max(left, edges_x[i])
                    averages[j, i] += top * max(covered, 0.0) / (hx * lines)
                    i += 1
