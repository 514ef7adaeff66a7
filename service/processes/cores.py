"""How many threads a model may have without taking the time of everything else."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path
from typing import Final

__all__ = ["model_threads"]

_GROUPS: Final = Path("/sys/fs/cgroup")


def model_threads(groups: Path = _GROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Threads of a model where nobody says how many: the cores that this process may use, but one.

    Threads that have to wait for a core spin: one core stays for everything else.

    Args:
        groups: where the control groups of the system are.
        own: the file that says which of them is this process'.
    """
    return max(1, min(len(os.sched_getaffinity(0)), _granted(groups, own)) - 1)


def _granted(groups: Path, own: Path) -> int:
    """Cores that the control groups grant: the smallest of the group and those around it."""
    granted = [math.inf]
    with contextlib.suppress(OSError):
        lines = own.read_text().splitlines()
        group = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
        places = [groups / group, *(groups / group).parents]
        granted += [_quota(place / "cpu.max") for place in places if place.is_relative_to(groups)]
    return math.ceil(min(min(granted), os.cpu_count() or 1))


def _quota(limit: Path) -> float:
    # "200000 100000": so much time of each period; "max 100000": no limit
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        time, period = limit.read_text().split()
        return int(time) / int(period)
    return math.inf
