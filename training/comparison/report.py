"""The report of a comparison: Markdown, CSV and figures; of an unfinished one, what is there."""

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from problems import PROBLEMS
from training.comparison import figures
from training.comparison.config import Comparison, Grid, grid_name
from training.comparison.costs import Cost
from training.comparison.facts import facts
from training.comparison.results import (
    Results,
    cells,
    error_over_reference,
    mean_spectrum,
    results_of,
)
from training.comparison.rows import Row
from training.comparison.significance import LEVEL, best_of, compare_with_best, geometric_mean, like_the_best
from training.report_trajectories import markdown_table

# what stands where nothing can be said, and where a row or a cost has not been made yet
_NONE, _MISSING = "—", "missing"
_STATISTICS = (("median", "median"), ("mean", "mean"), ("p90", "90 %"), ("max", "worst"))
# shares of the reference's power that the error's is compared with
_SHARES = (0.01, 1.0)


def write_report(
    directory: Path, comparison: Comparison, rows: Sequence[Row], costs: Sequence[Cost], command: str
) -> Path:
    """Write ``report.md``, its figures, ``rows.csv`` and ``costs.csv``.

    Args:
        directory: created if need be.
        comparison: whose rows these are.
        rows: that are there; those that the comparison does not name are in ``rows.csv`` alone.
        costs: that are there.
        command: what makes all of it again.

    Returns:
        The path of ``report.md``.

    Raises:
        ValueError: two rows, or two costs, of the same thing.
    """
    found = results_of(comparison, rows, costs)
    directory.mkdir(parents=True, exist_ok=True)
    sections = [f"# {comparison.comparison.name}", origin(command, rows), progress(found)]
    for results in found:
        sections += _problem(directory, results)
    sections += [facts(comparison, found), "Every number: [rows.csv](rows.csv), [costs.csv](costs.csv)."]
    write_csv(directory, rows, costs)
    report = directory / "report.md"
    report.write_text("\n\n".join(sections) + "\n")
    return report


def write_csv(directory: Path, rows: Sequence[Row], costs: Sequence[Cost]) -> None:
    """Write ``rows.csv`` and ``costs.csv``: a line for each row and cost, every number to its last bit."""
    _write_csv(directory / "rows.csv", [_row_record(row) for row in rows])
    _write_csv(directory / "costs.csv", [_cost_record(cost) for cost in costs])


def origin(command: str, rows: Sequence[Row]) -> str:
    """What made the report, and which code the rows are of."""
    codes = list(dict.fromkeys(row.code for row in rows))
    return f"Made by `{command}`" + (f", the rows by mno {', '.join(codes)}." if codes else ".")


def progress(found: Sequence[Results]) -> str:
    """How many rows are there, and which are not."""
    total = sum(len(results.operators) * len(results.seeds) for results in found)
    done = sum(results.finished for results in found)
    if done == total:
        return f"All {total} rows are there."
    lines = [f"**{done} of {total} rows are there.** Missing:", ""]
    for results in found:
        for name, seeds in results.missing.items():
            lines.append(f"- {results.name}, {name}: {_counted('seed', seeds)} {', '.join(map(str, seeds))}")
    return "\n".join(lines)


def main_table(results: Results) -> str:
    """A line for each operator, the one with the least error first, then the baselines."""
    headings = [
        "operator",
        "parameters",
        "GFLOP per sample",
        "held for the pass back [MB per sample]",
        "training step, times the fastest",
        "forward, times the fastest",
        "learning rate",
        "error [%]",
        "geometric mean and its 95 % interval [%]",
        "p against the best",
    ]
    best, alike = best_of(results.errors), like_the_best(results.errors)
    p_values = compare_with_best(results.errors)
    lines = []
    for name in ranked(results):
        errors = results.errors.get(name, [])
        bold = "**" if name in alike else ""
        shown = [f"{bold}{error_cell(errors, len(results.seeds))}{bold}", interval_cell(errors)]
        p_value = "best" if name == best else _p_value(p_values.get(name, math.nan))
        costs = [*_cost_cells(results, name), _rates(results.rows[name])]
        lines.append([f"{bold}{name}{bold}", *costs, *shown, p_value])
    if results.baselines:
        # Markdown has no rules inside a table
        lines.append(["*not trained*", *[""] * (len(headings) - 1)])
        lines += [
            [row.operator, *[_NONE] * 6, error_cell([row.error], 1), _NONE, _NONE]
            for row in sorted(results.baselines.values(), key=lambda row: row.error)
        ]
    return markdown_table(headings, lines)


