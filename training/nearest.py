"""The answer of the training sample whose coefficient is the closest: what a surrogate must beat."""

import time

import numpy as np
from numpy.typing import NDArray

from training.dataset import Dataset, InvalidDataset
from training.evaluate import Evaluation
from training.metrics import score


def look_up(training: Dataset, data: Dataset, scheme: str) -> Evaluation:
    """Answer every sample of ``data`` by the closest of ``training``, and compare.

    Permeabilities are divided by their geometric means first, and answers scaled back: ``p`` of ``a`` and
    source ``f`` is ``f / a0`` times that of ``a / a0`` and 1. Close is what has a small L2 distance in the
    logarithm.

    Raises:
        InvalidDataset: the two are of different grids.
    """
    if training.grid != data.grid:
        raise InvalidDataset(f"expected training data on the grid {data.grid}, got {training.grid}")
    start = time.perf_counter()
    (known, their), (asked, own) = _standardized(training), _standardized(data)
    distances = np.square(known).sum(axis=1) - 2.0 * asked @ known.T
    closest = distances.argmin(axis=1)
    scale = (data.source / own) / (training.source / their[closest])
    predicted = (training.pressure[closest] * scale[:, None, None, None]).astype(np.float32)
    seconds = (time.perf_counter() - start) / len(data)
    declared = str(data.attributes.get("scheme", scheme))
    scores = score(predicted, data.pressure, data.permeability, data.spacing, declared)
    return Evaluation(data, predicted, scores, seconds)


def _standardized(data: Dataset) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logarithms [sample cell] without their means, and the geometric means [sample]."""
    logarithms = np.log(data.permeability.astype(np.float64)).reshape(len(data), -1)
    means = logarithms.mean(axis=1)
    return logarithms - means[:, None], np.exp(means)
