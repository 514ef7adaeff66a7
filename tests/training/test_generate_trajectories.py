"""Trajectories generated: averaged from the label grid, resumed to the same bytes, or refused."""

import shutil
import subprocess
import sys
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, final

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

import training
from problems import EVOLUTION_PROBLEMS, Grid, coarsen
from training.config import parse_run
from training.generate import DatasetFile, DiskTooSmall, UnsoundSample, estimate, generate
from training.recipe import Recipe
from training.splits import all_files
from training.trajectories import open_trajectories
from training.trajectory_recipe import TrajectoryRecipe


def recipe(problem: str, **changes: Any) -> TrajectoryRecipe:
    """Three short trajectories on few cells."""
    pde = EVOLUTION_PROBLEMS[problem]
    settings = {
        "problem": problem,
        "family": "wide",
        "parameters": {},
        "seed": 5,
        "count": 3,
        "grid": (8, 16),
        "extent": pde.grid.extent,
        "origin": pde.grid.origin,
        "label_grid": (32, 32),
        "frames": 4,
        "scheme": pde.schemes[0],
        "walls": pde.walls[0],
    }
    return TrajectoryRecipe.model_validate(settings | changes)


class Killed(BaseException):
    """Stands for the end of the process."""


def _kill(_: int) -> None:
    raise Killed


@pytest.mark.parametrize("problem", EVOLUTION_PROBLEMS)
def test_frames_are_averages_of_the_label_grids(problem: str, tmp_path: Path, silent: Any) -> None:
    made, pde = recipe(problem), EVOLUTION_PROBLEMS[problem]
    file = DatasetFile(tmp_path / "x.h5", made)
    generate([file], 1, silent())
    fine = Grid((32, 32), pde.grid.extent, pde.grid.origin)
    state = pde.sample("wide", {}, 5, 2, fine)
    states = [state, *islice(pde.frames(state, fine), 4)]
    with open_trajectories(file.path) as data:
        found = data.read(2)
        np.testing.assert_allclose(data.times, pde.frame_interval * np.arange(5), rtol=1e-6)
        assert (len(data), data.grid, data.extent) == (3, (8, 16), pde.grid.extent)
        assert (data.attributes["walls"], data.attributes["recipe_sha256"]) == (pde.walls[0], made.sha256)
    for frame, fields in enumerate(states):
        for channel, spec in enumerate(pde.outputs):
            expected = coarsen(fields, (8, 16))[spec.name].astype(np.float32)
            np.testing.assert_array_equal(found[frame, channel], expected)


def test_a_sample_depends_on_its_index_alone() -> None:
    first = recipe("shallow_water").make(1)
    np.testing.assert_array_equal(first, recipe("shallow_water", count=2).make(1))
    assert not np.array_equal(first, recipe("shallow_water").make(2))
    np.testing.assert_array_equal(first[0], recipe("shallow_water").make_input(1))


@pytest.mark.parametrize("problem", EVOLUTION_PROBLEMS)
def test_a_killed_generation_continues_to_the_same_bytes(problem: str, tmp_path: Path, silent: Any) -> None:
    whole, resumed = (DatasetFile(tmp_path / name / "x.h5", recipe(problem)) for name in ("whole", "resumed"))
    generate([whole], 1, silent())
    for _ in range(2):
        with pytest.raises(Killed):
            generate([resumed], 1, silent(generate=_kill))
        assert not resumed.path.exists()
    counts: list[int] = []
    generate([resumed], 1, silent(generate=counts.append))
    assert counts == [1]
    assert resumed.path.read_bytes() == whole.path.read_bytes()
    assert [path.name for path in resumed.path.parent.iterdir()] == ["x.h5"]


def test_a_generation_killed_before_assembly_is_assembled(tmp_path: Path, silent: Any) -> None:
    file = DatasetFile(tmp_path / "x.h5", recipe("diffusion_reaction", count=1))
    with pytest.raises(Killed):
        generate([file], 1, silent(generate=_kill))
    assert estimate([file], 1).samples == 0
    generate([file], 1, silent(generate=_kill))
    assert file.path.exists()