def ranked(results: Results) -> list[str]:
    """The operators by the geometric mean of their errors; those without rows last."""
    means = {name: geometric_mean(errors).value for name, errors in results.errors.items()}
    return sorted(results.operators, key=lambda name: (name not in means, means.get(name, 0.0)))


def sample_table(results: Results) -> str:
    """Statistics over the samples of each family, the means over the seeds."""
    headings = ["operator", "family", *(heading for _, heading in _STATISTICS)]
    names = [f"{results.metric}_{statistic}" for statistic, _ in _STATISTICS]
    operators = {name: results.rows[name] for name in ranked(results) if results.rows[name]}
    baselines = {name: [row] for name, row in results.baselines.items()}
    lines = [
        [name, family, *(_mean_statistic(rows, family, statistic) for statistic in names)]
        for name, rows in {**operators, **baselines}.items()
        for family in results.tested_families
    ]
    return markdown_table(headings, lines)


def grid_table(results: Results) -> str:
    """The error of each operator on the grid that it was trained on, and on the others."""
    grids = sorted({results.grid, *results.problem.grids}, key=cells)
    headings = ["operator", *(grid_name(grid) + ", trained on" * (grid == results.grid) for grid in grids)]
    lines = [
        [name, *(_errors_on(results, name, grid) for grid in grids)]
        for name in ranked(results)
        if results.rows[name]
    ]
    return markdown_table(headings, lines)


def count_table(results: Results, measure: figures.Measure) -> str:
    """What is counted of each operator on each grid, and with what power of the cells it grows."""
    headings = [measure.title, *map(grid_name, results.grids), "grows as cells to the power"]
    lines = []
    for name in results.operators:
        values = {grid: measure.of(cost) for grid, cost in results.costs[name].items()}
        absent = _NONE if values else _MISSING
        shown = [_digits(values[grid]) if grid in values else absent for grid in results.grids]
        lines.append([name, *shown, _power(values)])
    return markdown_table(headings, lines)


def time_table(results: Results) -> str:
    """How many times as long as the fastest operator's each one's forward takes on each grid."""
    fastest = {grid: _fastest_forward(results, grid) for grid in results.grids}
    headings = ["forward, times the fastest", *map(grid_name, results.grids)]
    lines = []
    for name in results.operators:
        found = results.costs[name]
        absent = _NONE if found else _MISSING
        multiples = [f"{found[g].forward / fastest[g]:.2f}" if g in found else absent for g in results.grids]
        lines.append([name, *multiples])
    absolute = [_digits(1e3 * value) if math.isfinite(value) else _NONE for value in fastest.values()]
    return markdown_table(headings, [*lines, ["the fastest takes [ms per sample]", *absolute]])


def spectrum_table(results: Results) -> str:
    """The wavenumbers from which on the error has so much of the reference's power."""
    headings = [
        "operator",
        *(f"error of {100 * share:g} % of the power from [cycles/m]" for share in _SHARES),
    ]
    lines = []
    for name in ranked(results):
        found = mean_spectrum(results.rows[name])
        if found is not None:
            lines.append(
                [name, *(_first_above(found.wavenumber, error_over_reference(found), s) for s in _SHARES)]
            )
    return markdown_table(headings, lines)


def error_cell(errors: Sequence[float], seeds: int) -> str:
    """Mean and sample standard deviation over seeds in percent, and of how many seeds if some are missing.

    Args:
        errors: that are there.
        seeds: that there will be.
    """
    if not errors:
        return _MISSING
    missing = f" ({len(errors)} of {seeds} seeds)" if len(errors) < seeds else ""
    diverged = sum(not math.isfinite(error) for error in errors)
    if diverged:
        return ("∞" if len(errors) == 1 else f"∞ with {diverged} of {len(errors)} seeds") + missing
    mean = float(np.mean(errors))
    if len(errors) == 1:
        return _percent(mean) + missing
    return f"{_percent(mean)} ± {100.0 * np.std(errors, ddof=1):.{_decimals(mean)}f}{missing}"


