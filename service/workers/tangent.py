"""What a change of its input changes in the answer of a surrogate: its derivative, exact but for rounding.

Each number carries its tangent through the network (``operators.forward_mode``), in the dtype of the answer.
Through a rollout, state and tangent march together block by block: whoever asks has the state before each of
them, and nothing of what was computed inside is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from operators import AnySurrogate, forward_mode
from problems import EVOLUTION_PROBLEMS, PROBLEMS, FieldSpec
from service.workers.worker import TANGENT, Batch, Solutions

__all__ = ["push_forward"]


def push_forward(surrogate: AnySurrogate, batch: Batch, device: torch.device) -> Solutions:
    """``tangent.<output>`` for the tangents ``tangent.<input>`` [batch y x].

    Of a problem that evolves, those of the frames of a block that are chosen.
    """
    problem, extent = PROBLEMS[batch.bucket.problem], batch.bucket.grid.extent
    given, moved = (_stacked(batch, prefix, problem.inputs).to(device) for prefix in ("", TANGENT))
    if problem.name in EVOLUTION_PROBLEMS:
        frames = [frame - 1 for frame in batch.bucket.chosen]
        # one by one: a block in torch's operations takes many times the memory of its state
        rows = zip(torch.split(given, 1), torch.split(moved, 1), strict=True)
        tangents = [
            forward_mode.push_forward(lambda states: surrogate(states[:, None], extent, frames), *row)[1]
            for row in rows
        ]
        return Solutions(_named(problem.outputs, torch.cat(tangents)), (0,) * batch.rows)
    parameters = [
        torch.from_numpy(np.array(batch.fields[spec.name])).to(device) for spec in problem.parameters
    ]
    _, tangent = forward_mode.push_forward(
        lambda fields: surrogate(fields, *parameters, extent), given, moved
    )
    return Solutions(_named(problem.outputs, tangent), (0,) * batch.rows)


def _stacked(batch: Batch, prefix: str, specs: Sequence[FieldSpec]) -> Tensor:
    # what has no tangent does not change
    nothing = np.zeros((batch.rows, *batch.bucket.grid.shape), np.float32)
    fields = [batch.fields.get(f"{prefix}{spec.name}", nothing) for spec in specs]
    return torch.from_numpy(np.stack(fields, axis=1))


def _named(specs: Sequence[FieldSpec], found: Tensor) -> dict[str, NDArray[Any]]:
    host = found.cpu().numpy()
    return {f"{TANGENT}{spec.name}": host[..., channel, :, :] for channel, spec in enumerate(specs)}
