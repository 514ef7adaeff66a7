"""The trust blocks of an answer: an error bound and an in-distribution flag for each sample.

The numbers behind them are computed elsewhere (``reference.bound_errors``): they take a millisecond each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal

from problems import ErrorBound, Variation
from service.workers.worker import Solutions

__all__ = ["bounds", "in_hull", "variations"]

_OF_A_BOUND = (
    *("lower", "upper", "l2_estimate", "steps"),
    *("l2_lower", "l2_upper", "max_lower", "max_upper", "floor"),
)
# a contrast of 10 stays one after both ends were rounded to float32
HULL_SLACK = 1e-6


def bounds(numbers: Solutions, against: Literal["discrete", "pde"] = "discrete") -> tuple[ErrorBound, ...]:
    """The bound of each row of a batch of the task ``bound``, ``certify`` or ``refine``."""
    named = {name: numbers.fields[name].tolist() for name in _OF_A_BOUND if name in numbers.fields}
    steps = [int(number) for number in named.pop("steps")]
    rows = [dict(zip(named, row, strict=True)) for row in zip(*named.values(), strict=True)]
    return tuple(
        ErrorBound("guaranteed", "energy", **row, steps=number, reference=against)
        for row, number in zip(rows, steps, strict=True)
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
