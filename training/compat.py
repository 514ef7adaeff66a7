"""Errors as other codes report them, slips included, so that published numbers can be put beside ours.

``pdebench`` (Takamoto et al. 2022) measures batch by batch, initial frames left out, and divides the sum over
the batches by the index of the last one: with 20 batches every number is 20/19 times too large.

``mno`` (the code of the Mamba Neural Operator, arXiv 2410.02113) averages batches with equal weight, however
short the last one is. The frames that were given count as predicted without error. For a steady problem the
axis of the cells is taken for another one: its "RMSE" is the mean absolute error and its "nRMSE" the mean
relative error of single cells; its relative L2 is right.

Both see PDEBench's channels alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from training.dataset import InvalidDataset
from training.field_metrics import (
    band_means,
    edge_root_mean_square,
    largest,
    mean_size,
    root_mean_square,
    shell_power,
)
from training.trajectory_metrics import Frames

Steady = Float[np.ndarray, "sample 1 y x"]
Values = Mapping[str, float]

# added by MNO's code to what it divides by
_MNO_EPSILON = 1e-9


class TooFewBatches(InvalidDataset):
    """PDEBench's average over one batch is a division by zero."""


@dataclass(frozen=True)
class Convention:
    """How a code measures.

    Attributes:
        steady: values of one batch of predicted and reference solutions.
        evolution: values of one batch of predicted frames, their reference, and the frames that were given.
        combine: the batches' values as one.
        steady_batch: samples per batch in that code.
        evolution_batch: the same for trajectories.
    """

    steady: Callable[[Steady, Steady], Values]
    evolution: Callable[[Frames, Frames, Frames], Values]
    combine: Callable[[Sequence[Values]], dict[str, float]]
    steady_batch: int
    evolution_batch: int


def measure_steady(
    convention: Convention, predicted: Steady, reference: Steady, batch_size: int | None = None
) -> dict[str, float]:
    """A convention's values for solutions in the order of their file."""
    size = batch_size or convention.steady_batch
    batches = [slice(first, first + size) for first in range(0, len(predicted), size)]
    return convention.combine([convention.steady(predicted[batch], reference[batch]) for batch in batches])


def mno_steady(predicted: Steady, reference: Steady) -> Values:
    """MNO's three numbers for one batch of steady solutions."""
    error = np.abs(np.subtract(predicted, reference, dtype=np.float64))
    size = np.abs(np.asarray(reference, np.float64))
    return {
        "RMSE": float(error.mean()),
        "nRMSE": float((error / (size + _MNO_EPSILON)).mean()),
        "RL2": float(np.mean(_norms(error) / _norms(size))),
    }


def mno_evolution(predicted: Frames, reference: Frames, given: Frames) -> Values:
    """MNO's three numbers for one batch: the given frames are part of the answer, without error."""
    error = np.subtract(predicted, reference, dtype=np.float64)
    rms = root_mean_square(error)
    predicted_share = predicted.shape[1] / (predicted.shape[1] + given.shape[1])
    relative = rms / (root_mean_square(reference) + _MNO_EPSILON)
    size = np.hypot(_norms(reference), _norms(given))
    return {
        "RMSE": float(rms.mean()) * predicted_share,
        "nRMSE": float(relative.mean()) * predicted_share,
        "RL2": float(np.mean(_norms(error) / size)),
    }


def pdebench_steady(predicted: Steady, reference: Steady) -> Values:
    """PDEBench's numbers for one batch of steady solutions, which have one channel and one time."""
    return pdebench_evolution(predicted[:, None], reference[:, None], reference[:, None])


def pdebench_evolution(predicted: Frames, reference: Frames, given: Frames) -> Values:  # noqa: ARG001
    """PDEBench's numbers for one batch: averages over samples, then over times and channels."""
    error = np.subtract(predicted, reference, dtype=np.float64)
    rms = root_mean_square(error)
    mean_power = shell_power(error).mean(axis=0)
    bands = band_means(np.sqrt(mean_power))
    return {
        "RMSE": float(rms.mean()),
        "nRMSE": float((rms / root_mean_square(reference)).mean()),
        "cRMSE": float(np.sqrt(np.mean(mean_size(error) ** 2, axis=0)).mean()),
        "max": float(largest(error).max(axis=0).mean()),
        "bRMSE": float(edge_root_mean_square(error).mean()),
        **{f"fRMSE_{band}": float(values.mean()) for band, values in bands.items()},
    }


def mean_of_batches(batches: Sequence[Values]) -> dict[str, float]:
    """Every batch weighs the same."""
    return {name: sum(batch[name] for batch in batches) / len(batches) for name in batches[0]}


def sum_over_last_index(batches: Sequence[Values]) -> dict[str, float]:
    """The sum over the batches, divided by their number less one.

    Raises:
        TooFewBatches: there is one batch.
    """
    if len(batches) < 2:
        raise TooFewBatches(
            "PDEBench divides by the number of batches less one: expected at least two batches, got one "
            "(choose a smaller --batch-size)"
        )
    return {name: sum(batch[name] for batch in batches) / (len(batches) - 1) for name in batches[0]}


CONVENTIONS: Mapping[str, Convention] = {
    "mno": Convention(mno_steady, mno_evolution, mean_of_batches, steady_batch=8, evolution_batch=8),
    "pdebench": Convention(
        pdebench_steady, pdebench_evolution, sum_over_last_index, steady_batch=50, evolution_batch=5
    ),
}


def _norms(arrays: Float[np.ndarray, "sample ..."]) -> Float[np.ndarray, " sample"]:
    return np.asarray(np.linalg.norm(np.asarray(arrays, np.float64).reshape(len(arrays), -1), axis=1))
