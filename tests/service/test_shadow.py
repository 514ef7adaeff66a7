"""Shadows: compared over what both versions give, whatever else one of them gives."""

import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from problems import Grid
from service.batching.batcher import Batcher
from service.shadow import Observations, Shadows
from service.versions.models import Served
from service.versions.served import ServedVersion
from service.workers.worker import Batch, Bucket, Solutions, ThreadWorker


class Seen:
    """What shadows tell."""

    def __init__(self) -> None:
        self.differences: list[float] = []
        self.failed = 0
        self.told = asyncio.Event()

    def observe(self, amount: float) -> None:
        self.differences.append(amount)
        self.told.set()

    def shadow(self, model: str, version: str, shadow: str) -> Observations:
        assert (model, version, shadow) == ("water", "1", "2")
        return self

    def shadow_failed(self, model: str, shadow: str) -> None:
        raise AssertionError(f"{shadow} of {model} gave nothing to compare")


def version(number: int, frames: int) -> ServedVersion:
    return ServedVersion(
        name="water", version=number, problem="shallow_water", scheme="s", grids=((4, 6),), frames=frames
    )


def rising(batch: Batch) -> Solutions:
    """Frame k is twice k."""
    steps = np.arange(1, batch.bucket.frames + 1, dtype=np.float32)[:, None, None]
    return Solutions({"h": batch.fields["h"][:, None] * 0 + 2 * steps}, (0,) * batch.rows)


@pytest.mark.parametrize("frames", [2, 3, 5])
def test_the_frames_that_both_versions_have_are_compared(frames: int) -> None:
    async def story() -> list[float]:
        seen, queue = Seen(), Batcher(ThreadWorker(rising))
        served = Served(version(1, 3), queue, Served(version(2, frames), queue))
        bucket = Bucket("shallow_water", None, "s", Grid((4, 6)), "float32", "wall", "advance", frames=3)
        steps = np.arange(1, 4, dtype=np.float32)[:, None, None]
        answers: Mapping[str, NDArray[Any]] = {"h": np.zeros((1, 3, 4, 6), np.float32) + steps}
        shadows = Shadows(seen)
        shadows.follow(served, Batch(bucket, {"h": np.zeros((1, 4, 6), np.float32)}), answers)
        await seen.told.wait()
        await shadows.close()
        await queue.close()
        return seen.differences

    # twice as much in each frame is a relative difference of 1, however many frames there are
    assert asyncio.run(story()) == pytest.approx([1.0])
