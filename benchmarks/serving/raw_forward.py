"""The limit: the forward itself, in this process, without a server."""

from __future__ import annotations

import time
from statistics import median
from typing import Final, final

import torch

from benchmarks.serving.models import SIDE, build

__all__ = ["BATCHES", "RawForward"]

BATCHES: Final = (1, 8, 16, 32)
SECONDS: Final = 0.12
LEAST_CALLS: Final = 3


@final
class RawForward:
    """A model of the benchmark on one thread."""

    def __init__(self, model: str, frozen: bool) -> None:
        self._forward = build(model, frozen)
        self._inputs = {batch: torch.rand(batch, SIDE, SIDE) for batch in BATCHES}
        for inputs in self._inputs.values():
            self._forward(inputs)

    def milliseconds(self, batch: int) -> float:
        """Median wall time of a forward, over a short while [ms]."""
        times: list[float] = []
        until = time.perf_counter() + SECONDS
        while len(times) < LEAST_CALLS or time.perf_counter() < until:
            start = time.perf_counter()
            self._forward(self._inputs[batch])
            times.append(time.perf_counter() - start)
        return 1e3 * median(times)
