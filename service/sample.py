"""The plainest inputs of a problem: what a computation is tried out with before anybody asks for it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from problems import Problem

__all__ = ["batch_sizes", "sample"]


def batch_sizes(most: int) -> tuple[int, ...]:
    """Numbers of rows that are tried out: 1, 2, 4, ... and ``most``."""
    return (*(1 << power for power in range((most - 1).bit_length())), most)


def sample(
    problem: Problem, grid: tuple[int, int], dtype: DTypeLike, rows: int = 1
) -> dict[str, NDArray[Any]]:
    """Constant fields [batch y x] and parameters [batch]: 1 where they have to be positive, else 0."""
    fields = {
        spec.name: np.full((rows, *grid), 1.0 if spec.exclusive_minimum == 0 else 0.0, dtype)
        for spec in problem.inputs
    }
    return fields | {spec.name: np.ones(rows, dtype) for spec in problem.parameters}
