"""The models of the benchmark, as this service loads them."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.serving.models import SIDE, build
from service.versions.served import ServedVersion
from service.workers.worker import Batch, Compute, Solutions

__all__ = ["load", "load_waves"]

# what one call of the model of rollouts gives
FRAMES_PER_CALL = 10


def load(model: str, frozen: bool = False) -> tuple[ServedVersion, Compute]:
    """A model that takes a permeability for a pressure, whatever the source."""
    forward = build(model, frozen)

    def compute(batch: Batch) -> Solutions:
        fields = np.ascontiguousarray(batch.fields["permeability"], np.float32)
        answer = forward(torch.from_numpy(fields)).numpy()
        return Solutions({"pressure": answer}, (0,) * batch.rows)

    served = ServedVersion(
        name=model,
        version=1,
        problem="darcy",
        scheme="tpfa-harmonic-v1",
        grids=((SIDE, SIDE), (SIDE // 2, SIDE // 2)),
    )
    return served, compute


def load_waves(name: str) -> tuple[ServedVersion, Compute]:
    """Shallow water that stands still: a rollout costs what serving costs."""

    def compute(batch: Batch) -> Solutions:
        frames = {
            name: np.broadcast_to(field[:, None], (len(field), FRAMES_PER_CALL, *field.shape[1:]))
            for name, field in batch.fields.items()
        }
        return Solutions(frames, (0,) * batch.rows)

    served = ServedVersion(
        name=name,
        version=1,
        problem="shallow_water",
        scheme="hllc-muscl-v1",
        grids=((SIDE, SIDE),),
        extent=(5.0, 5.0),
        frame_interval=0.01,
        walls="outflow",
        history=1,
        frames=FRAMES_PER_CALL,
    )
    return served, compute
