"""What a change of its input changes in the answer of a surrogate: its derivative, exact but for rounding.

Each number carries its tangent through the network (``operators.forward_mode``), in the dtype of the answer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from operators import AnySurrogate, forward_mode
from problems import STEADY_PROBLEMS
from service.workers.worker import TANGENT, Batch, Solutions

__all__ = ["push_forward"]


def push_forward(surrogate: AnySurrogate, batch: Batch, device: torch.device) -> Solutions:
    """The answers, and ``tangent.<output>`` for the tangents ``tangent.<input>`` [batch y x]."""
    problem, bucket = STEADY_PROBLEMS[batch.bucket.problem], batch.bucket
    # what has no tangent does not change
    nothing = np.zeros((batch.rows, *bucket.grid.shape), np.float32)

    def stacked(prefix: str) -> Tensor:
        fields = [batch.fields.get(f"{prefix}{spec.name}", nothing) for spec in problem.inputs]
        return torch.from_numpy(np.stack(fields, axis=1)).to(device)

    parameters = [
        torch.from_numpy(np.array(batch.fields[spec.name])).to(device) for spec in problem.parameters
    ]
    answer, tangent = forward_mode.push_forward(
        lambda given: surrogate(given, *parameters, bucket.grid.extent), stacked(""), stacked(TANGENT)
    )
    outputs: dict[str, NDArray[Any]] = {}
    for prefix, found in (("", answer), (TANGENT, tangent)):
        host = found.cpu().numpy()
        outputs |= {f"{prefix}{spec.name}": host[:, n] for n, spec in enumerate(problem.outputs)}
    return Solutions(outputs, (0,) * batch.rows)
