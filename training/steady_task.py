"""The task of a steady problem: solutions from coefficients."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from operators import AnySurrogate, Surrogate
from training.batches import Batch, HeldSamples, Samples, Schedule, StoredSamples, TrainingSet
from training.config import Run
from training.dataset import open_dataset, read_dataset
from training.evaluate import evaluate
from training.loss import loss
from training.prefetch import Prefetched
from training.ranks import ALONE, Ranks
from training.task import Task, mixed_precision

VALIDATED = ("relative_l2_median", "relative_l2_mean", "relative_energy_median")


@final
class SteadyTask(Task):
    """Relative L2 and energy errors of random batches, each transformed by a random symmetry."""

    def __init__(
        self,
        run: Run,
        training: Sequence[Path],
        validation: Mapping[str, Path],
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        self._run, self._device = run, device
        # only who leads validates
        self._validation = {name: read_dataset(path) for name, path in validation.items() if ranks.leads}
        self._part = ranks.part(run.optimizer.batch_size)
        self._data = TrainingSet(_samples(training, device, ranks))
        self._batch: Callable[[int], Batch] = self._drawn if ranks.count == 1 else Prefetched(self._drawn)
        symmetries = self._data.symmetries if run.augmentation.d4 else 1
        self._schedule = Schedule(len(self._data), run.optimizer.batch_size, run.run.seed, symmetries)

    def prepare(self, surrogate: AnySurrogate) -> None:
        """Nothing: the surrogate's scaling is exact."""

    def loss(self, surrogate: AnySurrogate, step: int) -> Float[Tensor, ""]:
        """See ``Task.loss``."""
        batch = self._batch(step).to(self._device)
        with mixed_precision(self._device):
            predicted = surrogate(batch.permeability, batch.source, self._data.extent)
        return loss(predicted, batch, self._data.spacing, self._run.data.scheme, self._run.loss)

    def validate(self, surrogate: AnySurrogate) -> dict[str, float]:
        """See ``Task.validate``."""
        assert isinstance(surrogate, Surrogate)
        errors: dict[str, float] = {}
        for family, dataset in self._validation.items():
            found = evaluate(surrogate, dataset, self._run.evaluation.batch_size, self._run.data.scheme)
            errors |= {f"{family}.{metric}": found.summary[metric] for metric in VALIDATED}
        return errors

    def _drawn(self, step: int) -> Batch:
        return self._data.batch(self._schedule, step, self._part)


def _samples(paths: Sequence[Path], device: torch.device, ranks: Ranks) -> Samples:
    if ranks.count > 1:
        return StoredSamples([open_dataset(path) for path in paths])
    return HeldSamples([read_dataset(path) for path in paths], device)
