"""The trust blocks of an answer: an error bound and an in-distribution flag for each sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from problems import STEADY_PROBLEMS, ErrorBound, Grid, Variation, variation

__all__ = ["error_bounds", "in_hull"]

# unit roundoff: what turning a float64 into the nearest float32 may change, relatively
FLOAT32_ROUNDING = 2.0**-24
# a contrast of 10 stays one after both ends were rounded to float32
HULL_SLACK = 1e-6


def error_bounds(
    problem: str,
    scheme: str,
    grid: Grid,
    fields: Mapping[str, NDArray[Any]],
    answers: Mapping[str, NDArray[Any]],
) -> tuple[ErrorBound, ...]:
    """A guaranteed bound for each sample, for the very numbers in ``answers`` that leave the service."""
    leaves_as_float32 = any(answer.dtype == np.float32 for answer in answers.values())
    return tuple(
        STEADY_PROBLEMS[problem].error_bound(
            _row(fields, row),
            _row(answers, row),
            grid,
            scheme=scheme,
            rounding=FLOAT32_ROUNDING if leaves_as_float32 else 0.0,
        )
        for row in range(len(next(iter(answers.values()))))
    )


def _row(fields: Mapping[str, NDArray[Any]], row: int) -> dict[str, NDArray[np.float64]]:
    return {name: np.asarray(values[row], dtype=np.float64) for name, values in fields.items()}


def in_hull(hull: Mapping[str, float], coefficients: Sequence[NDArray[Any]]) -> tuple[bool, ...]:
    """Whether each coefficient varies as those do that the version was trained on.

    A version without a range of contrasts in its hull vouches for nothing. One whose hull lacks ``jump_max``
    or ``roughness_max``, as older cards do, vouches for what it names and no more: those are not compared.
    """
    return tuple(_within(hull, variation(coefficient)) for coefficient in coefficients)


def _within(hull: Mapping[str, float], found: Variation) -> bool:
    low, high = 1 - HULL_SLACK, 1 + HULL_SLACK
    return (
        hull.get("contrast_min", math.inf) * low <= found.contrast
        and found.contrast <= hull.get("contrast_max", -math.inf) * high
        and found.jump <= hull.get("jump_max", math.inf) * high
        and found.roughness <= hull.get("roughness_max", math.inf) * high
    )