def interval_cell(errors: Sequence[float]) -> str:
    """Geometric mean over seeds in percent, and where Student's 95 % interval of it ends."""
    if not errors:
        return _MISSING
    mean, low, high = geometric_mean(errors)
    return _percent(mean) if math.isnan(low) else f"{_percent(mean)} ({_percent(low)} to {_percent(high)})"


def _problem(directory: Path, results: Results) -> list[str]:
    """The sections of a problem, and its figures."""
    sections = [f"## {results.name}", _caption(results), main_table(results)]
    rows = [row for rows in results.rows.values() for row in rows]

    def draw(kind: str, what: str, make: Callable[[Results], Figure]) -> str:
        name = f"{results.name}_{kind}.png"
        make(results).savefig(directory / name)
        return f"![{what}]({name})"

    if results.errors and results.own_costs:
        sections.append(draw("accuracy", "error against parameters, time and memory", figures.accuracy))
    if rows:
        sections += [
            "### Over the samples",
            "Errors in percent, means over the seeds.",
            sample_table(results),
        ]
    if any(row.by_frame for row in rows):
        text = f"Test samples of {results.tested_families[0]}; bands go from the best seed to the worst."
        sections += ["### Frame by frame", text, draw("frames", "error over frames", figures.frames)]
    if len(results.grids) > 1 and (rows or results.own_costs):
        sections += ["### Other grids", *_grids(results)]
        sections.append(draw("grids", "error and cost against the size of the grid", figures.grids))
    if any(row.spectrum is not None for row in rows):
        sections += ["### Spectra", _spectra(results), spectrum_table(results)]
        sections.append(draw("spectra", "spectra of the errors", figures.spectra))
    return sections


def _caption(results: Results) -> str:
    """How the main table is to be read."""
    parts = [
        f"Error: {figures.metric_title(results.metric)}, the mean over the test samples; mean ± sample "
        "standard deviation over the seeds. Sorted by the geometric mean, which is what is tested too."
        if results.metric
        else "No row is there yet."
    ]
    p_values = compare_with_best(results.errors).values()
    if any(not math.isnan(value) for value in p_values):
        parts.append(
            "p: Welch's t-test of the logarithms of the errors against the best operator, corrected by "
            f"Holm's method; bold: the best, and what cannot be told from it at {100 * LEVEL:g} %."
        )
    else:
        parts.append("Nothing is tested: that takes two operators with two seeds each.")
    if any(not math.isfinite(error) for errors in results.errors.values() for error in errors):
        parts.append("∞: the training diverged, or an answer on the test samples was not finite.")
    if own := results.own_costs:
        parts.append(_times_caption(results, own))
    return " ".join(parts)


def _times_caption(results: Results, own: Mapping[str, Cost]) -> str:
    """What the multiples of the main table are multiples of."""
    quick = min(own, key=lambda name: own[name].forward)
    text = f"Fastest forward: {quick}, {_digits(1e3 * own[quick].forward)} ms per sample."
    steps = {name: cost.step for name, cost in own.items() if cost.step is not None}
    if steps:
        quick = min(steps, key=steps.__getitem__)
        batch = results.problem.budget.batch_size
        text += f" Fastest training step: {quick}, {_digits(1e3 * steps[quick])} ms for a batch of {batch}."
    devices = ", ".join(dict.fromkeys(cost.device for cost in own.values()))
    return f"{text} Timed on {devices}; only the ratios compare, which were measured in turn."


def _grids(results: Results) -> list[str]:
    """Text and tables about other grids."""
    sections = []
    if results.problem.grids and results.errors:
        count = results.problem.grid_samples
        sections += [
            "Errors in percent without further training: on the grid that was trained on with all test "
            f"samples, on the others with {count} of each family. {_NONE}: the operator cannot.",
            grid_table(results),
        ]
    if any(results.costs.values()):
        sections += [
            f"What it costs there. {_NONE}: the operator cannot, or was not measured where it takes too much "
            "memory.",
            *(count_table(results, measure) for measure in (figures.GFLOP, figures.MEMORY)),
            time_table(results),
        ]
    return sections


def _spectra(results: Results) -> str:
    channel = PROBLEMS[results.problem.data.problem].outputs[0].name
    moment = " in the last frame" if results.problem.history else ""
    return (
        f"Power spectra of {channel}{moment}, averaged over directions, the test samples of "
        f"{results.tested_families[0]} and the seeds that did not diverge. An error of 100 % of the "
        "reference's power is that of answering zero there. The largest wavenumber that the grid holds along "
        f"both axes (Nyquist) is {_digits(figures.nyquist(results))} cycles/m."
    )


