"""Pictures of rollouts: errors over time, spectra, and fields beside their reference."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from problems import EVOLUTION_PROBLEMS, FieldSpec, Grid
from training.metrics import quantile
from training.pictures import COLORS, percent_scale
from training.trajectory_evaluation import Kept, TrajectoryEvaluation
from training.trajectory_metrics import DEPTH, headline

DPI = 130
# what the headline metrics are called on an axis
METRIC_TITLES = {
    "perturbation_l2": "L2 error of the depth / perturbation",
    "relative_l2": "relative L2 error",
    "nrmse": "RMSE / rms of the reference",
}
_STYLES = ("--", "-.", ":", (0, (1, 3)), (0, (5, 1, 1, 1, 1, 1)))
_REFERENCE_COLOR, _ERROR_COLOR = "#1a202c", "#c53030"
# times in a picture of a rollout
_ROWS = 4


class Scales(NamedTuple):
    """How the values of a field and of its error become colors."""

    values: Normalize
    colors: str
    errors: Normalize


def error_over_time(evaluations: Sequence[TrajectoryEvaluation]) -> Figure:
    """The headline error of every forecast, and the error of each channel of the first one, over time."""
    model = evaluations[0]
    figure = Figure(figsize=(12.0, 4.4), dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    metric = headline(model.problem)
    _band(left, model, model.curves[metric], COLORS[0], f"{model.forecast}, median and 10-90 %")
    for color, style, other in zip(COLORS[1:], _STYLES, evaluations[1:], strict=False):
        median = other.per_frame(metric, 0.5)
        left.plot(other.times, median, linestyle=style, color=color, label=f"{other.forecast}, median")
    for color, channel, spec in zip(COLORS, range(len(model.names)), _specs(model), strict=False):
        label = f"{spec.symbol}, {spec.description}"
        _band(right, model, model.curves["nrmse"][..., channel], color, label)
    for axes, name in ((left, metric), (right, "nrmse")):
        percent_scale(axes.yaxis)
        plain(axes, "time [s]", METRIC_TITLES[name])
        axes.set_xlim(model.start, float(model.times[-1]))
        _legend_below(axes)
    left.set_title("all forecasts" if len(evaluations) > 1 else model.forecast, fontsize=10)
    right.set_title(f"{model.forecast}, each channel, median and 10-90 %", fontsize=10)
    return figure


def spectra(evaluation: TrajectoryEvaluation) -> Figure:
    """Power spectra of reference, prediction and error at some times (columns) for each channel (rows)."""
    found = evaluation.spectra
    rows, columns = len(evaluation.names), len(found.frames)
    size = 3.0 * columns + 0.6, 2.6 * rows + 0.5
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    every = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey="row")
    for channel, spec in enumerate(_specs(evaluation)):
        for column, frame in enumerate(found.frames):
            axes = every[channel, column]
            lines = (
                (found.reference, _REFERENCE_COLOR, "-", "reference"),
                (found.predicted, COLORS[1], "--", evaluation.forecast),
                (found.error, _ERROR_COLOR, ":", "error"),
            )
            for power, color, style, label in lines:
                # an error of zero has no logarithm
                values = np.where(power[column, channel] > 0, power[column, channel], np.nan)
                axes.loglog(found.wavenumber, values, style, color=color, linewidth=1.4, label=label)
            plain(axes, "", "")
            if channel == 0:
                axes.set_title(f"t = {evaluation.times[frame]:.3g} s", fontsize=10)
            if channel == rows - 1:
                axes.set_xlabel("wavenumber [cycles/m]", fontsize=9)
        every[channel, 0].set_ylabel(f"power per mode, {squared(spec)}", fontsize=9)
    every[0, 0].legend(frameon=False, fontsize=8)
    return figure


def rollout(evaluation: TrajectoryEvaluation, kept: Kept, channel: int) -> Figure:
    """Reference, prediction and error of one channel at some times, a row each."""
    frames = _chosen_frames(len(evaluation.times))
    figure = Figure(figsize=(10.4, 2.75 * len(frames) + 0.5), dpi=DPI, layout="constrained")
    spec = _specs(evaluation)[channel]
    figure.suptitle(f"{field_title(spec)}, sample {kept.index}", fontsize=11)
    rows = figure.subplots(len(frames), 3, squeeze=False)
    for axes, frame in zip(rows, frames, strict=True):
        fields = kept.reference[frame, channel], kept.predicted[frame, channel]
        panels(axes, fields, evaluation, scales(*fields))
        axes[0].set_ylabel(f"t = {evaluation.times[frame]:.3g} s\n\ny [m]", fontsize=9)
        axes[2].set_title(error_title(evaluation, kept, frame, channel), fontsize=9)
    for axes in rows[:-1].ravel():
        axes.set_xlabel("")
    for axes in rows[1:, :2].ravel():
        axes.set_title("")
    return figure


def panels(
    axes: Sequence[Axes],
    fields: tuple[NDArray[np.float32], NDArray[np.float32]],
    evaluation: TrajectoryEvaluation,
    chosen: Scales,
) -> list[AxesImage]:
    """Draw reference, prediction and error; the first two share their color bar."""
    reference, predicted = fields
    figure = axes[0].figure
    images = [
        _field(axes[0], reference, evaluation.grid, "reference", chosen.colors, chosen.values),
        _field(axes[1], predicted, evaluation.grid, evaluation.forecast, chosen.colors, chosen.values),
        _field(axes[2], predicted - reference, evaluation.grid, "error", "RdBu_r", chosen.errors),
    ]
    for image, beside in ((images[1], list(axes[:2])), (images[2], [axes[2]])):
        bar = figure.colorbar(image, ax=beside, shrink=0.95, pad=0.015, aspect=18)
        bar.ax.tick_params(labelsize=8)
    for other in axes[1:]:
        other.tick_params(labelleft=False)
    axes[0].set_ylabel("y [m]", fontsize=9)
    return images


def scales(reference: NDArray[np.float32], predicted: NDArray[np.float32]) -> Scales:
    """One scale for reference and prediction; symmetric ones for errors and for fields of both signs."""
    error = _bound(np.subtract(predicted, reference, dtype=np.float64))
    low, high = float(reference.min()), float(reference.max())
    if low < 0.0 < high:
        bound = _bound(reference)
        return Scales(Normalize(-bound, bound), "PuOr_r", Normalize(-error, error))
    if low == high:
        low, high = low - 0.5, high + 0.5
    return Scales(Normalize(low, high), "viridis", Normalize(-error, error))


def field_title(spec: FieldSpec) -> str:
    """Description, symbol and unit of a field."""
    unit = "" if spec.unit == "1" else f" [{_typeset(spec.unit)}]"
    return f"{spec.description}, {spec.symbol}{unit}"


def error_title(evaluation: TrajectoryEvaluation, kept: Kept, frame: int, channel: int) -> str:
    """What the error of one channel of a frame amounts to."""
    if evaluation.names[channel] == DEPTH and "perturbation_l2" in evaluation.curves:
        fraction, of = evaluation.curves["perturbation_l2"][kept.index, frame], "of the perturbation"
    else:
        fraction, of = evaluation.curves["nrmse"][kept.index, frame, channel], "in L2"
    # two digits, but never 1.4e+02
    return f"error, {float(f'{100.0 * fraction:.2g}'):g} % {of}"


def plain(axes: Axes, xlabel: str, ylabel: str) -> None:
    """Axes with a faint grid, two spines and small labels."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.set_xlabel(xlabel, fontsize=9)
    axes.set_ylabel(ylabel, fontsize=9)


