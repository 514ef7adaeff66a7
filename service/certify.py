"""The trust blocks of an answer: an error bound and an in-distribution flag for each sample.

The numbers behind them are computed elsewhere (``reference.bound_errors``): they take a millisecond each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from problems import ErrorBound, Variation
from service.workers.worker import Solutions

__all__ = ["bounds", "in_hull", "variations"]

# a contrast of 10 stays one after both ends were rounded to float32
HULL_SLACK = 1e-6


def bounds(numbers: Solutions) -> tuple[ErrorBound, ...]:
    """The bound of each row of a batch of the task ``bound``."""
    columns = [numbers.fields[name].tolist() for name in ("lower", "upper", "l2_estimate", "steps")]
    return tuple(
        ErrorBound("guaranteed", "energy", lower, upper, estimate, int(steps))
        for lower, upper, estimate, steps in zip(*columns, strict=True)
    )


def variations(numbers: Solutions) -> tuple[Variation, ...]:
    """How the coefficient of each row varies."""
    columns = [numbers.fields[name].tolist() for name in ("contrast", "jump", "roughness")]
    return tuple(Variation(*row) for row in zip(*columns, strict=True))


def in_hull(hull: Mapping[str, float], found: Iterable[Variation]) -> tuple[bool, ...]:
    """Whether each coefficient varies as those do that the version was trained on.

    A version without a range of contrasts in its hull vouches for nothing. One whose hull lacks ``jump_max``
    or ``roughness_max``, as older cards do, vouches for what it names and no more: those are not compared.
    """
    return tuple(_within(hull, each) for each in found)


def _within(hull: Mapping[str, float], found: Variation) -> bool:
    low, high = 1 - HULL_SLACK, 1 + HULL_SLACK
    return (
        hull.get("contrast_min", math.inf) * low <= found.contrast
        and found.contrast <= hull.get("contrast_max", -math.inf) * high
        and found.jump <= hull.get("jump_max", math.inf) * high
        and found.roughness <= hull.get("roughness_max", math.inf) * high
    )
