"""What a change of its input changes in the answer of a surrogate: its derivative, exact but for rounding.

Each number carries its tangent through the network (``operators.forward_mode``), in the dtype of the answer.
Through a rollout, state and tangent march together block by block: whoever asks has the state before each of
them, and nothing of what was computed inside is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    Of a steady problem the answers, too; of a problem that evolves, of the frames of a block that are chosen.
    """
    problem, bucket = PROBLEMS[batch.bucket.problem], batch.bucket
    answer, tangent = forward_mode.push_forward(
        _function(surrogate, batch, device),
        _stacked(batch, "", problem.inputs).to(device),
        _stacked(batch, TANGENT, problem.inputs).to(device),
    )
    outputs = _named(TANGENT, problem.outputs, tangent)
    if bucket.problem not in EVOLUTION_PROBLEMS:
        outputs |= _named("", problem.outputs, answer)
    return Solutions(outputs, (0,) * batch.rows)


def _function(surrogate: AnySurrogate, batch: Batch, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The answers [batch channel y x], or frames [batch frame channel y x], as a function of the fields."""
    problem, bucket = PROBLEMS[batch.bucket.problem], batch.bucket
    if bucket.problem in EVOLUTION_PROBLEMS:
        frames = [frame - 1 for frame in bucket.chosen]
        return lambda states: surrogate(states[:, None], bucket.grid.extent, frames)
    parameters = [
        torch.from_numpy(np.array(batch.fields[spec.name])).to(device) for spec in problem.parameters
    ]
    return lambda fields: surrogate(fields, *parameters, bucket.grid.extent)


def _stacked(batch: Batch, prefix: str, specs: Sequence[FieldSpec]) -> Tensor:
    # what has no tangent does not change
    nothing = np.zeros((batch.rows, *batch.bucket.grid.shape), np.float32)
    fields = [batch.fields.get(f"{prefix}{spec.name}", nothing) for spec in specs]
    return torch.from_numpy(np.stack(fields, axis=1))


def _named(prefix: str, specs: Sequence[FieldSpec], found: Tensor) -> dict[str, NDArray[Any]]:
    host = found.cpu().numpy()
    return {f"{prefix}{spec.name}": host[..., channel, :, :] for channel, spec in enumerate(specs)}
