"""The trust blocks of an answer: an error bound and an in-distribution flag for each sample.

The numbers behind them are computed elsewhere (``reference.bound_errors``): they take a millisecond each.
"""

from __future__ import annotations

from typing import Literal

from problems import ErrorBound, Variation
from service.workers.worker import Solutions

__all__ = ["bounds", "variations"]

_OF_A_BOUND = (
    *("lower", "upper", "l2_estimate", "steps"),
    *("l2_lower", "l2_upper", "max_lower", "max_upper", "floor"),
)


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
