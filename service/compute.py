"""The two ways to compute a batch: a loaded surrogate, or the problem's reference solver."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

import numpy as np
import torch

from model_store import LoadedVersion, Reference
from operators import Surrogate
from problems import PROBLEMS
from service.worker import Batch, Solutions

__all__ = ["REFERENCE_TOLERANCE", "Surrogates", "choose_device", "solve_reference"]

# relative residual that the service's `method = solver` reaches
REFERENCE_TOLERANCE = 1e-10


def choose_device(wanted: str) -> torch.device:
    """``auto`` is CUDA where there is a device."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


@final
class Surrogates:
    """Loaded versions on their device; call it with a float32 batch."""

    def __init__(self, versions: Iterable[LoadedVersion], device: torch.device) -> None:
        self._device = device
        self._surrogates: dict[Reference, Surrogate] = {
            version.reference: version.surrogate.to(device).eval() for version in versions
        }

    def __call__(self, batch: Batch) -> Solutions:
        """Answer all rows with one forward pass."""
        problem, version = PROBLEMS[batch.bucket.problem], batch.bucket.version
        if version is None:
            raise ValueError("a batch for the reference solver came to the surrogates")
        values = {name: torch.from_numpy(np.array(array)) for name, array in batch.fields.items()}
        inputs = torch.stack([values[spec.name] for spec in problem.inputs], dim=1)  # [batch channel y x]
        parameters = [values[spec.name].to(self._device) for spec in problem.parameters]
        with torch.inference_mode():
            answer = self._surrogates[version](inputs.to(self._device), *parameters, batch.bucket.grid.extent)
        host = answer.cpu().numpy()
        outputs = {spec.name: host[:, channel] for channel, spec in enumerate(problem.outputs)}
        return Solutions(outputs, (0,) * batch.rows)


def solve_reference(batch: Batch) -> Solutions:
    """Answer each row with the problem's reference solver, in float64."""
    bucket, problem = batch.bucket, PROBLEMS[batch.bucket.problem]
    solved = [
        problem.solve(
            {name: values[row] for name, values in batch.fields.items()},
            bucket.grid,
            scheme=bucket.scheme,
            tolerance=REFERENCE_TOLERANCE,
        )
        for row in range(batch.rows)
    ]
    outputs = {
        spec.name: np.stack([solution.fields[spec.name] for solution in solved]) for spec in problem.outputs
    }
    return Solutions(outputs, tuple(solution.iterations for solution in solved))
