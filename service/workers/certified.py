"""Answers within a tolerance, and certificates of answers, row by row, by the problem's own solver."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from problems import (
    STEADY_PROBLEMS,
    Abandoned,
    CannotSolve,
    ErrorBound,
    Fields,
    GoOn,
    Refined,
    Variation,
    variation,
)
from service.workers.worker import (
    ANSWER,
    AS_THE_GRID_RESOLVES,
    CERTIFIED_FIELDS,
    DEADLINE,
    TOLERANCE,
    Batch,
    Solutions,
)

__all__ = [
    "FLOAT32_ROUNDING",
    "TOO_LATE",
    "certify_answers",
    "fields_of_row",
    "of_row",
    "refine_answers",
    "start_of_row",
]

Found = TypeVar("Found")

# unit roundoff: what turning a float64 into the nearest float32 may change, relatively
FLOAT32_ROUNDING: Final = 2.0**-24
# why a row was not begun, or given up
TOO_LATE: Final = "its deadline passed before it was computed; allow more time"


def fields_of_row(batch: Batch, row: int) -> Fields:
    """The inputs and parameters of a sample, in float64."""
    problem = STEADY_PROBLEMS[batch.bucket.problem]
    return {
        spec.name: np.asarray(batch.fields[spec.name][row], np.float64)
        for spec in (*problem.inputs, *problem.parameters)
    }


def start_of_row(batch: Batch, row: int) -> Fields | None:
    """The answer that came with a sample, in float64; None: none came."""
    found = {
        name.removeprefix(ANSWER): np.asarray(values[row], np.float64)
        for name, values in batch.fields.items()
        if name.startswith(ANSWER)
    }
    return found or None


def of_row(batch: Batch, row: int, compute: Callable[[Batch, int, GoOn], Found]) -> Found | str:
    """What ``compute`` gives for a row; or why it cannot be had in float64, or is not waited for any more."""
    deadline = float(batch.fields[DEADLINE][row]) if DEADLINE in batch.fields else math.inf

    def go_on() -> bool:
        return time.perf_counter() < deadline

    if not go_on():
        return TOO_LATE
    try:
        # what overflows shows in the bound
        with np.errstate(over="ignore", invalid="ignore"):
            return compute(batch, row, go_on)
    except Abandoned:
        return TOO_LATE
    except CannotSolve as error:
        return str(error)


def refine_answers(batch: Batch) -> Solutions:
    """Solutions that meet the tolerance of each row, begun at ``answer.<output>`` where that is there.

    Rows that cannot be had in float64, or whose deadline has passed, are told apart.
    """
    shape = (batch.rows, *batch.bucket.grid.shape)
    outputs = {spec.name: np.full(shape, np.nan) for spec in STEADY_PROBLEMS[batch.bucket.problem].outputs}
    found = {name: np.full(batch.rows, np.nan) for name in CERTIFIED_FIELDS}
    iterations, unsolved = [0] * batch.rows, {}
    for row in range(batch.rows):
        refined = of_row(batch, row, _refined)
        if isinstance(refined, str):
            unsolved[row] = refined
            continue
        iterations[row] = refined.iterations
        for name, values in outputs.items():
            values[row] = refined.fields[name]
        _note(found, row, refined.bound, _variation(batch, row))
    return Solutions({**outputs, **found}, tuple(iterations), unsolved)


def _refined(batch: Batch, row: int, go_on: GoOn) -> Refined:
    bucket, wanted = batch.bucket, float(batch.fields[TOLERANCE][row])
    return STEADY_PROBLEMS[bucket.problem].refine(
        fields_of_row(batch, row),
        start_of_row(batch, row),
        bucket.grid,
        scheme=bucket.scheme,
        tolerance="discretization" if wanted == AS_THE_GRID_RESOLVES else wanted,
        go_on=go_on,
    )


def certify_answers(batch: Batch) -> Solutions:
    """``CERTIFIED_FIELDS`` of each row, for the very numbers in the fields ``answer.<output>``.

    Rows that cannot be had in float64, or whose deadline has passed, are told apart.
    """
    found = {name: np.full(batch.rows, np.nan) for name in CERTIFIED_FIELDS}
    unsolved = {}
    for row in range(batch.rows):
        bound = of_row(batch, row, _certified)
        if isinstance(bound, str):
            unsolved[row] = bound
            continue
        _note(found, row, bound, _variation(batch, row))
    return Solutions(found, (0,) * batch.rows, unsolved)


def _certified(batch: Batch, row: int, go_on: GoOn) -> ErrorBound:
    bucket = batch.bucket
    answers = [values for name, values in batch.fields.items() if name.startswith(ANSWER)]
    leaves_as_float32 = any(answer.dtype == np.float32 for answer in answers)
    return STEADY_PROBLEMS[bucket.problem].certify(
        fields_of_row(batch, row),
        start_of_row(batch, row) or {},
        bucket.grid,
        scheme=bucket.scheme,
        rounding=FLOAT32_ROUNDING if leaves_as_float32 else 0.0,
        go_on=go_on,
    )


def _variation(batch: Batch, row: int) -> Variation:
    coefficient = batch.fields[STEADY_PROBLEMS[batch.bucket.problem].inputs[0].name]
    return variation(np.asarray(coefficient[row], np.float64))


def _note(found: Mapping[str, NDArray[Any]], row: int, bound: ErrorBound, varies: Variation) -> None:
    numbers = {**vars(bound), **vars(varies)}
    for name, values in found.items():
        values[row] = numbers[name]
