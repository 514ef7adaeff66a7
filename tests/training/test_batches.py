"""Batches depend on seed and step alone, and an epoch takes every sample once."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from problems import Grid
from training.augment import SQUARE, transform
from training.batches import HeldSamples, Schedule, StoredSamples, TrainingSet
from training.dataset import Dataset, StoredDataset, open_dataset, read_dataset, write_dataset
from training.ranks import Ranks

CPU = torch.device("cpu")


def _dataset(count: int, grid: tuple[int, int] = (4, 4), source: float = 2.0) -> Dataset:
    """Samples whose values tell the sample and the cell."""
    cells = np.arange(grid[0] * grid[1], dtype=np.float32).reshape(1, 1, *grid)
    numbers = np.arange(count, dtype=np.float32).reshape(count, 1, 1, 1)
    return Dataset(100.0 * numbers + cells, -(100.0 * numbers + cells), source, (1.0, 1.0))


def test_an_epoch_takes_every_sample_once() -> None:
    schedule = Schedule(samples=24, batch_size=8, seed=5)
    for epoch in range(2):
        steps = [schedule.at(3 * epoch + step)[0] for step in range(3)]
        assert sorted(np.concatenate(steps)) == list(range(24))


def test_epochs_and_seeds_differ() -> None:
    schedule = Schedule(samples=24, batch_size=24, seed=5)
    orders = [schedule.at(0), schedule.at(1), schedule._replace(seed=6).at(0)]
    assert len({tuple(index) for index, _ in orders}) == 3


def test_steps_may_be_asked_in_any_order() -> None:
    schedule = Schedule(samples=10, batch_size=4, seed=1, symmetries=SQUARE)
    forwards = [schedule.at(step) for step in range(6)]
    backwards = [schedule.at(step) for step in reversed(range(6))][::-1]
    np.testing.assert_equal(forwards, backwards)


def test_fewer_samples_than_a_batch() -> None:
    assert sorted(Schedule(samples=3, batch_size=8, seed=1).at(7)[0]) == [0, 1, 2]


def test_a_batch_holds_the_scheduled_images() -> None:
    datasets = [_dataset(5, source=2.0), _dataset(4, source=3.0)]
    data = TrainingSet(HeldSamples(datasets, CPU))
    schedule = Schedule(len(data), 6, seed=9, symmetries=data.symmetries)
    batch = data.batch(schedule, 0)
    permeability = torch.from_numpy(np.concatenate([dataset.permeability for dataset in datasets]))
    expected = {
        (*tuple(transform(permeability[index], int(element)).flatten().tolist()), 2.0 if index < 5 else 3.0)
        for index, element in zip(*schedule.at(0), strict=True)
    }
    found = {
        (*field.flatten().tolist(), source.item())
        for field, source in zip(batch.permeability, batch.source, strict=True)
    }
    assert found == expected
    # a pressure is transformed as its permeability
    torch.testing.assert_close(batch.pressure, -batch.permeability, rtol=0, atol=0)


def test_only_squares_are_transposed() -> None:
    assert TrainingSet(HeldSamples([_dataset(2)], CPU)).symmetries == 8
    assert TrainingSet(HeldSamples([_dataset(2, (4, 8))], CPU)).symmetries == 4


# --- from the disk


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Of five and of four samples, with sources of their own."""
    paths = [tmp_path / name for name in ("a.hdf5", "b.hdf5")]
    grid = Grid((4, 6), (1.0, 1.5))
    for path, count, source in zip(paths, (5, 4), (2.0, 3.0), strict=True):
        data = _dataset(count, grid.shape, source)
        shard = data.permeability[:, 0] + source, data.pressure[:, 0]
        write_dataset(path, count, [shard], grid.coordinates(), {"beta": source})
    return paths


@pytest.mark.parametrize("part", [slice(None), slice(0, 3), slice(3, 6)])
def test_from_the_disk_come_the_same_batches(files: list[Path], part: slice) -> None:
    held = TrainingSet(HeldSamples([read_dataset(path) for path in files], CPU))
    stored = TrainingSet(StoredSamples([open_dataset(path) for path in files]))
    assert (len(stored), stored.symmetries) == (len(held), held.symmetries) == (9, 4)
    assert (stored.extent, stored.spacing) == (held.extent, held.spacing)
    schedule = Schedule(len(held), 6, seed=9, symmetries=held.symmetries)
    for step in range(4):
        pairs = zip(stored.batch(schedule, step, part), held.batch(schedule, step, part), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


class Watched:
    """A file that notes which of its samples are read."""

    def __init__(self, file: StoredDataset) -> None:
        self._file, self.read_numbers = file, list[int]()

    def __len__(self) -> int:
        return len(self._file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, index: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        self.read_numbers += index.tolist()
        return self._file.read(index)


def test_a_process_reads_its_part_of_a_batch_and_no_more(files: list[Path]) -> None:
    schedule, read = Schedule(samples=9, batch_size=6, seed=9), []
    for number in range(2):
        watched = [Watched(open_dataset(path)) for path in files]
        data = TrainingSet(StoredSamples(cast("list[StoredDataset]", watched)))
        data.batch(schedule, 3, Ranks(number, 2).part(6))
        read.append([*watched[0].read_numbers, *(5 + each for each in watched[1].read_numbers)])
    assert [len(each) for each in read] == [3, 3]
    assert sorted(read[0] + read[1]) == sorted(schedule.at(3)[0])
