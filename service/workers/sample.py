"""The plainest inputs of a problem: what a computation is tried out with before anybody asks for it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from problems import EVOLUTION_PROBLEMS, Grid, Problem
from service.versions.served import ServedVersion
from service.workers.worker import Bucket

__all__ = ["Cost", "batch_sizes", "plain_bucket", "sample"]

# (ny, nx, rows, seconds): how long a batch took
Cost = tuple[int, int, int, float]


def batch_sizes(most: int) -> tuple[int, ...]:
    """Numbers of rows that are tried out: 1, 2, 4, ... and ``most``."""
    return (*(1 << power for power in range((most - 1).bit_length())), most)


def plain_bucket(version: ServedVersion, grid: tuple[int, int]) -> Bucket:
    """What most requests to a version ask for."""
    evolution = EVOLUTION_PROBLEMS.get(version.problem)
    if evolution is None:
        where, walls = Grid(grid, version.extent), None
    else:
        where = Grid(grid, version.extent, evolution.grid.origin)
        walls = version.walls or evolution.walls[0]
    return Bucket(
        problem=version.problem,
        version=version.reference,
        scheme=version.scheme,
        grid=where,
        dtype="float32",
        walls=walls,
        task="advance" if evolution else "solve",
        frames=version.frames or 1,
    )


def sample(
    problem: Problem, grid: tuple[int, int], dtype: DTypeLike, rows: int = 1
) -> dict[str, NDArray[Any]]:
    """Constant fields [batch y x] and parameters [batch]: 1 where they have to be positive, else 0."""
    fields = {
        spec.name: np.full((rows, *grid), 1.0 if spec.exclusive_minimum == 0 else 0.0, dtype)
        for spec in problem.inputs
    }
    return fields | {spec.name: np.ones(rows, dtype) for spec in problem.parameters}
