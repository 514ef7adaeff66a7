"""The batch of a step: a function of seed and step alone, so that a resumed run sees the same batches."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from training.augment import RECTANGLE, SQUARE, transform
from training.dataset import Dataset


class Batch(NamedTuple):
    """Samples of a step, in physical units."""

    permeability: Float[Tensor, "batch 1 y x"]
    pressure: Float[Tensor, "batch 1 y x"]
    source: Float[Tensor, " batch"]


class Schedule(NamedTuple):
    """Which samples a step takes and how each is transformed."""

    samples: int
    batch_size: int
    seed: int
    symmetries: int = 1

    def at(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sample indices and symmetry elements of a step; an epoch permutes anew and drops its remainder."""
        per_epoch = max(self.samples // self.batch_size, 1)
        epoch, position = divmod(step, per_epoch)
        order = np.random.default_rng([self.seed, 0, epoch]).permutation(self.samples)
        index = order[position * self.batch_size : (position + 1) * self.batch_size]
        elements = np.random.default_rng([self.seed, 1, step]).integers(self.symmetries, size=len(index))
        return index, elements


class TrainingSet:
    """The training samples on the device that trains."""

    def __init__(self, datasets: Sequence[Dataset], device: torch.device) -> None:
        self.extent = datasets[0].extent
        self.spacing = datasets[0].spacing
        self._permeability = _joined([data.permeability for data in datasets], device)
        self._pressure = _joined([data.pressure for data in datasets], device)
        self._source = _joined([np.full(len(data), data.source, np.float32) for data in datasets], device)

    def __len__(self) -> int:
        return len(self._source)

    @property
    def symmetries(self) -> int:
        """Number of symmetries that map the domain and the grid to themselves."""
        ny, nx = self._permeability.shape[-2:]
        return SQUARE if ny == nx and self.extent[0] == self.extent[1] else RECTANGLE

    def batch(self, schedule: Schedule, step: int, part: slice = slice(None)) -> Batch:
        """A part of the batch of a step, ordered by symmetry element."""
        index, elements = (drawn[part] for drawn in schedule.at(step))
        groups = [(element, torch.from_numpy(index[elements == element])) for element in np.unique(elements)]
        rows = torch.cat([group for _, group in groups])
        return Batch(
            torch.cat([transform(self._permeability[group], element) for element, group in groups]),
            torch.cat([transform(self._pressure[group], element) for element, group in groups]),
            self._source[rows],
        )


def _joined(arrays: list[NDArray[np.float32]], device: torch.device) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays)).to(device)
