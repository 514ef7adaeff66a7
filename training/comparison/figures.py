"""Figures of a comparison: error against cost, over wavenumbers, grids and frames."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from problems import PROBLEMS
from training.comparison.config import Grid, grid_name
from training.comparison.costs import Cost
from training.comparison.results import (
    Results,
    cells,
    error_over_reference,
    mean_spectrum,
)
from training.comparison.rows import Row
from training.pictures import COLORS
from training.pictures_trajectories import DPI, METRIC_TITLES, plain, squared

Line = str | tuple[int, tuple[int, ...]]
Numbers = Sequence[float] | NDArray[np.float64] | NDArray[np.int64]

# their numbers have no common divisor with that of the colors: 78 pairs
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h", "d")
_LINES: tuple[Line, ...] = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (3, 1)))
_BASELINE_COLOR, _REFERENCE_COLOR = "#718096", "#1a202c"
_BASELINE_LINES: tuple[Line, ...] = (":", (0, (1, 3)), (0, (6, 3)))
_LEGEND_COLUMNS = 5
# times the greatest error of an operator
_FAR = 3.0
# what ticks may be at, from few to many
_SUBDIVISIONS = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), tuple(float(digit) for digit in range(1, 10)))
_FEWEST_TICKS = 3


class Style(NamedTuple):
    """How an operator is drawn in every figure of a comparison."""

    color: str
    marker: str
    line: Line


class Measure(NamedTuple):
    """A quantity of a cost, and what an axis says about it."""

    title: str
    of: Callable[[Cost], float]


PARAMETERS = Measure("parameters", lambda cost: cost.parameters)
GFLOP = Measure("arithmetic [GFLOP per sample]", lambda cost: cost.flops / 1e9)
FORWARD = Measure("forward [ms per sample]", lambda cost: 1e3 * cost.forward)
MEMORY = Measure("held for the pass back [MB per sample]", lambda cost: cost.activations / 1e6)


def styles(operators: Sequence[str]) -> dict[str, Style]:
    """A color, a marker and a line for each operator, by its place in the comparison."""
    return {
        name: Style(
            COLORS[number % len(COLORS)], _MARKERS[number % len(_MARKERS)], _LINES[number % len(_LINES)]
        )
        for number, name in enumerate(operators)
    }


def accuracy(results: Results) -> Figure:
    """Error against parameters, time and memory; bars go from the best seed to the worst."""
    figure, panels = _figure(1, 3, (12.5, 4.9), sharey=True)
    costs, errors = results.own_costs, results.errors
    # baselines may be so far off that the operators would have no room left
    top = _FAR * max(
        (error for found in errors.values() for error in found if math.isfinite(error)), default=0.0
    )
    for axes, measure in zip(panels, (PARAMETERS, FORWARD, MEMORY), strict=True):
        for name, style in styles(results.operators).items():
            if name in costs and name in errors:
                _point(axes, measure.of(costs[name]), errors[name], style, _label(results, name))
        for row, line in _baselines(results):
            if row.error <= top:
                axes.axhline(row.error, color=_BASELINE_COLOR, linestyle=line, zorder=0, label=row.operator)
        plain(axes, measure.title, "")
        log_axis(axes.xaxis, plain_number)
    log_axis(panels[0].yaxis, percent)
    above = [
        f"{row.operator} ({percent(float(f'{row.error:.2g}'))})"
        for row, _ in _baselines(results)
        if row.error > top
    ]
    if above:
        panels[0].set_title(f"far above: {', '.join(above)}", fontsize=9, loc="left")
    panels[0].set_ylabel(_error_title(results), fontsize=9)
    _legend(figure, panels[:1])
    return figure


def spectra(results: Results) -> Figure:
    """Power of the error of each operator, and its share of the reference's, over wavenumbers."""
    figure, (left, right) = _figure(1, 2, (12.0, 5.2))
    channel = PROBLEMS[results.problem.data.problem].outputs[0]
    for name, style in styles(results.operators).items():
        found = mean_spectrum(results.rows[name])
        if found is None:
            continue
        if not left.lines:
            reference = _drawable(found.reference)
            left.plot(found.wavenumber, reference, color=_REFERENCE_COLOR, lw=2.2, label="reference")
        for axes, power in ((left, np.asarray(found.error)), (right, error_over_reference(found))):
            _curve(axes, found.wavenumber, power, style, _label(results, name))
    for row, line in _baselines(results):
        found = mean_spectrum([row])
        if found is not None:
            for axes, power in ((left, np.asarray(found.error)), (right, error_over_reference(found))):
                _gray(axes, found.wavenumber, power, line, row.operator)
    right.axhline(1.0, color=_REFERENCE_COLOR, lw=1.0)
    for axes, title in (
        (left, f"power per mode, {squared(channel)}"),
        (right, "power of the error / power of the reference"),
    ):
        axes.set(xscale="log", yscale="log")
        plain(axes, "wavenumber [cycles/m]", title)
        _mark_nyquist(axes, nyquist(results))
    _legend(figure, (left,))
    return figure


