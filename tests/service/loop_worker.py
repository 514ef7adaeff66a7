"""A worker in the event loop of a test: what it computes, and when, is said by whoever derives from it."""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from service.workers.worker import Worker


class LoopWorker(Worker):
    """Always there, with memory of its own for inputs, and nothing to close."""

    @property
    def available(self) -> bool:
        return True

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        return np.empty(shape, dtype)

    def close(self) -> None:
        pass
