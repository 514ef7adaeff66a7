"""How far a surrogate's answers are from the reference solutions of a data set."""

import time
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray

from operators import Surrogate
from training.dataset import Dataset
from training.metrics import score, summary


@dataclass(frozen=True)
class Evaluation:
    """A data set, a surrogate's answers to it, and the metrics per sample."""

    dataset: Dataset
    predicted: Float32[np.ndarray, "sample 1 y x"]
    scores: dict[str, NDArray[np.float64]]
    seconds_per_sample: float

    @cached_property
    def summary(self) -> dict[str, float]:
        """Statistics over the samples, as ``metrics.summary`` names them."""
        return summary(self.scores)


def evaluate(surrogate: Surrogate, dataset: Dataset, batch_size: int, scheme: str) -> Evaluation:
    """Answer every sample and compare.

    Args:
        surrogate: in evaluation mode.
        dataset: with reference solutions.
        batch_size: samples per forward pass.
        scheme: the energy norm's discrete operator, where the file does not name its own.
    """
    start = time.perf_counter()
    predicted = predict(surrogate, dataset, batch_size)
    seconds = (time.perf_counter() - start) / len(dataset)
    declared = str(dataset.attributes.get("scheme", scheme))
    scores = score(predicted, dataset.pressure, dataset.permeability, dataset.spacing, declared)
    return Evaluation(dataset, predicted, scores, seconds)


@torch.inference_mode()
def predict(surrogate: Surrogate, dataset: Dataset, batch_size: int) -> Float32[np.ndarray, "sample 1 y x"]:
    """The surrogate's pressure for every sample, in float32."""
    device = next(surrogate.parameters()).device
    parts = []
    for permeability in torch.split(torch.from_numpy(dataset.permeability), batch_size):
        source = torch.full((len(permeability),), dataset.source, device=device)
        parts.append(surrogate(permeability.to(device), source, dataset.extent).cpu())
    return np.asarray(torch.cat(parts).numpy())
