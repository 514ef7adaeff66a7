"""The files of a run: which samples of which family train, validate and test."""

import os

import numpy as np

from training.config import FamilySection, Run, Split
from training.generate import DatasetFile, Recipe

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def split_seed(seed: int, split: Split, name: str) -> int:
    """The seed of one split of one family; different splits have streams that never meet."""
    sequence = np.random.SeedSequence([seed, *name.encode()], spawn_key=(SPLITS.index(split),))
    high, low = sequence.generate_state(2)
    return int(high) << 31 | int(low) >> 1


def split_files(run: Run, split: Split) -> dict[str, DatasetFile]:
    """Family name -> its file of the split, for the families that have samples in it."""
    return {
        family.name: _file(run, split, family) for family in run.data.families if getattr(family, split) > 0
    }


def all_files(run: Run) -> list[DatasetFile]:
    """Every file of the run."""
    return [file for split in SPLITS for file in split_files(run, split).values()]


def worker_count(run: Run) -> int:
    """Processes that generate data."""
    return run.data.workers or os.cpu_count() or 1


def _file(run: Run, split: Split, family: FamilySection) -> DatasetFile:
    data = run.data
    recipe = Recipe(
        problem=data.problem,
        family=family.family,
        parameters=family.parameters,
        seed=split_seed(data.seed, split, family.name),
        count=getattr(family, split),
        grid=data.grid,
        extent=data.extent,
        scheme=data.scheme,
        source=data.source,
    )
    return DatasetFile(data.directory / f"{split}_{family.name}.hdf5", recipe)
