"""CPU and wall times of calls."""

import time
from collections.abc import Callable
from typing import NamedTuple


class Seconds(NamedTuple):
    """What a call took [s].

    Attributes:
        cpu: CPU time of all threads of the process.
        wall: time by a clock.
    """

    cpu: float
    wall: float


def seconds(work: Callable[[], object]) -> Seconds:
    """CPU and wall time of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return Seconds(time.process_time() - cpu, time.perf_counter() - wall)


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of the process during one call [s]."""
    return seconds(work).cpu