def test_each_file_is_assembled_as_soon_as_it_can_be(tmp_path: Path, silent: Any) -> None:
    first, second = (
        DatasetFile(tmp_path / f"{name}.h5", recipe("diffusion_reaction", count=1, seed=seed))
        for seed, name in enumerate("ab")
    )

    def kill_second(count: int) -> None:
        if count == 2:
            raise Killed

    with pytest.raises(Killed):
        generate([first, second], 1, silent(generate=kill_second))
    assert first.path.exists()
    assert not first.shard_directory.exists()
    assert not second.path.exists()


def test_the_estimate_counts_what_is_missing(tmp_path: Path, silent: Any) -> None:
    made = recipe("shallow_water", frames=20)
    files = [DatasetFile(tmp_path / "a.h5", made), DatasetFile(tmp_path / "b.h5", recipe("shallow_water"))]
    generate(files[1:], 1, silent())
    found = estimate(files, 1)
    assert (found.samples, found.bytes) == (3, 3 * 21 * 3 * 8 * 16 * 4)
    assert found.seconds > 0
    assert str(found).startswith("3 samples to generate, 0 MB, about 0 s")


def test_a_disk_that_is_too_small_is_found_before_it_is_full(tmp_path: Path, silent: Any) -> None:
    # the shard fits, the file beside it does not
    frames = shutil.disk_usage(tmp_path).free // (recipe("shallow_water").sample_bytes // 5)
    files = [DatasetFile(tmp_path / "x.h5", recipe("shallow_water", count=1, frames=frames - 1))]
    with pytest.raises(DiskTooSmall, match="choose another directory"):
        generate(files, 1, silent(generate=_kill))
    assert not list(tmp_path.iterdir())


@final
class Unstable(Recipe):
    """Its solver diverges."""

    suffix: ClassVar[str] = ".h5"
    samples_per_shard: ClassVar[int] = 2

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return (4,)

    def make_input(self, index: int) -> NDArray[np.float32]:
        return self.make(index)

    def make(self, index: int) -> NDArray[np.float32]:
        return np.full(4, np.nan if index == 3 else 1.0, np.float32)

    def write(self, path: Path, samples: Any) -> None:
        np.save(path, list(samples))

    def measure_cost(self) -> float:
        return 0.0


def test_a_sample_that_is_not_finite_stops_the_generation(tmp_path: Path, silent: Any) -> None:
    fields = recipe("shallow_water", count=6).model_dump(exclude={"origin", "label_grid", "frames", "walls"})
    with pytest.raises(UnsoundSample, match="sample 3 "):
        generate([DatasetFile(tmp_path / "x.h5", Unstable(**fields))], 1, silent())
    assert not (tmp_path / "x.h5").exists()


RUN = """
[run]
name = "waves"
directory = "{directory}/runs"

[data]
directory = "{directory}/{name}"
problem = "shallow_water"
grid = [16, 16]
label_grid = [64, 64]
frames = 20
scheme = "hllc-muscl-v1"
walls = "outflow"
workers = 2

[[data.families]]
name = "wide"
family = "wide"
train = 60

[operator]
kind = "shallow_water_mno"

[sequence]

[optimizer]
learning_rate = 1e-3
steps = 2
batch_size = 1
"""


@pytest.mark.slow
def test_sigkill_while_generating(tmp_path: Path, silent: Any) -> None:
    killed, whole = (parse_run(RUN.format(directory=tmp_path, name=name)) for name in ("killed", "whole"))
    (tmp_path / "run.toml").write_text(RUN.format(directory=tmp_path, name="killed"))
    command = [sys.executable, "-m", "mno", "generate", str(tmp_path / "run.toml")]
    (file,), (other,) = all_files(killed), all_files(whole)
    with subprocess.Popen(
        command, cwd=Path(training.__file__).parents[1], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while process.returncode is None and not any(file.shard_directory.glob("*.npy")):
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.05)
        process.kill()
    assert any(file.shard_directory.glob("*.npy"))
    generate([file], 1, silent())
    generate([other], 1, silent())
    assert file.path.read_bytes() == other.path.read_bytes()
    with h5py.File(file.path) as written:
        assert len(written) == 60
