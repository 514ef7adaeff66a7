"""Bounds of errors, in batches on the device of a surrogate, in float64.

A GPU bounds the errors of a whole batch in the time that the reference solvers' process takes for a few rows.
On a CPU that process is faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from problems import STEADY_PROBLEMS, Grid
from problems.darcy_torch import STEPS, BatchBound, bound_batch
from service.workers.certified import FLOAT32_ROUNDING
from service.workers.worker import ANSWER, BOUND_FIELDS, Batch, Solutions

__all__ = ["BOUNDS", "bound_errors", "bounds_on"]

Fields = Mapping[str, torch.Tensor]


def _bound_darcy(inputs: Fields, answers: Fields, grid: Grid, scheme: str, rounding: float) -> BatchBound:
    permeability, source = inputs["permeability"], inputs["source"]
    return bound_batch(permeability, source, answers["pressure"], grid, scheme, rounding)


# problem -> the bounds of a batch from inputs, answers, grid, scheme and the rounding of the answers
BOUNDS: Final[Mapping[str, Callable[[Fields, Fields, Grid, str, float], BatchBound]]] = MappingProxyType(
    {"darcy": _bound_darcy}
)


def bounds_on(device: torch.device, problem: str) -> bool:
    """Whether the errors of a problem's answers are best bounded on this device."""
    return device.type == "cuda" and problem in BOUNDS


def bound_errors(batch: Batch, device: torch.device) -> Solutions:
    """``BOUND_FIELDS`` of each row, for the very numbers in the fields ``answer.<output>``."""
    bucket = batch.bucket
    answers = {name: values for name, values in batch.fields.items() if name.startswith(ANSWER)}
    leave_as_float32 = any(values.dtype == np.float32 for values in answers.values())
    inputs = {name: values for name, values in batch.fields.items() if name not in answers}
    with torch.inference_mode():
        on_device = {name: _double(values, device) for name, values in inputs.items()}
        found = BOUNDS[bucket.problem](
            on_device,
            {name.removeprefix(ANSWER): _double(values, device) for name, values in answers.items()},
            bucket.grid,
            bucket.scheme,
            FLOAT32_ROUNDING if leave_as_float32 else 0.0,
        )
        columns = {**vars(found), **_variations(on_device[STEADY_PROBLEMS[bucket.problem].inputs[0].name])}
        # one way to the host instead of one for each number
        names = [name for name in BOUND_FIELDS if name in columns]
        host = torch.stack([columns[name] for name in names]).cpu().numpy()
    numbers = dict(zip(names, host, strict=True)) | {"steps": np.full(batch.rows, 2.0 * STEPS)}
    return Solutions(numbers, (0,) * batch.rows)


def _variations(coefficient: torch.Tensor) -> dict[str, torch.Tensor]:
    """``problems.variation`` of each row."""
    logarithm = coefficient.log()
    steps = torch.cat([logarithm.diff(dim=1).flatten(1), logarithm.diff(dim=2).flatten(1)], dim=1)
    flat = logarithm.flatten(1)
    rows, pairs = steps.shape
    return {
        "contrast": (flat.amax(dim=1) - flat.amin(dim=1)).exp(),
        "jump": steps.abs().amax(dim=1).exp() if pairs else steps.new_ones(rows),
        "roughness": steps.norm(dim=1) / math.sqrt(max(pairs, 1)),
    }


def _double(values: NDArray[Any], device: torch.device) -> torch.Tensor:
    # torch knows no memory that must not be written
    own = values if values.flags.writeable else values.copy()
    return torch.from_numpy(own).to(device, torch.float64)
