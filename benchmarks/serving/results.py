"""What was measured: cells of servers' routes by model and number of clients, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, final

from benchmarks.serving.load import Burst

__all__ = ["Cell", "Results", "paired_ratio"]


@final
@dataclass(frozen=True)
class Cell:
    """One route under one load; a burst per round, None where it failed."""

    model: str
    route: str
    title: str
    clients: int
    bursts: list[Burst | None] = field(default_factory=list)

    @property
    def good(self) -> list[Burst]:
        """The bursts that have numbers."""
        return [burst for burst in self.bursts if burst is not None]

    def _values(self, quantity: str) -> list[float]:
        return [getattr(burst, quantity) for burst in self.good]

    def median(self, quantity: str) -> float:
        """Of a quantity of the bursts; NaN where there is none."""
        values = self._values(quantity)
        return median(values) if values else float("nan")

    def best(self, quantity: str) -> float:
        """The largest rate, the smallest of anything else."""
        values = self._values(quantity)
        if not values:
            return float("nan")
        return max(values) if quantity == "rate" else min(values)


@final
@dataclass
class Results:
    """A run of the benchmark.

    Attributes:
        about: command, machine, versions, commit.
        cells: see ``Cell``.
        raw_ms: times of a forward in this process, before and after each round, by model and batch size [ms].
        memory_mb: proportional set size of a server's processes with a model [MiB].
        fronts_mb: of each front of this service, after the load [MiB].
        extras: what else was measured, by name.
        troubles: what could not be measured, and why.
    """

    about: dict[str, Any] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    raw_ms: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    memory_mb: dict[str, dict[str, float]] = field(default_factory=dict)
    fronts_mb: list[float] = field(default_factory=list)
    extras: dict[str, Any] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)

    def cell(self, model: str, route: str, clients: int) -> Cell | None:
        """The cell of a route, if it was measured."""
        wanted = (model, route, clients)
        return next((cell for cell in self.cells if (cell.model, cell.route, cell.clients) == wanted), None)

    def raw_median(self, model: str, batch: int) -> float | None:
        """Median time of a forward in this process [ms]."""
        times = self.raw_ms.get(model, {}).get(batch)
        return median(times) if times else None

    def raw_round(self, model: str, batch: int, number: int) -> float | None:
        """Time of a forward around a round: the mean of before and after [ms]."""
        times = self.raw_ms.get(model, {}).get(batch, [])[2 * number : 2 * number + 2]
        return sum(times) / len(times) if times else None

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Results:
        """The inverse of ``to_json``, also after JSON has made the numbers of a mapping text."""
        cells = [
            Cell(**{**cell, "bursts": [Burst(**burst) if burst else None for burst in cell["bursts"]]})
            for cell in data["cells"]
        ]
        raw = {
            model: {int(batch): list(times) for batch, times in batches.items()}
            for model, batches in data["raw_ms"].items()
        }
        return cls(**{**data, "cells": cells, "raw_ms": raw})


def paired_ratio(numerators: Sequence[float | None], denominators: Sequence[float | None]) -> float | None:
    """Median of the ratios of neighbors: what disturbs the machine disturbs both of a round."""
    ratios = [
        above / below
        for above, below in zip(numerators, denominators, strict=False)
        if above is not None and below is not None
    ]
    return median(ratios) if ratios else None
