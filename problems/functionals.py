"""The quantities of interest of ``quantity`` as linear functionals of the cell values."""

import math

import numpy as np
from jaxtyping import Float64

from problems.grid import Grid
from problems.quantity import Mean, Outflow, Quantity, Reading
from problems.two_point_flux import Faces, Scheme


def functional(quantity: Quantity, faces: Faces, grid: Grid, scheme: Scheme) -> Float64[np.ndarray, "y x"]:
    """J with ``quantity = sum j u``; what flows out through a wall is the flux through its faces.

    Raises:
        ValueError: the quantity is of a point outside the grid.
    """
    match quantity:
        case Mean():
            return np.full(grid.shape, 1.0 / (grid.shape[0] * grid.shape[1]))
        case Outflow(walls=walls):
            return _outflow(walls, faces, grid)
        case Reading(y=y, x=x):
            return np.outer(_interpolation(y, 0, grid, scheme), _interpolation(x, 1, grid, scheme))


def _outflow(walls: tuple[str, ...], faces: Faces, grid: Grid) -> Float64[np.ndarray, "y x"]:
    weights = np.zeros(grid.shape)
    for wall in walls:
        match wall:
            case "left":
                weights[:, 0] += faces.x[:, 0]
            case "right":
                weights[:, -1] += faces.x[:, -1]
            case "bottom":
                weights[0] += faces.y[0]
            case _:
                weights[-1] += faces.y[-1]
    return weights


def _interpolation(coordinate: float, axis: int, grid: Grid, scheme: Scheme) -> Float64[np.ndarray, " n"]:
    """Weights of the cells along an axis: linear between centers, and to 0 where the scheme has it."""
    n, first, side = grid.shape[axis], grid.origin[axis], grid.extent[axis]
    if not first <= coordinate <= first + side:
        name = "yx"[axis]
        raise ValueError(
            f"a reading lies on the grid, {name} between {first:g} and {first + side:g} m, got {name} = "
            f"{coordinate:g} m"
        )
    place = (coordinate - first) / grid.spacing[axis] - 0.5
    weights, before = np.zeros(n), math.floor(place)
    if before < 0:
        weights[0] = 1.0 + place / scheme.wall_distance
    elif before >= n - 1:
        weights[-1] = 1.0 - (place - (n - 1)) / scheme.wall_distance
    else:
        weights[before], weights[before + 1] = before + 1 - place, place - before
    return weights
