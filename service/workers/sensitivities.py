"""Derivatives and quantities of discrete solutions, with guaranteed errors, row by row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from problems import STEADY_PROBLEMS, GoOn, Mean, Outflow, Quantity, Reading
from problems.quantity import Wall
from service.workers.certified import fields_of_row, of_row, start_of_row
from service.workers.outputs import outputs_of
from service.workers.worker import (
    ANY,
    COTANGENT,
    GRADIENT,
    GRADIENT_ERROR,
    QUANTITIES,
    TANGENT,
    TOLERANCE,
    Batch,
    Solutions,
)

__all__ = ["find_quantities", "pull_back", "push_forward", "quantity_of", "row_of"]

Row = Mapping[str, NDArray[Any]]

# how a quantity is written as three numbers: what kind it is, and what it is of
_MEAN, _OUTFLOW, _READING = 0.0, 1.0, 2.0
# the walls of an outflow, in the order of their bits
_WALLS: Final[tuple[Wall, ...]] = ("left", "right", "bottom", "top")


def pull_back(batch: Batch) -> Solutions:
    """``gradient.<input>`` and ``error`` of each of the cotangents [batch direction y x]."""
    return _each_row(batch, _gradients)


def _gradients(batch: Batch, row: int, go_on: GoOn) -> Row:
    problem = STEADY_PROBLEMS[batch.bucket.problem]
    cotangents = np.asarray(batch.fields[f"{COTANGENT}{problem.outputs[0].name}"][row], np.float64)
    found = problem.adjoint(
        fields_of_row(batch, row),
        cotangents,
        batch.bucket.grid,
        scheme=batch.bucket.scheme,
        start=start_of_row(batch, row),
        tolerance=_tolerance(batch, row),
        go_on=go_on,
    )
    return {f"{GRADIENT}{name}": values for name, values in found.fields.items()} | {
        GRADIENT_ERROR: found.error
    }


def push_forward(batch: Batch) -> Solutions:
    """``tangent.<output>`` and ``error``, the relative one, of each of the tangents [batch direction y x]."""
    return _each_row(batch, _tangents)


def _tangents(batch: Batch, row: int, go_on: GoOn) -> Row:
    found = STEADY_PROBLEMS[batch.bucket.problem].tangent(
        fields_of_row(batch, row),
        {
            name.removeprefix(TANGENT): np.asarray(values[row], np.float64)
            for name, values in batch.fields.items()
            if name.startswith(TANGENT)
        },
        batch.bucket.grid,
        scheme=batch.bucket.scheme,
        start=start_of_row(batch, row),
        tolerance=_tolerance(batch, row),
        go_on=go_on,
    )
    return {f"{TANGENT}{name}": values for name, values in found.fields.items()} | {
        GRADIENT_ERROR: found.relative_error
    }


def find_quantities(batch: Batch) -> Solutions:
    """Value and guaranteed half-width of each of the ``quantities`` [batch quantity 3]; see ``row_of``."""
    return _each_row(batch, _quantities)


def _quantities(batch: Batch, row: int, go_on: GoOn) -> Row:
    wanted = [quantity_of(numbers) for numbers in batch.fields[QUANTITIES][row]]
    found = STEADY_PROBLEMS[batch.bucket.problem].quantities(
        fields_of_row(batch, row),
        wanted,
        batch.bucket.grid,
        scheme=batch.bucket.scheme,
        start=start_of_row(batch, row),
        tolerance=_tolerance(batch, row),
        go_on=go_on,
    )
    return {QUANTITIES: np.array([(each.value, each.half_width) for each in found])}


def row_of(quantity: Quantity) -> tuple[float, float, float]:
    """A quantity as three numbers, as it travels to the process that computes it."""
    match quantity:
        case Mean():
            return _MEAN, 0.0, 0.0
        case Outflow(walls):
            return _OUTFLOW, float(sum(1 << _WALLS.index(wall) for wall in set(walls))), 0.0
        case Reading(y, x):
            return _READING, y, x


def quantity_of(numbers: NDArray[Any]) -> Quantity:
    """What :func:`row_of` made three numbers of."""
    kind, first, second = map(float, numbers)
    if kind == _MEAN:
        return Mean()
    if kind == _OUTFLOW:
        return Outflow(tuple(wall for bit, wall in enumerate(_WALLS) if int(first) >> bit & 1))
    return Reading(first, second)


def _each_row(batch: Batch, compute: Callable[[Batch, int, GoOn], Row]) -> Solutions:
    """What ``compute`` gives for each row; one that it cannot be had for, or that is late, is told apart."""
    layout = outputs_of(batch.bucket)
    found = {name: np.full((batch.rows, *shape), np.nan, dtype) for name, (shape, dtype) in layout.items()}
    unsolved = {}
    for row in range(batch.rows):
        numbers = of_row(batch, row, compute)
        if isinstance(numbers, str):
            unsolved[row] = numbers
            continue
        for name, values in found.items():
            values[row] = numbers[name]
    return Solutions(found, (0,) * batch.rows, unsolved)


def _tolerance(batch: Batch, row: int) -> float | None:
    wanted = float(batch.fields[TOLERANCE][row])
    return None if wanted == ANY else wanted
