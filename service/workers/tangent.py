"""What a change of its input changes in the answer of a surrogate.

By central differences in float64, along the tangent: networks are not made to be differentiated forwards, and
operations of their own silently lose the tangent. The step changes no number by more than a 10,000th of
itself, so that what is cut off is some 1e-8 of the tangent, and rounding less.
"""

from __future__ import annotations

import copy
from typing import Final

import numpy as np
import torch
from torch import Tensor

from operators import AnySurrogate
from problems import STEADY_PROBLEMS
from service.workers.worker import TANGENT, Batch, Solutions

__all__ = ["push_forward"]

# largest relative change of a number of the input
STEP: Final = 1e-4


def push_forward(surrogate: AnySurrogate, batch: Batch, device: torch.device) -> Solutions:
    """The answers, and ``tangent.<output>`` for the tangents ``tangent.<input>`` [batch y x]."""
    problem, bucket = STEADY_PROBLEMS[batch.bucket.problem], batch.bucket
    # what has no tangent does not change
    nothing = np.zeros((batch.rows, *bucket.grid.shape), np.float32)

    def stacked(prefix: str) -> Tensor:
        fields = [batch.fields.get(f"{prefix}{spec.name}", nothing) for spec in problem.inputs]
        return torch.from_numpy(np.stack(fields, axis=1).astype(np.float64)).to(device)

    parameters = [
        torch.from_numpy(np.asarray(batch.fields[spec.name], np.float64)).to(device)
        for spec in problem.parameters
    ]
    inputs, tangents = stacked(""), stacked(TANGENT)
    relative = (tangents / inputs).abs().amax(dim=(1, 2, 3), keepdim=True)
    step = STEP / torch.where(relative > 0, relative, torch.ones_like(relative))
    exact = copy.deepcopy(surrogate).double()
    with torch.inference_mode():
        more = exact(inputs + step * tangents, *parameters, bucket.grid.extent)
        less = exact(inputs - step * tangents, *parameters, bucket.grid.extent)
    answer, found = ((more + less) / 2).cpu().numpy(), ((more - less) / (2 * step)).cpu().numpy()
    outputs = {spec.name: answer[:, n].astype(np.float32) for n, spec in enumerate(problem.outputs)}
    for n, spec in enumerate(problem.outputs):
        outputs[f"{TANGENT}{spec.name}"] = found[:, n].astype(np.float32)
    return Solutions(outputs, (0,) * batch.rows)
