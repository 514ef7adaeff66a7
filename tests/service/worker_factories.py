"""Versions that the worker processes of tests make for themselves; without PyTorch."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

import numpy as np

from service.versions.served import ServedVersion
from service.workers.worker import Batch, Compute, Solutions

POISON = -666.0
KILL = -777.0


def doubles(side: int = 16, trap: str = "") -> tuple[ServedVersion, Compute]:
    """Doubles the permeability; breaks on poison, and dies on what kills, in ``trap`` telling of it first."""
    version = ServedVersion(
        name="doubles", version=1, problem="darcy", scheme="tpfa-harmonic-v1", grids=((side, side),)
    )

    def compute(batch: Batch) -> Solutions:
        values = batch.fields["permeability"]
        if POISON in values:
            raise ArithmeticError("poisoned")
        if KILL in values:
            # as the system does when memory runs out
            os.kill(os.getpid(), signal.SIGKILL)
        if trap and values.flat[0] == 0:
            # opened for writing, a pipe waits for the test to read
            Path(trap).write_text("busy")
        return Solutions({"pressure": 2 * values}, (0,) * batch.rows)

    return version, compute


def infinite() -> tuple[ServedVersion, Compute]:
    """Has no finite answer."""
    version, _ = doubles()
    return version, lambda batch: Solutions({"pressure": batch.fields["permeability"] + np.inf}, (0,))


def log_format() -> tuple[ServedVersion, Compute]:
    """Says how this process logs."""
    raise ValueError(f"logs by {type(logging.getLogger().handlers[0].formatter).__name__}")


def broken() -> tuple[ServedVersion, Compute]:
    """Cannot be made."""
    raise FileNotFoundError("no such weights")
