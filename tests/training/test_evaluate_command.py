"""``mno evaluate`` on rollouts of a published version, and on solutions of a steady one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from small_models import small_card

from model_store import open_store
from operators import EvolutionSurrogate, surrogate_from_config
from operators.shallow_water_mno import ShallowWaterMnoConfig
from problems import EVOLUTION_PROBLEMS
from training.compat import CONVENTIONS, measure_steady
from training.dataset import InvalidDataset, read_dataset
from training.evaluate import predict
from training.evaluate_cli import evaluate
from training.splits import split_files
from training.trajectories import open_trajectories, write_trajectories
from training.trajectory_evaluation import evaluate_trajectories
from training.trajectory_recipe import TrajectoryRecipe

CONFIG = ShallowWaterMnoConfig(
    channels=8, inner_channels=8, states=2, rank=1, blocks=1, context=2, hidden=4, frames=2
)
WATER, SIDE, SAMPLES = EVOLUTION_PROBLEMS["shallow_water"], 16, 3


def small_surrogate() -> EvolutionSurrogate:
    torch.manual_seed(0)
    surrogate = surrogate_from_config(CONFIG)
    assert isinstance(surrogate, EvolutionSurrogate)
    return surrogate.eval()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with one small version, as it is before training."""
    url = f"file:{tmp_path_factory.mktemp('store')}"
    card = small_card(CONFIG, WATER.name, grids=((SIDE, SIDE),))
    open_store(url).publish("water", small_surrogate().state_dict(), card)
    return url


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trajectories of four frames."""
    recipe = TrajectoryRecipe(
        problem=WATER.name,
        family="dams",
        parameters={},
        seed=1,
        count=SAMPLES,
        grid=(SIDE, SIDE),
        extent=WATER.grid.extent,
        origin=WATER.grid.origin,
        scheme=WATER.schemes[0],
        label_grid=(4 * SIDE, 4 * SIDE),
        frames=4,
        walls="outflow",
    )
    path = tmp_path_factory.mktemp("data") / "test_dams.h5"
    recipe.write(path, (recipe.make(index) for index in range(SAMPLES)))
    return path


def run(silent: Any, *arguments: object) -> Result:
    return CliRunner().invoke(evaluate, [str(argument) for argument in arguments], obj=silent())


def values(result: Result) -> dict[str, float]:
    """The lines ``name value``."""
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.output.splitlines()]
    return {line[0]: float(line[1]) for line in lines if len(line) == 2 and not line[0].endswith(":")}


def test_rollouts_of_a_published_version(silent: Any, store: str, dataset: Path) -> None:
    found = values(run(silent, "water@1", dataset, "--store", store))
    with open_trajectories(dataset) as data:
        expected = evaluate_trajectories(small_surrogate(), data).summary
    assert found == pytest.approx(expected, rel=1e-4)


def test_window(silent: Any, store: str, dataset: Path) -> None:
    arguments = ["--first-frame", 1, "--frames", 2, "--store", store]
    result = run(silent, "water@1", dataset, *arguments)
    assert "2 frames after frame 1" in result.output
    with open_trajectories(dataset) as data:
        expected = evaluate_trajectories(small_surrogate(), data, 1, 2).summary
    assert values(result) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("compat", sorted(CONVENTIONS))
def test_compatible_numbers(silent: Any, store: str, dataset: Path, compat: str) -> None:
    result = run(silent, "water@1", dataset, "--compat", compat, "--batch-size", 2, "--store", store)
    with open_trajectories(dataset) as data:
        expected = evaluate_trajectories(
            small_surrogate(), data, batch_size=2, convention=CONVENTIONS[compat]
        ).compat
    found = {name.partition(".")[2]: value for name, value in values(result).items() if "." in name}
    assert found == pytest.approx(dict(expected), rel=1e-4)


@pytest.mark.slow
def test_baselines_and_report(silent: Any, store: str, dataset: Path, tmp_path: Path) -> None:
    report = ["--report", tmp_path / "report", "--baselines", "--training", dataset]
    result = run(silent, "water@1", dataset, *report, "--store", store)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "report" / "report.md").read_text()
    for name in ("surrogate", "solver, 16 x 16", "solver, 32 x 32", "look-up", "persistence"):
        assert f"| {name} |" in result.output
        assert f"| {name} |" in text
    assert (tmp_path / "report" / "test_dams_error.png").exists()


def test_other_frames_than_the_models_are_refused(silent: Any, store: str, tmp_path: Path) -> None:
    fields = np.ones((1, 3, 3, SIDE, SIDE), np.float32)
    grid = WATER.grid.__class__((SIDE, SIDE), WATER.grid.extent, WATER.grid.origin)
    write_trajectories(tmp_path / "slow.h5", fields, WATER.name, grid, np.array([0.0, 0.02, 0.04]), {})
    result = run(silent, "water@1", tmp_path / "slow.h5", "--store", store)
    assert isinstance(result.exception, InvalidDataset)
    assert "expected a frame every 0.01 s" in str(result.exception)


def test_another_problem_is_refused(silent: Any, store: str, tmp_path: Path) -> None:
    of = EVOLUTION_PROBLEMS["diffusion_reaction"]
    grid = of.grid.__class__((SIDE, SIDE), of.grid.extent, of.grid.origin)
    times = of.frame_interval * np.arange(2)
    write_trajectories(tmp_path / "dr.h5", np.ones((1, 2, 2, SIDE, SIDE)), of.name, grid, times, {})
    result = run(silent, "water@1", tmp_path / "dr.h5", "--store", store)
    assert "expected trajectories of shallow_water, got diffusion_reaction" in str(result.exception)


def test_one_batch_is_too_few_for_pdebench(silent: Any, store: str, dataset: Path) -> None:
    result = run(silent, "water@1", dataset, "--compat", "pdebench", "--store", store)
    assert isinstance(result.exception, InvalidDataset)
    assert "--batch-size" in str(result.exception)


def test_training_data_without_baselines_is_wrong_usage(silent: Any, store: str, dataset: Path) -> None:
    result = run(silent, "water@1", dataset, "--training", dataset, "--store", store)
    assert (result.exit_code, "expected --baselines" in result.output) == (2, True)


@pytest.mark.parametrize("compat", sorted(CONVENTIONS))
def test_compatible_numbers_of_a_steady_problem(finished: Any, silent: Any, compat: str) -> None:
    path = split_files(finished.run, "test")["pdebench"].path
    url = f"file:{finished.run.run.directory}/models"
    result = run(silent, "darcy@production", path, "--compat", compat, "--batch-size", 3, "--store", url)
    data, surrogate = read_dataset(path), open_store(url).load("darcy", 1).surrogate
    expected = measure_steady(CONVENTIONS[compat], predict(surrogate, data, 16), data.pressure, 3)
    found = {name.partition(".")[2]: value for name, value in values(result).items() if "." in name}
    assert found == pytest.approx(expected, rel=1e-3)


def test_a_steady_problem_has_no_frames(finished: Any, silent: Any) -> None:
    path = split_files(finished.run, "test")["pdebench"].path
    url = f"file:{finished.run.run.directory}/models"
    result = run(silent, "darcy@production", path, "--frames", 3, "--baselines", "--store", url)
    assert result.exit_code == 2
    assert "--frames, --baselines: for trajectories" in " ".join(result.output.split())


def test_other_walls_than_the_models_are_refused(silent: Any, store: str, tmp_path: Path) -> None:
    fields = np.ones((1, 3, 3, SIDE, SIDE), np.float32)
    grid = WATER.grid.__class__((SIDE, SIDE), WATER.grid.extent, WATER.grid.origin)
    path, times = tmp_path / "closed.h5", np.array([0.0, 0.01, 0.02])
    write_trajectories(path, fields, WATER.name, grid, times, {"walls": "reflecting"})
    result = run(silent, "water@1", path, "--store", store)
    assert isinstance(result.exception, InvalidDataset)
    assert "expected walls outflow" in str(result.exception)
