"""Values that belong to steps, each made while the step before it is computed."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar, final

Value = TypeVar("Value")


@final
class Prefetched(Generic[Value]):
    """Makes the value of a step in a thread of its own, ahead of time where steps are asked for in turn."""

    def __init__(self, make: Callable[[int], Value]) -> None:
        self._make = make
        self._thread = ThreadPoolExecutor(1, "prefetch")
        self._ahead: dict[int, Future[Value]] = {}

    def __call__(self, step: int) -> Value:
        """The value of a step; whatever ``make`` raises for it."""
        wanted = self._ahead.get(step) or self._thread.submit(self._make, step)
        self._ahead = {step + 1: self._thread.submit(self._make, step + 1)}
        return wanted.result()