def grids(results: Results) -> Figure:
    """Error, arithmetic, memory and time of each operator against the size of the grid.

    The error alone where no cost was measured yet.
    """
    measures = (GFLOP, MEMORY, FORWARD) if any(results.costs.values()) else ()
    size = (2, 2, (11.0, 8.2)) if measures else (1, 1, (7.5, 5.0))
    figure, panels = _figure(*size, sharex=True)
    error, *others = panels
    for name, style in styles(results.operators).items():
        known = {grid: _mean(results.errors_on(name, grid)) for grid in results.grids}
        label = _label(results, name)
        _over_grids(error, known, style, label)
        for axes, measure in zip(others, measures, strict=True):
            found = {grid: measure.of(cost) for grid, cost in results.costs[name].items()}
            _over_grids(axes, found, style, label)
    titles = [_error_title(results), *(measure.title for measure in measures)]
    for number, (axes, title) in enumerate(zip(panels, titles, strict=True)):
        plain(axes, "grid" if number > 1 or not measures else "", title)
        axes.axvline(_side(results.grid), color=_BASELINE_COLOR, lw=1.0, linestyle=":", zorder=0)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator([_side(grid) for grid in results.grids]))
        axes.xaxis.set_minor_locator(NullLocator())
        names = {_side(grid): grid_name(grid) for grid in results.grids}
        axes.xaxis.set_major_formatter(FuncFormatter(lambda side, _, names=names: names.get(side, "")))
        log_axis(axes.yaxis, plain_number if number else percent)
    error.set_title("dotted: the grid that was trained on", fontsize=9)
    _legend(figure, panels)
    return figure


def frames(results: Results) -> Figure:
    """Error of each predicted frame: mean over the seeds, and from the best to the worst."""
    figure, (axes,) = _figure(1, 1, (8.2, 5.4))
    for name, style in styles(results.operators).items():
        found = [row.by_frame for row in results.rows[name] if row.by_frame]
        if found:
            values = np.asarray(found)
            number = 1 + np.arange(values.shape[1])
            _curve(axes, number, values.mean(axis=0), style, _label(results, name))
            low, high = _drawable(values.min(axis=0)), _drawable(values.max(axis=0))
            axes.fill_between(number, low, high, color=style.color, alpha=0.12, linewidth=0)
    for row, line in _baselines(results):
        _gray(axes, 1 + np.arange(len(row.by_frame)), row.by_frame, line, row.operator)
    plain(axes, "predicted frame", _error_title(results))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    log_axis(axes.yaxis, percent)
    _legend(figure, (axes,), columns=4)
    return figure


def nyquist(results: Results) -> float:
    """The largest wavenumber that the grid can hold along both axes [1/m]."""
    (ny, nx), (ly, lx) = results.grid, results.problem.data.extent
    return min(ny / ly, nx / lx) / 2.0


def log_axis(axis: XAxis | YAxis, text: Callable[[float], str]) -> None:
    """A logarithmic axis, with some labels however short it is; one without ticks if it shows nothing.

    Args:
        axis: to which all that it shows has been added.
        text: of a label.
    """
    if not math.isfinite(axis.get_minpos()):
        axis.set_ticks([])
        return
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = axis.get_view_interval()
    for subdivision in _SUBDIVISIONS:
        every = [digit * 10.0**power for power in range(-12, 16) for digit in subdivision]
        ticks = [tick for tick in every if low <= tick <= high]
        if len(ticks) >= _FEWEST_TICKS and ticks[-1] / ticks[0] >= math.sqrt(high / low):
            axis.set_major_locator(LogLocator(subs=subdivision))
            break
    else:
        axis.set_major_locator(MaxNLocator(nbins=5))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_formatter(NullFormatter())


