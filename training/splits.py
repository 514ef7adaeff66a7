"""The files of a run: which samples of which family train, validate, test and calibrate."""

import os
from typing import Any

import numpy as np

from problems import EVOLUTION_PROBLEMS, STEADY_PROBLEMS, EvolutionProblem, Problem
from training.config import DataSection, FamilySection, InvalidRun, Run, Split
from training.generate import DatasetFile
from training.recipe import Recipe
from training.steady_recipe import SteadyRecipe
from training.trajectory_recipe import TrajectoryRecipe

# a split keeps its place: its samples depend on it
SPLITS: tuple[Split, ...] = ("train", "validation", "test", "calibration")


def split_seed(seed: int, split: Split, name: str) -> int:
    """The seed of one split of one family; different splits have streams that never meet."""
    sequence = np.random.SeedSequence([seed, *name.encode()], spawn_key=(SPLITS.index(split),))
    high, low = sequence.generate_state(2)
    return int(high) << 31 | int(low) >> 1


def split_files(run: Run, split: Split) -> dict[str, DatasetFile]:
    """Family name -> its file of the split, for the families that have samples in it.

    Raises:
        InvalidRun: the problem does not have what the run names.
    """
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
    recipe = _recipe(run.data, split, family)
    return DatasetFile(run.data.directory / f"{split}_{family.name}{recipe.suffix}", recipe)


def _recipe(data: DataSection, split: Split, family: FamilySection) -> Recipe:
    if data.problem in STEADY_PROBLEMS:
        return _steady(data, split, family, STEADY_PROBLEMS[data.problem])
    if data.problem in EVOLUTION_PROBLEMS:
        return _evolution(data, split, family, EVOLUTION_PROBLEMS[data.problem])
    known = [*STEADY_PROBLEMS, *EVOLUTION_PROBLEMS]
    raise InvalidRun(f"data.problem: expected one of {', '.join(known)}, got {data.problem}")


def _steady(data: DataSection, split: Split, family: FamilySection, problem: Problem) -> SteadyRecipe:
    for name in ("frames", "label_grid", "walls"):
        if getattr(data, name) is not None:
            raise InvalidRun(f"data.{name}: {data.problem} is steady: leave it out")
    return SteadyRecipe(**_common(data, split, family, problem), extent=data.extent, source=data.source)


def _evolution(
    data: DataSection, split: Split, family: FamilySection, problem: EvolutionProblem
) -> TrajectoryRecipe:
    # what the run leaves out is as in PDEBench's data
    extent = data.extent if "extent" in data.model_fields_set else problem.grid.extent
    label_grid = data.label_grid or data.grid
    if any(fine % coarse for fine, coarse in zip(label_grid, data.grid, strict=True)):
        raise InvalidRun(
            f"data.label_grid: each side must be a multiple of data.grid {data.grid}, got {label_grid}"
        )
    return TrajectoryRecipe(
        **_common(data, split, family, problem),
        extent=extent,
        origin=_origin(problem, extent),
        label_grid=label_grid,
        frames=data.frames or problem.frame_count,
        walls=_one_of("data.walls", data.walls or problem.walls[0], problem.walls),
    )


def _common(data: DataSection, split: Split, family: FamilySection, problem: Problem) -> dict[str, Any]:
    return {
        "problem": data.problem,
        "family": _one_of("data.families", family.family, tuple(problem.families)),
        "parameters": family.parameters,
        "seed": split_seed(data.seed, split, family.name),
        "count": getattr(family, split),
        "grid": data.grid,
        "scheme": _one_of("data.scheme", data.scheme, problem.schemes),
    }


def _origin(problem: EvolutionProblem, extent: tuple[float, float]) -> tuple[float, float]:
    """The corner of a domain of another size that lies around the same point."""
    corner, sides = problem.grid.origin, problem.grid.extent
    return corner[0] * extent[0] / sides[0], corner[1] * extent[1] / sides[1]


def _one_of(what: str, name: str, known: tuple[str, ...]) -> str:
    if name not in known:
        raise InvalidRun(f"{what}: expected one of {', '.join(known)}, got {name}")
    return name
