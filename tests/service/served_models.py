"""Models for servers in processes of their own, named in their settings as ``served_models:slow``."""

import os
import time
from pathlib import Path

import numpy as np

from service.versions.served import ServedVersion
from service.workers.worker import Batch, Compute, Solutions

GRIDS = ((128, 128), (64, 64), (32, 32))
# sources that mean something else than a source
KILL, BREAK, NOT_A_NUMBER = 666.0, 667.0, 668.0


def slow(seconds: float, log: str) -> tuple[ServedVersion, Compute]:
    """Doubles the permeability, takes its time, and writes down the source of every row it computes."""

    def compute(batch: Batch) -> Solutions:
        sources = [float(source) for source in batch.fields["source"]]
        with Path(log).open("a") as file:
            file.write("".join(f"{source}\n" for source in sources))
        if KILL in sources:
            os.kill(os.getpid(), 9)
        if BREAK in sources:
            raise ArithmeticError("poisoned")
        time.sleep(seconds)
        pressure = 2 * batch.fields["permeability"]
        for row, source in enumerate(sources):
            if source == NOT_A_NUMBER:
                pressure[row, 0, 0] = np.nan
        return Solutions({"pressure": pressure}, (0,) * batch.rows)

    return version("slow"), compute


def version(name: str) -> ServedVersion:
    """A version of a model of Darcy flow that has no card."""
    return ServedVersion(name=name, version=1, problem="darcy", scheme="tpfa-harmonic-v1", grids=GRIDS)


def drift(frames: int) -> tuple[ServedVersion, Compute]:
    """Moves everything by a cell along x a frame."""

    def compute(batch: Batch) -> Solutions:
        fields = {
            name: np.stack([np.roll(values, n, axis=-1) for n in range(1, frames + 1)], axis=1)
            for name, values in batch.fields.items()
        }
        return Solutions(fields, (0,) * batch.rows)

    water = ServedVersion(
        name="drift",
        version=1,
        problem="shallow_water",
        scheme="hllc-muscl-v1",
        grids=GRIDS,
        extent=(5.0, 5.0),
        frame_interval=0.01,
        walls="periodic",
        history=1,
        frames=frames,
    )
    return water, compute