def _cost_cells(results: Results, name: str) -> list[str]:
    """Parameters, arithmetic, memory, step and forward of an operator on its own grid."""
    own = results.own_costs
    cost = own.get(name)
    parameters = f"{results.parameters[name]:,}" if name in results.parameters else _MISSING
    if cost is None:
        return [parameters, *[_MISSING] * 4]
    step = min((one.step for one in own.values() if one.step is not None), default=math.nan)
    return [
        parameters,
        _digits(figures.GFLOP.of(cost)),
        _digits(figures.MEMORY.of(cost)),
        _MISSING if cost.step is None else f"{cost.step / step:.2f}",
        f"{cost.forward / _fastest_forward(results, results.grid):.2f}",
    ]


def _fastest_forward(results: Results, grid: Grid) -> float:
    times = [costs[grid].forward for costs in results.costs.values() if grid in costs]
    return min(times, default=math.nan)


def _errors_on(results: Results, name: str, grid: Grid) -> str:
    errors = results.errors_on(name, grid)
    known = [error for error in errors if error is not None]
    return _NONE if len(known) < len(errors) else error_cell(known, len(results.seeds))


def _mean_statistic(rows: Sequence[Row], family: str, name: str) -> str:
    """In percent; infinite if one of the trainings diverged."""
    values = [row.errors.get(family, {}).get(name, math.inf) for row in rows if _says(row, family, name)]
    return _percent(float(np.mean(values))) if values else _NONE


def _says(row: Row, family: str, name: str) -> bool:
    return name in row.errors.get(family, {}) or not math.isfinite(row.error)


def _power(values: Mapping[Grid, float]) -> str:
    """By how much a quantity grows from the smallest grid to the largest."""
    grids = sorted(values, key=cells)
    if len(grids) < 2 or cells(grids[0]) == cells(grids[-1]) or min(values.values()) <= 0.0:
        return _NONE
    low, high = grids[0], grids[-1]
    return f"{math.log(values[high] / values[low]) / math.log(cells(high) / cells(low)):.2f}"


def _first_above(wavenumber: Sequence[float], shares: NDArray[np.float64], share: float) -> str:
    above = np.flatnonzero(shares >= share)
    return _digits(wavenumber[above[0]]) if len(above) else "nowhere"


def _rates(rows: Sequence[Row]) -> str:
    rates = sorted({row.learning_rate for row in rows if row.learning_rate is not None})
    return " / ".join(f"{rate:g}" for rate in rates) or _MISSING


def _p_value(value: float) -> str:
    if math.isnan(value):
        return _NONE
    return "< 0.001" if value < 0.001 else f"{value:.2g}"


def _percent(value: float) -> str:
    """Three digits of a fraction in percent."""
    return "∞" if not math.isfinite(value) else f"{100.0 * value:.{_decimals(value)}f}"


def _decimals(fraction: float) -> int:
    """How many decimals the percent take to have three digits."""
    return 2 if fraction <= 0.0 else max(0, 2 - math.floor(math.log10(100.0 * fraction)))


def _digits(value: float) -> str:
    """Three digits, but never 1.23e+03."""
    return f"{float(f'{value:.3g}'):,.10g}"


def _counted(noun: str, items: Sequence[object]) -> str:
    return noun if len(items) == 1 else f"{noun}s"


def _row_record(row: Row) -> dict[str, Any]:
    """A row of numbers and names; spectra are left to the rows' own files."""
    record = row.model_dump(exclude={"errors", "by_frame", "elsewhere", "spectrum"})
    record |= {f"{family}.{name}": v for family, found in row.errors.items() for name, v in found.items()}
    record |= {f"frame_{number}": value for number, value in enumerate(row.by_frame, 1)}
    return record | {f"elsewhere.{grid}": value for grid, value in row.elsewhere.items()}


def _cost_record(cost: Cost) -> dict[str, Any]:
    ny, nx = cost.grid
    return {**cost.model_dump(exclude={"grid"}), "cells_y": ny, "cells_x": nx}


def _write_csv(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """One line for each record under the names of all of them; what one has not is left empty."""
    names = list(dict.fromkeys(name for record in records for name in record))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
