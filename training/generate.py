"""Reference data: a sample depends on its seed and index alone, so files are made in parallel and resumed.

A file is computed in shards, each whole or absent, and assembled from them; it too is whole or absent. Labels
are solved in float64 for the float32 permeability that the file holds.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from problems import STEADY_PROBLEMS, Grid
from training.dataset import Attributes, InvalidDataset, Shard, write_dataset
from training.files import replace_atomically
from training.progress import Progress
from training.worker import start_worker

SHARD_SAMPLES = 100
TOLERANCE = 1e-10


class DatasetConflict(InvalidDataset):
    """The file that stands in the way was made from another recipe."""


class Recipe(BaseModel):
    """All that the content of one file depends on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    problem: str
    family: str
    # a number, or the bounds of a log-uniform draw
    parameters: Mapping[str, float | tuple[float, float]]
    seed: int
    count: int
    grid: tuple[int, int]
    extent: tuple[float, float]
    scheme: str
    source: float
    tolerance: float = TOLERANCE

    @property
    def sha256(self) -> str:
        """Hash of the recipe's canonical JSON."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def canonical(self) -> str:
        """The recipe as JSON with sorted keys."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True)


class DatasetFile(NamedTuple):
    """A file to be made: its place and its recipe."""

    path: Path
    recipe: Recipe

    @property
    def shard_directory(self) -> Path:
        """Where the shards wait for assembly; another recipe has another directory."""
        return self.path.with_name(f".{self.path.stem}.{self.recipe.sha256[:16]}")


class _Task(NamedTuple):
    """One shard: samples first, ..., last - 1."""

    recipe: Recipe
    first: int
    last: int
    path: Path


@dataclass(frozen=True)
class Estimate:
    """What a generation will cost."""

    samples: int
    bytes: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.samples} samples to generate, {self.bytes / 1e6:.0f} MB, about {self.seconds:.0f} s"


def generate(files: Sequence[DatasetFile], workers: int, progress: Progress) -> None:
    """Make every file that is not there yet, continuing from the shards of an interrupted generation.

    Raises:
        DatasetConflict: a file exists and was made from another recipe.
    """
    missing = [file for file in files if not _is_made(file)]
    tasks = [task for file in missing for task in _tasks(file)]
    if tasks:
        with progress(None, sum(task.last - task.first for task in tasks), "generate") as bar:
            for task in _completed(tasks, workers):
                bar.update(task.last - task.first)
    for file in missing:
        _assemble(file)


def estimate(files: Sequence[DatasetFile], workers: int) -> Estimate:
    """Size and time of what is still missing, from solving one sample of each file."""
    tasks = [(file, task) for file in files if not _is_made(file) for task in _tasks(file)]
    cost = {file.path: _seconds_per_sample(file.recipe) for file, _ in tasks}
    samples = sum(task.last - task.first for _, task in tasks)
    seconds = sum((task.last - task.first) * cost[file.path] for file, task in tasks) / workers
    return Estimate(
        samples, sum(2 * 4 * _cells(file) * (task.last - task.first) for file, task in tasks), seconds
    )


def resolve_parameters(
    parameters: Mapping[str, float | tuple[float, float]], seed: int, index: int
) -> dict[str, float]:
    """The parameters of one sample: numbers as they are, ranges drawn log-uniformly."""
    # a stream of its own: the problem draws the field from (seed, index)
    random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index, 1)))
    return {name: _draw(parameters[name], random) for name in sorted(parameters)}


def _draw(value: float | tuple[float, float], random: np.random.Generator) -> float:
    if not isinstance(value, tuple):
        return value
    low, high = value
    return float(low * (high / low) ** random.random())


def make_sample(recipe: Recipe, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Permeability and pressure [y x] of one sample."""
    problem, grid = STEADY_PROBLEMS[recipe.problem], Grid(recipe.grid, recipe.extent)
    parameters = resolve_parameters(recipe.parameters, recipe.seed, index)
    drawn = problem.sample(recipe.family, parameters, recipe.seed, index, grid)
    permeability = drawn["permeability"].astype(np.float32)
    fields = {"permeability": permeability.astype(np.float64), "source": np.array(recipe.source)}
    solution = problem.solve(fields, grid, recipe.scheme, recipe.tolerance)
    return permeability, solution.fields["pressure"].astype(np.float32)


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
    for first in range(0, file.recipe.count, SHARD_SAMPLES):
        last = min(first + SHARD_SAMPLES, file.recipe.count)
        yield _Task(file.recipe, first, last, file.shard_directory / f"{first:08d}.npy")


def _completed(tasks: Iterable[_Task], workers: int) -> Iterator[_Task]:
    """The tasks, each after its shard was written."""
    if workers == 1:
        yield from map(_make_shard, tasks)
        return
    # spawned, not forked: the parent has threads (torch, numba)
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=start_worker) as pool:
        pending = [pool.submit(_make_shard, task) for task in tasks]
        try:
            yield from (future.result() for future in as_completed(pending))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _make_shard(task: _Task) -> _Task:
    samples = [make_sample(task.recipe, index) for index in range(task.first, task.last)]
    with replace_atomically(task.path) as path, path.open("wb") as file:
        np.save(file, np.array(samples, dtype=np.float32).swapaxes(0, 1))
    return task


def _assemble(file: DatasetFile) -> None:
    """Put the shards together into the final file, then remove them."""
    recipe = file.recipe
    shards: Iterator[Shard] = (np.load(task.path, allow_pickle=False) for task in _all_tasks(file))
    attributes: Attributes = {
        "beta": recipe.source,
        "problem": recipe.problem,
        "scheme": recipe.scheme,
        "family": recipe.family,
        "parameters": json.dumps(recipe.parameters, sort_keys=True),
        "seed": recipe.seed,
        "first_index": 0,
        "recipe": recipe.canonical(),
        "recipe_sha256": recipe.sha256,
    }
    with replace_atomically(file.path) as path:
        write_dataset(path, recipe.count, shards, Grid(recipe.grid, recipe.extent).coordinates(), attributes)
    for directory in file.path.parent.glob(f".{file.path.stem}.*/"):
        shutil.rmtree(directory)


def _seconds_per_sample(recipe: Recipe) -> float:
    # the first call compiles
    make_sample(recipe, 0)
    start = time.perf_counter()
    make_sample(recipe, 0)
    return time.perf_counter() - start


def _cells(file: DatasetFile) -> int:
    ny, nx = file.recipe.grid
    return ny * nx
