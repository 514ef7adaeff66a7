"""The ways to compute a batch: a loaded surrogate, or the problem's reference solver."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

import numpy as np
import torch
from torch import nn

from model_store import LoadedVersion, Reference
from problems import (
    EVOLUTION_PROBLEMS,
    PROBLEMS,
    STEADY_PROBLEMS,
    CannotSolve,
    Fields,
    InvalidField,
    Solution,
)
from service.settings import InvalidSettings
from service.worker import Batch, Solutions

__all__ = [
    "REFERENCE_TOLERANCE",
    "STEP",
    "Surrogates",
    "advance_reference",
    "choose_device",
    "solve_reference",
]

# relative residual asked of the reference solver; what it reached, at high contrast, the error bound says
REFERENCE_TOLERANCE = 1e-10
# name of the number of the frame among the inputs of a batch that the reference solver steps in time
STEP = "step"


def choose_device(wanted: str) -> torch.device:
    """``auto`` is CUDA where there is a device.

    Raises:
        InvalidSettings: CUDA is wanted and there is none.
    """
    found = torch.cuda.is_available()
    if wanted == "cuda" and not found:
        raise InvalidSettings("device: expected a CUDA device, found none; use --device cpu or auto")
    if wanted == "auto":
        wanted = "cuda" if found else "cpu"
    return torch.device(wanted)


@final
class Surrogates:
    """Loaded versions on their device; call it with a float32 batch."""

    def __init__(self, versions: Iterable[LoadedVersion], device: torch.device) -> None:
        self._device = device
        self._surrogates: dict[Reference, nn.Module] = {
            version.reference: version.surrogate.to(device).eval() for version in versions
        }

    def __call__(self, batch: Batch) -> Solutions:
        """Answer all rows with one forward pass: solutions, or the next block of frames."""
        problem, version = PROBLEMS[batch.bucket.problem], batch.bucket.version
        if version is None:
            raise ValueError("a batch for the reference solver came to the surrogates")
        values = {
            name: torch.from_numpy(np.array(array)).to(self._device) for name, array in batch.fields.items()
        }
        inputs = torch.stack([values[spec.name] for spec in problem.inputs], dim=1)  # [batch channel y x]
        parameters = [values[spec.name] for spec in problem.parameters]
        if problem.name in EVOLUTION_PROBLEMS:
            inputs = inputs[:, None]  # [batch time channel y x]
        with torch.inference_mode():
            answer = self._surrogates[version](inputs, *parameters, batch.bucket.grid.extent)
        host = answer.cpu().numpy()
        outputs = {spec.name: host[..., channel, :, :] for channel, spec in enumerate(problem.outputs)}
        return Solutions(outputs, (0,) * batch.rows)


def solve_reference(batch: Batch) -> Solutions:
    """Answer each row with the problem's reference solver, in float64; one it cannot solve is told apart."""
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
