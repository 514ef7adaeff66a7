"""Pictures of fields, errors and training curves."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from problems import FieldSpec
from problems.darcy import PERMEABILITY, PRESSURE
from training.dataset import Dataset
from training.evaluate import Evaluation
from training.journal import Line

_DPI = 150
# above this contrast a linear scale shows nothing of the low permeabilities
_LOGARITHMIC_CONTRAST = 20.0
# of lines and markers, in every picture of this package
COLORS = ("#2b6cb0", "#dd6b20", "#2f855a", "#805ad5", "#c53030", "#4a5568")


def samples(evaluation: Evaluation, count: int) -> Figure:
    """Permeability, pressure, reference and error of ``count`` samples, from a good one to a bad one."""
    errors = evaluation.scores["relative_l2"]
    ranks = np.linspace(0.0, 1.0, count + 2)[1:-1] * (len(errors) - 1)
    chosen = np.argsort(errors)[np.round(ranks).astype(int)]
    figure = Figure(figsize=(13.0, 3.0 * count), dpi=_DPI, layout="constrained")
    rows = figure.subplots(count, 4, squeeze=False)
    for axes, index in zip(rows, chosen, strict=True):
        _sample(list(axes), evaluation, int(index))
        axes[0].set_ylabel("y [m]", fontsize=8, labelpad=1)
        for other in axes[1:]:
            other.tick_params(labelleft=False)
    return figure


def _sample(axes: Sequence[Axes], evaluation: Evaluation, index: int) -> None:
    dataset = evaluation.dataset
    permeability = dataset.permeability[index, 0]
    predicted, reference = evaluation.predicted[index, 0], dataset.pressure[index, 0]
    error = predicted - reference
    pressures = Normalize(0.0, float(max(predicted.max(), reference.max())))
    errors = Normalize(-float(np.abs(error).max()), float(np.abs(error).max()))
    percent = 100.0 * evaluation.scores["relative_l2"][index]
    _field(axes[0], permeability, dataset, _title(PERMEABILITY), "cividis", _scale_of(permeability))
    _field(axes[1], predicted, dataset, _title(PRESSURE, ", surrogate"), "magma", pressures)
    _field(axes[2], reference, dataset, _title(PRESSURE, ", reference"), "magma", pressures)
    _field(axes[3], error, dataset, f"error [{PRESSURE.unit}], {percent:.2g} % in L2", "RdBu_r", errors)


def _title(spec: FieldSpec, remark: str = "") -> str:
    return f"{spec.name}{remark} [{spec.unit.replace('^2', '²')}]"


def _field(
    axes: Axes, field: NDArray[np.float32], dataset: Dataset, title: str, colors: str, scale: Normalize
) -> None:
    ly, lx = dataset.extent
    image = axes.imshow(field, cmap=colors, norm=scale, origin="lower", extent=(0.0, lx, 0.0, ly))
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.92, pad=0.02)
    bar.ax.tick_params(labelsize=8)
    axes.set_title(title, fontsize=10)
    axes.set_xticks([0.0, lx / 2, lx])
    axes.set_yticks([0.0, ly / 2, ly])
    axes.tick_params(labelsize=8)
    axes.set_xlabel("x [m]", fontsize=8, labelpad=1)


def _scale_of(permeability: NDArray[np.float32]) -> Normalize:
    low, high = float(permeability.min()), float(permeability.max())
    return LogNorm(low, high) if high > _LOGARITHMIC_CONTRAST * low else Normalize(low, high)


def error_histogram(evaluations: Mapping[str, Evaluation]) -> Figure:
    """Distribution of the relative L2 errors of each family."""
    figure, axes = _figure()
    every = np.concatenate([evaluation.scores["relative_l2"] for evaluation in evaluations.values()])
    bins = np.geomspace(every.min() * 0.95, every.max() * 1.05, 41)
    for color, (family, evaluation) in zip(_cycled(evaluations), evaluations.items(), strict=True):
        errors = evaluation.scores["relative_l2"]
        label = f"{family}, median {100.0 * np.median(errors):.2g} %"
        axes.hist(errors, bins.tolist(), histtype="stepfilled", alpha=0.15, color=color)
        axes.hist(errors, bins.tolist(), histtype="step", linewidth=1.5, color=color, label=label)
        axes.axvline(float(np.median(errors)), color=color, linewidth=1.5, linestyle=":")
    percent_scale(axes.xaxis)
    axes.set_xlabel("relative L2 error")
    axes.set_ylabel("samples")
    axes.legend(framealpha=0.9, edgecolor="none")
    return figure


def error_over_contrast(evaluations: Mapping[str, Evaluation]) -> Figure:
    """Relative L2 error of each sample over the contrast of its permeability."""
    figure, axes = _figure()
    for color, (family, evaluation) in zip(_cycled(evaluations), evaluations.items(), strict=True):
        axes.scatter(
            evaluation.dataset.contrast,
            evaluation.scores["relative_l2"],
            12,
            color,
            alpha=0.6,
            lw=0,
            label=family,
        )
    axes.set_xscale("log")
    percent_scale(axes.yaxis)
    axes.set_xlabel("contrast of the permeability, max a / min a")
    axes.set_ylabel("relative L2 error")
    axes.legend(frameon=False)
    return figure


def training_curves(lines: Sequence[Line]) -> Figure:
    """Training loss, and the validation errors of the averaged weights."""
    figure, axes = _figure()
    losses = [line for line in lines if "loss" in line]
    axes.plot(
        _column(losses, "step"),
        _column(losses, "loss"),
        color="#a0aec0",
        linewidth=1.0,
        label="training loss",
    )
    validations = [line for line in lines if "loss" not in line]
    names = [name for name in (validations[0] if validations else {}) if name != "step"]
    families = list(dict.fromkeys(name.partition(".")[0] for name in names))
    for name in names:
        family, _, metric = name.partition(".")
        style = "-" if metric.startswith("relative_l2") else "--"
        color = COLORS[families.index(family) % len(COLORS)]
        label = f"{family}, {metric.replace('_', ' ').replace(' median', ' (median)')}"
        axes.plot(_column(validations, "step"), _column(validations, name), style, color=color, label=label)
    percent_scale(axes.yaxis)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, relative error")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.5, 4.2), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def percent_scale(axis: XAxis | YAxis) -> None:
    """A logarithmic axis of fractions, labelled 1 %, 2 %, 5 %, 10 %."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100.0 * value:g} %"))
    axis.set_minor_formatter(NullFormatter())


def _cycled(items: Mapping[str, object]) -> list[str]:
    return [COLORS[number % len(COLORS)] for number in range(len(items))]


def _column(lines: Sequence[Line], name: str) -> list[float]:
    return [line[name] for line in lines]
