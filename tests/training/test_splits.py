"""The files of a run: recipes as they always were, and complaints about what a problem does not have."""

from pathlib import Path
from typing import Any

import pytest

import training
from model_store import builtin_store
from problems import EVOLUTION_PROBLEMS
from training.config import DataSection, InvalidRun, Run, parse_run
from training.splits import all_files
from training.trajectory_recipe import TrajectoryRecipe

FAMILIES = [{"name": "a", "family": "wide", "train": 2, "test": 1}]


def run_of(**data: Any) -> Run:
    """A run with this data; the rest does not matter here."""
    return Run.model_construct(data=DataSection.model_validate({"families": FAMILIES} | data))


def waves(**data: Any) -> Run:
    settings = {
        "directory": "d",
        "problem": "shallow_water",
        "grid": (64, 64),
        "scheme": "hllc-muscl-v1",
    }
    return run_of(**(settings | data))


def test_darcys_recipes_are_those_of_the_built_in_models_card() -> None:
    card = builtin_store().card("darcy", 1)
    files = all_files(parse_run((Path(training.__file__).parent / "runs" / "darcy.toml").read_text()))
    hashes = {f"recipe_sha256.{file.path.name}": file.recipe.sha256 for file in files}
    named = {name: value for name, value in card.dataset.items() if name in hashes}
    assert len(named) == 3
    assert named.items() <= hashes.items()


def test_what_a_run_leaves_out_is_as_in_pdebenchs_data() -> None:
    problem = EVOLUTION_PROBLEMS["shallow_water"]
    train, _ = all_files(waves())
    assert train.path == Path("d/train_a.h5")
    assert isinstance(train.recipe, TrajectoryRecipe)
    found = train.recipe
    assert (found.extent, found.origin) == (problem.grid.extent, problem.grid.origin)
    assert (found.label_grid, found.frames, found.walls) == ((64, 64), 100, "outflow")


def test_what_a_run_says_counts() -> None:
    train, test = all_files(waves(extent=(10.0, 5.0), label_grid=(128, 64), frames=7, walls="periodic"))
    assert isinstance(train.recipe, TrajectoryRecipe)
    found = train.recipe
    assert (found.extent, found.origin) == ((10.0, 5.0), (-5.0, -2.5))
    assert (found.label_grid, found.frames, found.walls) == ((128, 64), 7, "periodic")
    assert test.recipe.seed != found.seed


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"problem": "wave"}, "wave"),
        ({"scheme": "magic"}, "data.scheme"),
        ({"walls": "soft"}, "data.walls"),
        ({"label_grid": (96, 64)}, "data.label_grid"),
        ({"families": [{"name": "a", "family": "puddles", "train": 1}]}, "puddles"),
        ({"problem": "darcy", "scheme": "tpfa-harmonic-v1", "frames": 3}, "data.frames"),
    ],
)
def test_what_a_problem_does_not_have_is_refused(data: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRun, match=named):
        all_files(waves(**data))