def squared(spec: FieldSpec) -> str:
    """The square of a field, with its unit."""
    if spec.unit == "1":
        return f"{spec.symbol}²"
    return f"{spec.symbol}² [{f'({_typeset(spec.unit)})' if '/' in spec.unit else spec.unit}²]"


def _specs(evaluation: TrajectoryEvaluation) -> list[FieldSpec]:
    specs = {spec.name: spec for spec in EVOLUTION_PROBLEMS[evaluation.problem].outputs}
    return [specs[name] for name in evaluation.names]


def _field(
    axes: Axes, field: NDArray[np.float32], grid: Grid, title: str, colors: str, scale: Normalize
) -> AxesImage:
    (y, x), (ly, lx) = grid.origin, grid.extent
    image = axes.imshow(
        field, cmap=colors, norm=scale, origin="lower", extent=(x, x + lx, y, y + ly), aspect="equal"
    )
    axes.set_title(title, fontsize=9)
    axes.set_xticks([x, x + lx / 2, x + lx])
    axes.set_yticks([y, y + ly / 2, y + ly])
    axes.tick_params(labelsize=8)
    axes.set_xlabel("x [m]", fontsize=9, labelpad=1)
    return image


def _band(
    axes: Axes, evaluation: TrajectoryEvaluation, curve: NDArray[np.float64], color: str, label: str
) -> None:
    """Median over the samples, and where 80 % of them are."""
    low, median, high = (quantile(curve, fraction) for fraction in (0.1, 0.5, 0.9))
    axes.fill_between(evaluation.times, low, high, color=color, alpha=0.2, linewidth=0)
    axes.plot(evaluation.times, median, color=color, linewidth=1.8, label=label)


def _legend_below(axes: Axes) -> None:
    """Under the axes, where no curve can be."""
    axes.legend(
        frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, borderaxespad=0.0
    )


def _chosen_frames(count: int) -> list[int]:
    """The first frame, the last one and some between."""
    return list(dict.fromkeys(int(frame) for frame in np.linspace(0, count - 1, _ROWS).round()))


def _bound(values: NDArray[np.floating]) -> float:
    """Largest size, but not zero or infinity."""
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max(initial=0.0)) or 1.0


def _typeset(unit: str) -> str:
    return unit.replace("^2", "²")
