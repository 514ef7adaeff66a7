"""What a worker says of the frames that it has written, in less time than a front would need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from problems import EVOLUTION_PROBLEMS
from service.versions.served import ServedVersion
from service.workers.sample import plain_bucket, sample
from service.workers.worker import INVARIANTS, Bucket

__all__ = ["add_invariants", "warm_up_invariants"]


def add_invariants(bucket: Bucket, outputs: Mapping[str, NDArray[Any]]) -> None:
    """Compute the invariants of the frames in ``outputs``, where there is room for them."""
    room = outputs.get(INVARIANTS)
    if room is None:
        return
    problem = EVOLUTION_PROBLEMS[bucket.problem]
    for row, numbers in enumerate(room):
        # what is no number shows in the invariants
        with np.errstate(all="ignore"):
            frames = {spec.name: outputs[spec.name][row] for spec in problem.outputs}
            numbers[...] = problem.frame_invariants(frames, bucket.grid)


def warm_up_invariants(version: ServedVersion) -> None:
    """Have compiled what :func:`add_invariants` needs, so that no request waits for a compiler."""
    problem = EVOLUTION_PROBLEMS.get(version.problem)
    if problem is not None:
        frame = sample(problem, version.grids[0], "float32")
        problem.frame_invariants(frame, plain_bucket(version, version.grids[0]).grid)
