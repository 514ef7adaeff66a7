"""Reference data: a sample depends on its recipe and index alone, so files are made in parallel and resumed.

A file is computed in shards, each whole or absent, and assembled from them once the last one is there; it
too is whole or absent. Whoever computes the shards sends them here: nobody else writes.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from bulk.engine import Crew, Engine
from bulk.engine import Task as Work
from bulk.local_engine import local_engine
from problems import CannotSolve, InvalidField
from training.dataset import InvalidDataset
from training.files import replace_atomically
from training.progress import Progress
from training.recipe import Recipe


class DatasetConflict(InvalidDataset):
    """The file that stands in the way was made from another recipe."""


class DiskTooSmall(RuntimeError):
    """The data would not fit."""


class UnsoundSample(RuntimeError):
    """The reference solver's answer is not finite."""


class DatasetFile(NamedTuple):
    """A file to be made: its place and its recipe."""

    path: Path
    recipe: Recipe

    @property
    def shard_directory(self) -> Path:
        """Where the shards wait for assembly; another recipe has another directory."""
        return self.path.with_name(f".{self.path.stem}.{self.recipe.sha256[:16]}")

    @property
    def bytes(self) -> int:
        """Size of the file, uncompressed."""
        return self.recipe.count * self.recipe.sample_bytes


class _Task(NamedTuple):
    """One shard: samples first, ..., last - 1."""

    file: DatasetFile
    first: int
    last: int

    @property
    def samples(self) -> int:
        return self.last - self.first

    @property
    def bytes(self) -> int:
        return self.samples * self.file.recipe.sample_bytes

    @property
    def path(self) -> Path:
        return self.file.shard_directory / f"{self.first:08d}.npy"

    def __str__(self) -> str:
        return f"{self.file.path.name}, samples {self.first} to {self.last - 1},"


@dataclass(frozen=True)
class Estimate:
    """What a generation will cost."""

    samples: int
    bytes: int
    seconds: float

    def __str__(self) -> str:
        size, duration = _size(self.bytes), _duration(self.seconds)
        return f"{self.samples} samples to generate, {size}, about {duration}"


def generate(
    files: Sequence[DatasetFile], workers: int, progress: Progress, engine: Engine | None = None
) -> None:
    """Make every file that is not there yet, continuing from the shards of an interrupted generation.

    Args:
        files: to be made.
        workers: processes on this machine.
        progress: shows how many samples are made.
        engine: who makes them instead.

    Raises:
        DatasetConflict: a file exists and was made from another recipe.
        DiskTooSmall: the data would not fit.
    """
    missing = [file for file in files if not _is_made(file)]
    tasks = {file.path: list(_tasks(file)) for file in missing}
    _require_space(missing, tasks.values())
    for file in missing:
        if not tasks[file.path]:
            _assemble(file)
    to_do = [task for of_file in tasks.values() for task in of_file]
    if to_do:
        with progress(None, sum(task.samples for task in to_do), "generate") as bar:
            left = Counter({path: len(of_file) for path, of_file in tasks.items()})
            for task in _completed(to_do, engine or local_engine([{}] * workers)):
                bar.update(task.samples)
                left[task.file.path] -= 1
                # at once: its shards need not lie beside those of all other files
                if left[task.file.path] == 0:
                    _assemble(task.file)


def estimate(files: Sequence[DatasetFile], workers: int) -> Estimate:
    """Size and time of what is still missing, from solving one sample of each kind, or a part of it."""
    tasks = [task for file in files if not _is_made(file) for task in _tasks(file)]
    kinds = {task.file.recipe.per_sample: task.file.recipe for task in tasks}
    cost = {kind: recipe.measure_cost() for kind, recipe in kinds.items()}
    seconds = sum(task.samples * cost[task.file.recipe.per_sample] for task in tasks) / workers
    return Estimate(sum(task.samples for task in tasks), sum(task.bytes for task in tasks), seconds)


def _is_made(file: DatasetFile) -> bool:
    if not file.path.exists():
        return False
    with h5py.File(file.path, "r") as existing:
        if existing.attrs.get("recipe_sha256") != file.recipe.sha256:
            raise DatasetConflict(
                f"{file.path} was made from another recipe: move it away, or choose another directory"
            )
    return True


def _tasks(file: DatasetFile) -> Iterator[_Task]:
    """The shards that are not there yet."""
    for task in _all_tasks(file):
        if not task.path.exists():
            yield task


def _all_tasks(file: DatasetFile) -> Iterator[_Task]:
    count, step = file.recipe.count, file.recipe.samples_per_shard
    for first in range(0, count, step):
        yield _Task(file, first, min(first + step, count))


def _require_space(files: Sequence[DatasetFile], tasks: Iterable[Sequence[_Task]]) -> None:
    """Room for the missing shards, and for the one file that is assembled while its shards are there."""
    if not files:
        return
    needed = sum(task.bytes for of_file in tasks for task in of_file) + max(file.bytes for file in files)
    directory = files[0].path.parent
    directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise DiskTooSmall(
            f"{directory} needs {_size(needed)} while data are generated, {_size(free)} are free: "
            "choose another directory, or fewer samples, frames or cells"
        )


def _completed(tasks: Sequence[_Task], engine: Engine) -> Iterator[_Task]:
    """The tasks, each after its shard was written."""
    crew = Crew(_shard_maker, final=(UnsoundSample, CannotSolve, InvalidField))
    works = (Work(number, str(task), task) for number, task in enumerate(tasks))
    with closing(engine.carry_out(crew, works)) as made:
        for work, samples in made:
            task = tasks[work.key]
            with replace_atomically(task.path) as path, path.open("wb") as file:
                np.save(file, samples)
            yield task


@contextmanager
def _shard_maker() -> Iterator[Callable[[_Task], NDArray[np.float32]]]:
    """What makes the samples of a shard; it keeps nothing from one to the next."""
    yield _make_shard


def _make_shard(task: _Task) -> NDArray[np.float32]:
    samples = np.stack([task.file.recipe.make(index) for index in range(task.first, task.last)])
    finite = np.isfinite(samples).all(axis=tuple(range(1, samples.ndim)))
    if not finite.all():
        raise UnsoundSample(
            f"{task.file.path.name}: sample {task.first + int(np.argmin(finite))} is not finite: "
            "choose another scheme, or milder parameters"
        )
    return samples


def _assemble(file: DatasetFile) -> None:
    """Put the shards together into the final file, then remove them."""
    with replace_atomically(file.path) as path:
        file.recipe.write(path, _samples(file))
    for directory in file.path.parent.glob(f".{file.path.stem}.*/"):
        shutil.rmtree(directory)


def _samples(file: DatasetFile) -> Iterator[NDArray[np.float32]]:
    for task in _all_tasks(file):
        yield from np.load(task.path, allow_pickle=False)


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
