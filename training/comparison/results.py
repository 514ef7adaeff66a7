"""The rows and costs of one problem, sorted by operator."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, final

import numpy as np
from numpy.typing import NDArray

from training.comparison.config import Comparison, Grid, ProblemSection
from training.comparison.costs import Cost
from training.comparison.rows import Row, Spectrum

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)


@final
@dataclass(frozen=True)
class Results:
    """What is known of one problem; rows may be missing.

    Attributes:
        problem: its section in the comparison file.
        seeds: that each operator is to be trained with.
        rows: operator -> its rows, in the order of the seeds; of every operator, in the order of the file.
        baselines: what has no seed.
        costs: operator -> grid -> cost; of every operator, in the order of the file.
    """

    problem: ProblemSection
    seeds: tuple[int, ...]
    rows: Mapping[str, Sequence[Row]]
    baselines: Mapping[str, Row]
    costs: Mapping[str, Mapping[Grid, Cost]]

    @property
    def name(self) -> str:
        """Of the problem."""
        return self.problem.name

    @property
    def operators(self) -> tuple[str, ...]:
        """All of them, in the order of the file."""
        return tuple(self.rows)

    @property
    def finished(self) -> int:
        """How many rows of operators are there."""
        return sum(len(rows) for rows in self.rows.values())

    @property
    def missing(self) -> dict[str, tuple[int, ...]]:
        """Operator -> seeds without a row; only operators that lack some."""
        absent = {
            name: tuple(seed for seed in self.seeds if seed not in {row.seed for row in rows})
            for name, rows in self.rows.items()
        }
        return {name: seeds for name, seeds in absent.items() if seeds}

    @property
    def errors(self) -> dict[str, list[float]]:
        """Operator -> error with each seed, infinite where it diverged; only operators that have rows."""
        return {name: [_known(row.error) for row in rows] for name, rows in self.rows.items() if rows}

    @property
    def metric(self) -> str:
        """Name of the error; empty before there is a row."""
        every = [row for rows in self.rows.values() for row in rows] + list(self.baselines.values())
        return every[0].metric if every else ""

    @property
    def grid(self) -> Grid:
        """The one that the operators are trained on."""
        return self.problem.data.grid

    @property
    def grids(self) -> tuple[Grid, ...]:
        """All that operators are tested on or cost something on, the smallest first."""
        priced = {grid for costs in self.costs.values() for grid in costs}
        return tuple(sorted({self.grid, *self.problem.grids, *priced}, key=cells))

    @property
    def own_costs(self) -> dict[str, Cost]:
        """Operator -> cost on the grid that it is trained on, where it is known."""
        return {name: costs[self.grid] for name, costs in self.costs.items() if self.grid in costs}

    @property
    def parameters(self) -> dict[str, int]:
        """Operator -> how many it has, where a cost or a finished training tells."""
        found = {name: next(iter(costs.values())).parameters for name, costs in self.costs.items() if costs}
        for name, rows in self.rows.items():
            # a training that diverged counted none
            counts = [row.parameters for row in rows if row.parameters]
            if counts:
                found.setdefault(name, counts[0])
        return found

    @property
    def tested_families(self) -> tuple[str, ...]:
        """Families that have test samples; errors of single frames and spectra are of the first one."""
        return tuple(family.name for family in self.problem.data.families if family.test)

    def errors_on(self, name: str, grid: Grid) -> list[float | None]:
        """The errors of an operator on a grid, seed by seed: None where it cannot.

        Rows that do not say are left out, unless their training diverged: it did so for every grid.
        """
        if grid == self.grid:
            return list(self.errors.get(name, []))
        found: list[float | None] = []
        for row in self.rows[name]:
            values = {parsed_grid(key): value for key, value in row.elsewhere.items()}
            if grid in values:
                value = values[grid]
                found.append(None if value is None else _known(value))
            elif not math.isfinite(row.error):
                found.append(math.inf)
        return found


def results_of(comparison: Comparison, rows: Iterable[Row], costs: Iterable[Cost]) -> tuple[Results, ...]:
    """The results of each problem of a comparison. What the comparison does not name is left out.

    Raises:
        ValueError: two rows, or two costs, of the same thing.
    """
    found = _indexed(rows, lambda row: (row.problem, row.operator, row.seed))
    priced = _indexed(costs, lambda cost: (cost.problem, cost.operator, cost.grid))
    names, seeds = [one.name for one in comparison.operators], comparison.comparison.seeds
    return tuple(
        Results(
            problem=problem,
            seeds=seeds,
            rows={
                name: [found[key] for seed in seeds if (key := (problem.name, name, seed)) in found]
                for name in names
            },
            baselines={
                name: row for (of, name, seed), row in found.items() if of == problem.name and seed is None
            },
            costs={
                name: {
                    grid: cost
                    for (of, whose, grid), cost in priced.items()
                    if (of, whose) == (problem.name, name)
                }
                for name in names
            },
        )
        for problem in comparison.problems
    )


def mean_spectrum(rows: Sequence[Row]) -> Spectrum | None:
    """The mean over the rows that have a finite one; None if none has."""
    found = [row.spectrum for row in rows if row.spectrum is not None]
    found = [one for one in found if np.isfinite(one.error).all()]
    if not found:
        return None
    return Spectrum(
        wavenumber=found[0].wavenumber,
        reference=tuple(np.mean([one.reference for one in found], axis=0)),
        error=tuple(np.mean([one.error for one in found], axis=0)),
    )


def error_over_reference(spectrum: Spectrum) -> NDArray[np.float64]:
    """The power of the error as a share of the reference's; NaN where the reference has none."""
    reference = np.asarray(spectrum.reference)
    return np.asarray(spectrum.error) / np.where(reference > 0.0, reference, np.nan)


def cells(grid: Grid) -> int:
    """How many cells a grid has."""
    return grid[0] * grid[1]


def parsed_grid(name: str) -> Grid:
    """The grid that ``grid_name`` names.

    Raises:
        ValueError: it is no name of a grid.
    """
    try:
        y, x = (int(part) for part in name.split("x"))
    except ValueError:
        raise ValueError(f"expected a grid like 64x64, got {name!r}") from None
    return y, x


def _indexed(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, Item]:
    found: dict[Key, Item] = {}
    for item in items:
        if key(item) in found:
            raise ValueError(f"expected one of {key(item)}, got two")
        found[key(item)] = item
    return found


def _known(error: float) -> float:
    """An error that is not a number is infinite."""
    return math.inf if math.isnan(error) else error
