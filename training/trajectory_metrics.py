"""Error metrics of trajectories [sample frame channel y x], predicted frames only, in float64.

``curves`` measures every frame, ``scores`` sums a trajectory up in one number per sample. RMSE, nRMSE, cRMSE,
bRMSE and fRMSE are PDEBench's (Takamoto et al. 2022), averaged over samples rather than over batches. An
error that is not a number counts as infinite: whoever predicts NaN is wrong, not absent.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64
from numpy.typing import NDArray

from problems import EVOLUTION_PROBLEMS, EvolutionProblem
from training.field_metrics import (
    BANDS,
    band_root_mean_squares,
    edge_root_mean_square,
    largest,
    mean_size,
    root_mean_square,
)
from training.metrics import STATISTICS, PerSample, summary

Frames = Float[np.ndarray, "sample frame channel y x"]
Depth = Float[np.ndarray, "sample frame y x"]
PerFrame = Float64[np.ndarray, "sample frame"]
PerChannel = Float64[np.ndarray, "sample frame channel"]
Curves = dict[str, Float64[np.ndarray, "sample frame *channel"]]

DEPTH = "h"
# of every problem, then of those with a water depth
METRICS = (
    "relative_l2",
    "rmse",
    "nrmse",
    "max_error",
    "crmse",
    "brmse",
    *(f"frmse_{band}" for band in BANDS),
    "diverged",
)
DEPTH_METRICS = ("perturbation_l2", "mass_drift", "minimum_depth", "negative_depth")
_NOT_AVERAGED = ("relative_l2", "reference_rms", "max_error", "mass_drift", "minimum_depth")
# metrics that are given for each channel too, as in relative_l2_h
CHANNEL_METRICS = ("relative_l2", "rmse")
# frames measured at a time, so that float64 copies of them stay in the processor's cache
_CHUNK = 8


def metric_names(problem: EvolutionProblem) -> tuple[str, ...]:
    """The metrics of ``scores`` for a problem."""
    channels = [spec.name for spec in problem.outputs]
    each = [f"{metric}_{channel}" for metric in CHANNEL_METRICS for channel in channels]
    return (*METRICS, *each, *(DEPTH_METRICS if DEPTH in channels else ()))


def summary_names(problem: EvolutionProblem) -> tuple[str, ...]:
    """What ``summary`` of the scores returns, and acceptance limits are set for."""
    return tuple(f"{metric}_{statistic}" for metric in metric_names(problem) for statistic in STATISTICS)


def headline(problem: str) -> str:
    """The metric that speaks for a problem: a background of 1 m flatters every error of a water depth."""
    channels = [spec.name for spec in EVOLUTION_PROBLEMS[problem].outputs]
    return "perturbation_l2" if DEPTH in channels else "relative_l2"


def rmse(predicted: Frames, reference: Frames) -> PerChannel:
    """``sqrt(mean((q - q_ref)^2))`` of every frame and channel."""
    return _pessimistic(root_mean_square(_error(predicted, reference)))


def nrmse(predicted: Frames, reference: Frames) -> PerChannel:
    """RMSE over the root mean square of the reference, of every sample, frame and channel."""
    return _ratio(rmse(predicted, reference), root_mean_square(reference))


def relative_l2(predicted: Frames, reference: Frames) -> PerSample:
    """``||q - q_ref|| / ||q_ref||`` over all frames and channels."""
    return _ratio(_norm(_error(predicted, reference), 4), _norm(reference, 4))


def relative_l2_of_frames(predicted: Frames, reference: Frames) -> PerFrame:
    """``||q - q_ref|| / ||q_ref||`` of every frame, over its channels."""
    return _ratio(_norm(_error(predicted, reference), 3), _norm(reference, 3))


def perturbation_l2(predicted: Depth, reference: Depth, rest: float) -> PerFrame:
    """``||h - h_ref|| / ||h_ref - rest||`` of every frame: the error relative to the waves."""
    return _ratio(_norm(_error(predicted, reference), 2), _norm(np.asarray(reference, np.float64) - rest, 2))


def max_error(predicted: Frames, reference: Frames) -> PerChannel:
    """``max |q - q_ref|`` of every frame and channel."""
    return _pessimistic(largest(_error(predicted, reference)))


def crmse(predicted: Frames, reference: Frames) -> PerChannel:
    """``|mean(q - q_ref)|``: what a conserved quantity is wrong by, per area."""
    return _pessimistic(mean_size(_error(predicted, reference)))


def brmse(predicted: Frames, reference: Frames) -> PerChannel:
    """RMSE over the cells at the walls, corners counted twice."""
    return _pessimistic(edge_root_mean_square(_error(predicted, reference)))


def frmse(predicted: Frames, reference: Frames) -> dict[str, PerChannel]:
    """RMSE of the low, middle and high wavenumbers, see ``field_metrics.band_root_mean_squares``."""
    with np.errstate(invalid="ignore"):
        bands = band_root_mean_squares(_error(predicted, reference))
    return {band: _pessimistic(values) for band, values in bands.items()}


def mass_drift(predicted: Depth, reference: Depth) -> PerFrame:
    """``|sum h - sum h_ref| / sum h_ref`` of every frame; within closed walls the mass there was at first."""
    axes = (-2, -1)
    mass = np.sum(reference, axis=axes, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.sum(predicted, axis=axes, dtype=np.float64) - mass
    return _pessimistic(np.abs(difference) / mass)


def minimum_depth(predicted: Depth) -> PerFrame:
    """``min h`` of every frame [m]."""
    least = np.asarray(predicted.min(axis=(-2, -1)), np.float64)
    return np.where(np.isnan(least), -np.inf, least)


def curves(predicted: Frames, reference: Frames, names: Sequence[str], rest: float | None) -> Curves:
    """Every metric of every frame, and the root mean square of the reference.

    Args:
        predicted: the frames that were predicted.
        reference: the same frames of the reference.
        names: of the channels.
        rest: depth of the water at rest [m], if there is a depth.
    """
    # once for all: these arrays are large
    found = _curves(_error(predicted, reference), root_mean_square(reference))
    if DEPTH in names and rest is not None:
        channel = list(names).index(DEPTH)
        depth, true_depth = predicted[:, :, channel], reference[:, :, channel]
        waves = root_mean_square(np.subtract(true_depth, rest, dtype=np.float64))
        found["perturbation_l2"] = _ratio(found["rmse"][:, :, channel], waves)
        found["mass_drift"] = mass_drift(depth, true_depth)
        found["minimum_depth"] = minimum_depth(depth)
    return found


def _curves(error: NDArray[np.float64], reference_rms: PerChannel) -> Curves:
    with np.errstate(invalid="ignore"):
        found = {
            "rmse": root_mean_square(error),
            "max_error": largest(error),
            "crmse": mean_size(error),
            "brmse": edge_root_mean_square(error),
            **{f"frmse_{band}": values for band, values in band_root_mean_squares(error).items()},
        }
    found = {name: _pessimistic(values) for name, values in found.items()}
    found["reference_rms"] = reference_rms
    found["nrmse"] = _ratio(found["rmse"], reference_rms)
    # cells are equal: norms are in proportion to root mean squares
    found["relative_l2"] = _ratio(_length(found["rmse"], 2), _length(reference_rms, 2))
    return found


def scores(curves: Curves, names: Sequence[str]) -> dict[str, PerSample]:
    """One number per sample and metric.

    Means over frames and channels, but: ``relative_l2`` is one ratio of norms over all frames and channels,
    ``max_error`` and ``mass_drift`` are the largest, ``minimum_depth`` is the least, ``negative_depth`` is
    how far it is below zero [m], and ``diverged`` is 1 where a predicted value is not finite, else 0.
    """
    rms, reference_rms = curves["rmse"], curves["reference_rms"]
    found = {
        name: _over_frames(np.mean, curve) for name, curve in curves.items() if name not in _NOT_AVERAGED
    }
    found["relative_l2"] = _ratio(_length(rms, 1, 2), _length(reference_rms, 1, 2))
    found["max_error"] = _over_frames(np.max, curves["max_error"])
    found["diverged"] = np.asarray(~np.isfinite(rms).all(axis=(1, 2)), np.float64)
    for channel, name in enumerate(names):
        one = rms[:, :, channel], reference_rms[:, :, channel]
        found[f"relative_l2_{name}"] = _ratio(_length(one[0], 1), _length(one[1], 1))
        found[f"rmse_{name}"] = _over_frames(np.mean, one[0])
    if "mass_drift" in curves:
        found["mass_drift"] = _over_frames(np.max, curves["mass_drift"])
        found["minimum_depth"] = _over_frames(np.min, curves["minimum_depth"])
        found["negative_depth"] = np.maximum(0.0, -found["minimum_depth"])
    return found


@dataclass(frozen=True)
class Measured:
    """The curves and scores of some samples."""

    curves: Curves
    scores: dict[str, PerSample]

    @property
    def summary(self) -> dict[str, float]:
        """Statistics over the samples, as ``metrics.summary`` names them."""
        return summary(self.scores)


def measure(predicted: Frames, reference: Frames, names: Sequence[str], rest: float | None) -> Measured:
    """Curves and scores, see there."""
    samples = zip(np.split(predicted, len(predicted)), np.split(reference, len(reference)), strict=True)
    found = _join([_in_chunks(*one, names, rest) for one in samples], axis=0)
    return Measured(found, scores(found, names))


def _in_chunks(predicted: Frames, reference: Frames, names: Sequence[str], rest: float | None) -> Curves:
    chunks = [slice(first, first + _CHUNK) for first in range(0, predicted.shape[1], _CHUNK)]
    return _join([curves(predicted[:, c], reference[:, c], names, rest) for c in chunks], axis=1)


def concatenate(parts: Sequence[Measured]) -> Measured:
    """Several groups of samples as one."""
    return Measured(_join([part.curves for part in parts], 0), _join([part.scores for part in parts], 0))


def _join(parts: Sequence[Mapping[str, NDArray[np.float64]]], axis: int) -> dict[str, NDArray[np.float64]]:
    return {name: np.concatenate([part[name] for part in parts], axis) for name in parts[0]}


def _error(predicted: NDArray[np.floating], reference: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.asarray(np.subtract(predicted, reference, dtype=np.float64))


def _norm(fields: NDArray[np.floating], axes: int) -> NDArray[np.float64]:
    """Euclidean norm over the last ``axes`` axes."""
    squares = np.square(fields, dtype=np.float64).sum(axis=tuple(range(-axes, 0)))
    return _pessimistic(np.sqrt(squares))


def _ratio(error: NDArray[np.float64], size: NDArray[np.float64]) -> NDArray[np.float64]:
    """``error / size``; a perfect answer is perfect relative to nothing, too."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(error == 0.0, 0.0, error / size)


def _length(values: NDArray[np.float64], *axes: int) -> NDArray[np.float64]:
    return np.asarray(np.sqrt(np.sum(values**2, axis=axes)))


def _over_frames(reduce: Callable[..., NDArray[np.float64]], curve: NDArray[np.float64]) -> PerSample:
    return np.asarray(reduce(curve, axis=tuple(range(1, curve.ndim))))


def _pessimistic(errors: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.isnan(errors), np.inf, errors)
