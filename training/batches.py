"""The batch of a step: a function of seed and step alone, so that a resumed run sees the same batches."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from training.augment import RECTANGLE, SQUARE, transform
from training.dataset import Dataset, StoredDataset


class Batch(NamedTuple):
    """Samples of a step, in physical units."""

    permeability: Float[Tensor, "batch 1 y x"]
    pressure: Float[Tensor, "batch 1 y x"]
    source: Float[Tensor, " batch"]

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        return Batch(*(values.to(device) for values in self))


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


class Samples(ABC):
    """The samples of several files, by number.

    Attributes:
        grid: cells (ny, nx).
        extent: side lengths (Ly, Lx) [m].
    """

    grid: tuple[int, int]
    extent: tuple[float, float]

    @abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @abstractmethod
    def take(self, index: NDArray[np.int64]) -> Batch:
        """Some of them."""


@final
class HeldSamples(Samples):
    """Samples on the device that trains: where one process trains alone."""

    def __init__(self, datasets: Sequence[Dataset], device: torch.device) -> None:
        self.grid, self.extent = datasets[0].grid, datasets[0].extent
        self._permeability = _joined([data.permeability for data in datasets], device)
        self._pressure = _joined([data.pressure for data in datasets], device)
        self._source = _joined([np.full(len(data), data.source, np.float32) for data in datasets], device)

    def __len__(self) -> int:
        return len(self._source)

    def take(self, index: NDArray[np.int64]) -> Batch:
        """See ``Samples.take``."""
        rows = torch.from_numpy(index)
        return Batch(self._permeability[rows], self._pressure[rows], self._source[rows])


@final
class StoredSamples(Samples):
    """Samples that stay on the disk: each of several processes reads its part of a batch."""

    def __init__(self, files: Sequence[StoredDataset]) -> None:
        self.grid, self.extent = files[0].grid, files[0].extent
        self._files = files
        self._ends = np.cumsum([len(file) for file in files])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def take(self, index: NDArray[np.int64]) -> Batch:
        """See ``Samples.take``."""
        permeability = np.empty((len(index), 1, *self.grid), np.float32)
        pressure, source = np.empty_like(permeability), np.empty(len(index), np.float32)
        places = np.searchsorted(self._ends, index, side="right")
        for place in np.unique(places):
            file, here = self._files[place], places == place
            permeability[here], pressure[here] = file.read(index[here] - (self._ends[place] - len(file)))
            source[here] = file.source
        return Batch(*(torch.from_numpy(values) for values in (permeability, pressure, source)))


@final
class TrainingSet:
    """The training samples, and which of them a step takes."""

    def __init__(self, samples: Samples) -> None:
        self.extent = samples.extent
        self.spacing = samples.extent[0] / samples.grid[0], samples.extent[1] / samples.grid[1]
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def symmetries(self) -> int:
        """Number of symmetries that map the domain and the grid to themselves."""
        ny, nx = self._samples.grid
        return SQUARE if ny == nx and self.extent[0] == self.extent[1] else RECTANGLE

    def batch(self, schedule: Schedule, step: int, part: slice = slice(None)) -> Batch:
        """A part of the batch of a step, ordered by symmetry element."""
        index, elements = (drawn[part] for drawn in schedule.at(step))
        order = np.argsort(elements, kind="stable")
        taken = self._samples.take(index[order])
        return Batch(
            _transformed(taken.permeability, elements[order]),
            _transformed(taken.pressure, elements[order]),
            taken.source,
        )


def _transformed(fields: Float[Tensor, "batch 1 y x"], elements: NDArray[np.int64]) -> Tensor:
    """Each by its own symmetry element; these are in order."""
    found, starts = np.unique(elements, return_index=True)
    ends = [*starts[1:], len(elements)]
    groups = zip(found, starts, ends, strict=True)
    return torch.cat([transform(fields[start:end], int(element)) for element, start, end in groups])


def _joined(arrays: list[NDArray[np.float32]], device: torch.device) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays)).to(device)
