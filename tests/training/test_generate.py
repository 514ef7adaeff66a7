"""Generation: a sample depends on seed and index alone; a killed generation continues to the same bytes."""

import math
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import training
from problems import PROBLEMS, Grid
from training.config import parse_run
from training.dataset import read_dataset
from training.generate import DatasetConflict, DatasetFile, estimate, generate
from training.recipe import resolve_parameters
from training.splits import SPLITS, all_files, split_seed
from training.steady_recipe import SteadyRecipe

RECIPE = SteadyRecipe(
    problem="darcy",
    family="log_normal",
    parameters={"contrast": (2.0, 100.0), "correlation_length": 0.2},
    seed=7,
    count=220,
    grid=(16, 16),
    extent=(1.0, 1.0),
    scheme="tpfa-harmonic-v1",
    source=2.0,
)


class Killed(BaseException):
    """Stands for the end of the process."""


def _kill(_: int) -> None:
    raise Killed


def test_a_killed_generation_continues_to_the_same_bytes(tmp_path: Path, silent: Any) -> None:
    whole, resumed = (DatasetFile(tmp_path / name / "x.hdf5", RECIPE) for name in ("whole", "resumed"))
    generate([whole], 1, silent())
    for _ in range(2):
        # one shard more each time
        with pytest.raises(Killed):
            generate([resumed], 1, silent(generate=_kill))
        assert not resumed.path.exists()
    counts: list[int] = []
    generate([resumed], 1, silent(generate=counts.append))
    assert counts == [20]
    assert resumed.path.read_bytes() == whole.path.read_bytes()
    assert [path.name for path in resumed.path.parent.iterdir()] == ["x.hdf5"]


def test_what_is_there_is_not_made_again(tmp_path: Path, silent: Any) -> None:
    file = DatasetFile(tmp_path / "x.hdf5", RECIPE.model_copy(update={"count": 3}))
    generate([file], 1, silent())
    written = file.path.stat().st_mtime_ns
    generate([file], 1, silent(generate=_kill))
    assert file.path.stat().st_mtime_ns == written
    assert estimate([file], 1).samples == 0


def test_another_recipes_file_is_not_overwritten(tmp_path: Path, silent: Any) -> None:
    recipe = RECIPE.model_copy(update={"count": 3})
    generate([DatasetFile(tmp_path / "x.hdf5", recipe)], 1, silent())
    with pytest.raises(DatasetConflict, match="another recipe"):
        generate([DatasetFile(tmp_path / "x.hdf5", recipe.model_copy(update={"seed": 8}))], 1, silent())


def test_labels_belong_to_the_stored_permeability(tmp_path: Path, silent: Any) -> None:
    file = DatasetFile(tmp_path / "x.hdf5", RECIPE.model_copy(update={"count": 2}))
    generate([file], 1, silent())
    data = read_dataset(file.path)
    fields = {"permeability": data.permeability[1, 0].astype(np.float64), "source": np.array(2.0)}
    solution = PROBLEMS["darcy"].solve(fields, Grid(data.grid)).fields["pressure"]
    np.testing.assert_allclose(data.pressure[1, 0], solution, rtol=1e-6)
    assert (data.source, data.attributes["scheme"]) == (2.0, "tpfa-harmonic-v1")


def test_a_sample_depends_on_its_index_alone() -> None:
    first = RECIPE.make(3)
    RECIPE.make(4)
    np.testing.assert_array_equal(first, RECIPE.model_copy(update={"count": 4}).make(3))
    assert not np.array_equal(first[0], RECIPE.make(4)[0])


def test_ranges_are_drawn_log_uniformly() -> None:
    parameters = {"contrast": (2.0, 200.0), "correlation_length": 0.2}
    drawn = [resolve_parameters(parameters, 1, index) for index in range(2000)]
    logarithms = np.log([values["contrast"] for values in drawn])
    assert {values["correlation_length"] for values in drawn} == {0.2}
    assert math.log(2.0) <= logarithms.min() < logarithms.max() <= math.log(200.0)
    # the mean of 2000 uniform numbers is within 5 standard errors of the middle
    assert logarithms.mean() == pytest.approx(math.log(20.0), abs=5 * math.log(100.0) / math.sqrt(12 * 2000))


def test_the_contrast_is_the_drawn_one() -> None:
    permeability, _ = RECIPE.make(5)
    contrast = resolve_parameters(RECIPE.parameters, RECIPE.seed, 5)["contrast"]
    assert permeability.max() / permeability.min() == pytest.approx(contrast, rel=1e-5)


def test_splits_and_families_have_seeds_of_their_own() -> None:
    seeds = [
        split_seed(seed, split, name) for seed in (1, 2) for split in SPLITS for name in ("a", "b", "ab")
    ]
    assert len(set(seeds)) == len(seeds)


def test_processes_make_what_one_process_makes(tmp_path: Path, silent: Any) -> None:
    recipe = RECIPE.model_copy(update={"count": 101})
    one, two = (DatasetFile(tmp_path / name / "x.hdf5", recipe) for name in ("one", "two"))
    generate([one], 1, silent())
    generate([two], 2, silent())
    assert one.path.read_bytes() == two.path.read_bytes()


@pytest.mark.slow
def test_sigkill_while_generating(tmp_path: Path, smoke_text: str, silent: Any) -> None:
    text = smoke_text.replace("train = 24", "train = 800").replace("workers = 1", "workers = 2")
    (tmp_path / "run.toml").write_text(text)
    run = parse_run(text)
    command = [sys.executable, "-m", "mno", "generate", str(tmp_path / "run.toml")]
    shards = all_files(run)[0].shard_directory
    with subprocess.Popen(
        command, cwd=Path(training.__file__).parents[1], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while process.returncode is None and not any(shards.glob("*.npy")):
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.05)
        process.kill()
    assert any(shards.glob("*.npy"))
    generate(all_files(run), 1, silent())
    elsewhere = parse_run(text.replace(f"{tmp_path}/data", f"{tmp_path}/again"))
    generate(all_files(elsewhere), 1, silent())
    for resumed, whole in zip(all_files(run), all_files(elsewhere), strict=True):
        assert resumed.path.read_bytes() == whole.path.read_bytes()
