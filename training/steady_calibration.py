"""What the estimates of a steady surrogate are made from, measured on samples that were never trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from operators import Surrogate
from operators.features import FeatureReader
from problems import STEADY_PROBLEMS, Grid
from training.augment import RECTANGLE, SQUARE, transform
from training.dataset import Dataset
from training.evaluate import predict
from training.metrics import relative_l2

# training inputs whose features are read: enough for some hundred features
FEATURE_SAMPLES = 1500
BATCH_SIZE = 16
# unit roundoff of the float32 that answers leave a service in
_ROUNDING = 2.0**-24

Scores = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Steady:
    """Features of training data and of calibration data, and the scores of the latter [sample]."""

    training: NDArray[np.float32]
    held_out: NDArray[np.float32]
    scores: Scores


def measure_steady(
    surrogate: Surrogate,
    problem: str,
    scheme: str,
    training: Sequence[Dataset],
    held_out: Sequence[Dataset],
    *,
    symmetric: bool,
) -> Steady:
    """Ask the surrogate for all calibration samples, and for some of the training data.

    Args:
        surrogate: in evaluation mode.
        problem: key in ``STEADY_PROBLEMS``.
        scheme: the discrete operator that bounds speak of.
        training: what it has learnt from.
        held_out: what nothing was learnt from, each family as often as at serving time.
        symmetric: it has learnt from images of the training data under the symmetries of the square.
    """
    with FeatureReader(surrogate) as reader:
        total = sum(map(len, training))
        for dataset in training:
            predict(surrogate, _thinned(dataset, total, symmetric=symmetric), BATCH_SIZE)
        known = reader.take().cpu().numpy()
        answers = [predict(surrogate, dataset, BATCH_SIZE) for dataset in held_out]
        features = reader.take().cpu().numpy()
    found = [_scores(*pair, problem, scheme) for pair in zip(held_out, answers, strict=True)]
    scores = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
    return Steady(known, features, scores)


def _thinned(dataset: Dataset, total: int, *, symmetric: bool) -> Dataset:
    """Its share of the samples whose features are read, image after image where they are symmetric."""
    count = max(1, min(len(dataset), round(FEATURE_SAMPLES * len(dataset) / total)))
    chosen = np.linspace(0, len(dataset) - 1, count).round().astype(int)
    permeability = dataset.permeability[chosen]
    if symmetric:
        elements = SQUARE if dataset.grid[0] == dataset.grid[1] else RECTANGLE
        images = [
            transform(torch.from_numpy(field), number % elements) for number, field in enumerate(permeability)
        ]
        permeability = torch.stack(images).numpy()
    return Dataset(permeability, dataset.pressure[chosen], dataset.source, dataset.extent)


def _scores(dataset: Dataset, answers: NDArray[np.float32], problem: str, scheme: str) -> Scores:
    """The error of each answer, and what the service would say of it without knowing."""
    grid, solver = Grid(dataset.grid, dataset.extent), STEADY_PROBLEMS[problem]
    (input_,), (output,) = solver.inputs, solver.outputs
    bounds = [
        solver.error_bound(
            {input_.name: field[0].astype(np.float64), "source": np.array(dataset.source)},
            {output.name: answer[0].astype(np.float64)},
            grid,
            scheme,
            _ROUNDING,
        )
        for field, answer in zip(dataset.permeability, answers, strict=True)
    ]
    return {
        "relative_l2": relative_l2(answers, dataset.pressure),
        "l2_estimate": np.array([bound.l2_estimate for bound in bounds]),
        "energy_upper": np.array([bound.upper for bound in bounds]),
    }
