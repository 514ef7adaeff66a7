"""Batches depend on seed and step alone, and an epoch takes every sample once."""

import numpy as np
import torch

from training.augment import SQUARE, transform
from training.batches import Schedule, TrainingSet
from training.dataset import Dataset


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
    data = TrainingSet(datasets, torch.device("cpu"))
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
    assert TrainingSet([_dataset(2)], torch.device("cpu")).symmetries == 8
    assert TrainingSet([_dataset(2, (4, 8))], torch.device("cpu")).symmetries == 4