def plain_number(value: float) -> str:
    """Such as 0.3, 20, 50 k."""
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def percent(fraction: float) -> str:
    """Such as 0.5 %."""
    return f"{100.0 * fraction:g} %"


def _figure(
    rows: int, columns: int, size: tuple[float, float], sharex: bool = False, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey).ravel())


def _point(axes: Axes, x: float, errors: Sequence[float], style: Style, label: str) -> None:
    """A marker at the mean of the errors that are finite, with a bar from the least to the greatest."""
    finite = [error for error in errors if math.isfinite(error)]
    middle = float(np.mean(finite)) if finite else math.nan
    bar = [[middle - min(finite)], [max(finite) - middle]] if finite else None
    axes.errorbar(
        [x],
        [middle],
        yerr=bar,
        fmt=style.marker,
        color=style.color,
        markersize=_size(style, 8.0),
        markeredgecolor="white",
        markeredgewidth=0.6,
        elinewidth=1.4,
        capsize=3,
        label=label,
    )


def _baselines(results: Results) -> Iterator[tuple[Row, Line]]:
    """What was not trained, and how it is drawn: gray, in a line of its own."""
    for number, row in enumerate(results.baselines.values()):
        yield row, _BASELINE_LINES[number % len(_BASELINE_LINES)]


def _gray(axes: Axes, x: Numbers, y: Numbers, line: Line, label: str) -> None:
    axes.plot(x, _drawable(y), color=_BASELINE_COLOR, linestyle=line, lw=1.4, zorder=0, label=label)


def _curve(axes: Axes, x: Numbers, y: Numbers, style: Style, label: str) -> None:
    """A line with some markers."""
    axes.plot(
        x,
        _drawable(y),
        color=style.color,
        linestyle=style.line,
        lw=1.4,
        marker=style.marker,
        markersize=_size(style, 5.5),
        markevery=max(1, len(x) // 8),
        markeredgecolor="white",
        markeredgewidth=0.4,
        label=label,
    )


def _over_grids(axes: Axes, values: Mapping[Grid, float], style: Style, label: str) -> None:
    known = sorted((grid for grid, value in values.items() if math.isfinite(value)), key=cells)
    _curve(axes, [_side(grid) for grid in known], [values[grid] for grid in known], style, label)


def _mark_nyquist(axes: Axes, limit: float) -> None:
    axes.axvline(limit, color=_BASELINE_COLOR, lw=1.0, linestyle="--")
    axes.set_xlim(right=1.25 * limit)
    # no curve goes beyond the line
    place = axes.get_xaxis_transform()
    axes.text(1.03 * limit, 0.5, "Nyquist", va="center", rotation=90, fontsize=8, transform=place)


def _size(style: Style, size: float) -> float:
    """Stars look smaller than they are."""
    return 1.5 * size if style.marker == "*" else size


def _legend(figure: Figure, panels: Iterable[Axes], columns: int = _LEGEND_COLUMNS) -> None:
    """Below all panels, where nothing is drawn; every name once."""
    found: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        figure.legend(
            list(found.values()),
            list(found),
            loc="outside lower center",
            ncols=columns,
            frameon=False,
            fontsize=9,
        )


def _label(results: Results, name: str) -> str:
    errors = results.errors.get(name, [])
    diverged = sum(not math.isfinite(error) for error in errors)
    return f"{name} (∞ in {diverged} of {len(errors)})" if diverged else name


def _error_title(results: Results) -> str:
    return metric_title(results.metric)


def metric_title(metric: str) -> str:
    """What a metric is called in a figure and above a table."""
    return METRIC_TITLES.get(metric, metric.replace("_", " "))


def _mean(errors: Sequence[float | None]) -> float:
    """Over the seeds; not a number where there are none."""
    known = [error for error in errors if error is not None]
    return float(np.mean(known)) if known else math.nan


def _drawable(values: Numbers) -> NDArray[np.float64]:
    """What has a logarithm."""
    array = np.asarray(values, np.float64)
    return np.where(np.isfinite(array) & (array > 0.0), array, np.nan)


def _side(grid: Grid) -> float:
    """Cells along the side of a square of as many cells."""
    return math.sqrt(cells(grid))
