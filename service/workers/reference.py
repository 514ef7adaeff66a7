"""What the problems compute by themselves, without a model: solutions, steps in time, bounds of errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from problems import (
    EVOLUTION_PROBLEMS,
    STEADY_PROBLEMS,
    CannotSolve,
    ErrorBound,
    Fields,
    InvalidField,
    Solution,
    variation,
)
from service.workers.certified import FLOAT32_ROUNDING, certify_answers, refine_answers
from service.workers.sensitivities import find_quantities, pull_back, push_forward
from service.workers.worker import ANSWER, BOUND_FIELDS, STEP, Batch, Bucket, Compute, Solutions, Task

__all__ = ["REFERENCE_TOLERANCE", "advance_reference", "bound_errors", "solve_reference"]

# relative residual asked of the reference solver; what it reached, at high contrast, the error bound says
REFERENCE_TOLERANCE: Final = 1e-10


def solve_reference(batch: Batch) -> Solutions:
    """What the problem's reference solver finds for each row, in float64; what it cannot, is told apart."""
    return _OF_TASK[batch.bucket.task](batch)


def _solve(batch: Batch) -> Solutions:
    shape = (batch.rows, *batch.bucket.grid.shape)
    outputs = {spec.name: np.full(shape, np.nan) for spec in STEADY_PROBLEMS[batch.bucket.problem].outputs}
    iterations, unsolved = [0] * batch.rows, {}
    for row in range(batch.rows):
        try:
            solution = _solve_row(batch, row)
        except CannotSolve as error:
            unsolved[row] = str(error)
            continue
        iterations[row] = solution.iterations
        for name, values in outputs.items():
            values[row] = solution.fields[name]
    return Solutions(outputs, tuple(iterations), unsolved)


def _solve_row(batch: Batch, row: int) -> Solution:
    return STEADY_PROBLEMS[batch.bucket.problem].solve(
        {name: values[row] for name, values in batch.fields.items()},
        batch.bucket.grid,
        scheme=batch.bucket.scheme,
        tolerance=REFERENCE_TOLERANCE,
    )


def advance_reference(batch: Batch) -> Solutions:
    """The next frame of each row by the problem's reference solver, in float64."""
    shape = (batch.rows, 1, *batch.bucket.grid.shape)
    outputs = {spec.name: np.full(shape, np.nan) for spec in EVOLUTION_PROBLEMS[batch.bucket.problem].outputs}
    unsolved = {}
    for row in range(batch.rows):
        try:
            state = _next_state(batch, row)
        except (CannotSolve, InvalidField) as error:
            unsolved[row] = str(error)
            continue
        for name, values in outputs.items():
            values[row, 0] = state[name]
    return Solutions(outputs, (0,) * batch.rows, unsolved)


def _next_state(batch: Batch, row: int) -> Fields:
    state = {name: values[row] for name, values in batch.fields.items()}
    start = int(state.pop(STEP))
    bucket = batch.bucket
    problem = EVOLUTION_PROBLEMS[bucket.problem]
    return next(problem.frames(state, bucket.grid, scheme=bucket.scheme, walls=bucket.walls, start=start))


def bound_errors(batch: Batch) -> Solutions:
    """``BOUND_FIELDS`` of each row, for the very numbers in the fields ``answer.<output>``.

    Without such fields there is no bound (NaN), only how the coefficient varies.
    """
    inputs = {name: values for name, values in batch.fields.items() if not name.startswith(ANSWER)}
    answers = {name: values for name, values in batch.fields.items() if name.startswith(ANSWER)}
    coefficient = inputs[STEADY_PROBLEMS[batch.bucket.problem].inputs[0].name]
    found = {name: np.full(batch.rows, np.nan) for name in BOUND_FIELDS}
    for row in range(batch.rows):
        # what overflows shows in the bound
        with np.errstate(over="ignore", invalid="ignore"):
            numbers = vars(variation(np.asarray(coefficient[row], np.float64)))
            if answers:
                numbers = numbers | vars(_bound_row(batch.bucket, inputs, answers, row))
        for name in found.keys() & numbers.keys():
            found[name][row] = numbers[name]
    return Solutions(found, (0,) * batch.rows)


def _bound_row(
    bucket: Bucket, inputs: Mapping[str, NDArray[Any]], answers: Mapping[str, NDArray[Any]], row: int
) -> ErrorBound:
    leaves_as_float32 = any(answer.dtype == np.float32 for answer in answers.values())
    return STEADY_PROBLEMS[bucket.problem].error_bound(
        {name: np.asarray(values[row], np.float64) for name, values in inputs.items()},
        {name.removeprefix(ANSWER): np.asarray(values[row], np.float64) for name, values in answers.items()},
        bucket.grid,
        scheme=bucket.scheme,
        rounding=FLOAT32_ROUNDING if leaves_as_float32 else 0.0,
    )


# what is computed for the references' queue
_OF_TASK: Final[Mapping[Task, Compute]] = {
    "solve": _solve,
    "certify": certify_answers,
    "refine": refine_answers,
    "adjoint": pull_back,
    "tangent": push_forward,
    "quantities": find_quantities,
}
