"""`mno data check`: silent about sound files, and not about any of the faults planted here."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

import mno
from problems import EVOLUTION_PROBLEMS
from training.check import check_files
from training.findings import Report
from training.generate import DatasetFile, generate
from training.recipe import Recipe
from training.steady_recipe import SteadyRecipe
from training.trajectory_recipe import TrajectoryRecipe

ORACLES = Path(__file__).parents[1] / "data"

STEADY = SteadyRecipe(
    problem="darcy",
    family="pdebench",
    parameters={},
    seed=7,
    count=4,
    grid=(16, 16),
    extent=(1.0, 1.0),
    scheme="tpfa-harmonic-v1",
    source=2.0,
)


def recipe(problem: str, **changes: Any) -> TrajectoryRecipe:
    pde = EVOLUTION_PROBLEMS[problem]
    settings = {
        "problem": problem,
        "family": "wide",
        "parameters": {},
        "seed": 5,
        "count": 4,
        "grid": (16, 16),
        "extent": pde.grid.extent,
        "origin": pde.grid.origin,
        "label_grid": (32, 32),
        "frames": 14,
        "scheme": pde.schemes[0],
        "walls": "reflecting" if "reflecting" in pde.walls else pde.walls[0],
    }
    return TrajectoryRecipe.model_validate(settings | changes)


RECIPES: dict[str, Recipe] = {"darcy": STEADY} | {problem: recipe(problem) for problem in EVOLUTION_PROBLEMS}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, silent: Any) -> dict[str, bytes]:
    """Problem -> the bytes of a sound file."""
    directory = tmp_path_factory.mktemp("sound")
    files = {name: DatasetFile(directory / f"{name}.h5", of) for name, of in RECIPES.items()}
    generate(list(files.values()), 1, silent())
    return {name: file.path.read_bytes() for name, file in files.items()}


@pytest.fixture
def sound(made: dict[str, bytes], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a problem's sound file."""

    def copy(problem: str, name: str = "x.h5") -> Path:
        (tmp_path / name).write_bytes(made[problem])
        return tmp_path / name

    return copy


def statuses(report: Report) -> dict[str, str]:
    return {finding.subject: finding.status for finding in report.findings}


def text(report: Report, subject: str) -> str:
    return next(finding.text for finding in report.findings if finding.subject == subject)


@pytest.mark.parametrize("problem", RECIPES)
def test_what_was_generated_is_sound(problem: str, sound: Any, progress: Any) -> None:
    (report,) = check_files([sound(problem)], progress)
    assert report.is_sound, str(report)
    assert set(statuses(report).values()) == {"ok"}, str(report)
    assert problem in report.title


def _change(name: str, change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Any:
    def plant(file: h5py.File) -> None:
        values = change(file[name][()])
        del file[name]
        file[name] = values

    return plant


def _put(name: str, index: Any, value: float) -> Any:
    def plant(file: h5py.File) -> None:
        file[name][index] = value

    return plant


def _remove(name: str) -> Any:
    def plant(file: h5py.File) -> None:
        del file[name]

    return plant


def _attribute(name: str, value: object) -> Any:
    def plant(file: h5py.File) -> None:
        file.attrs[name] = value

    return plant


def _copy(source: str, target: str) -> Any:
    def plant(file: h5py.File) -> None:
        del file[target]
        file.copy(source, target)

    return plant


def _another_seed(file: h5py.File) -> None:
    """A recipe that agrees with its hash and not with the samples."""
    kind = SteadyRecipe if file.attrs["problem"] == "darcy" else TrajectoryRecipe
    forged = kind.model_validate_json(file.attrs["recipe"]).model_copy(update={"seed": 6})
    file.attrs.update({"recipe": forged.canonical(), "recipe_sha256": forged.sha256})


def _swapped(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """Two frames in the wrong order."""
    return frames[[*range(11), 12, 11, *range(13, len(frames))]]


FAULTS: list[tuple[str, Any, str, str]] = [
    ("shallow_water", _remove("0002/data"), "structure", "0002"),
    ("shallow_water", _change("0001/data", lambda v: v[:-1]), "structure", "0001"),
    ("shallow_water", _change("0003/data", lambda v: v[:, :8]), "structure", "0003"),
    ("shallow_water", _remove("0002/momentum"), "structure", "momentum"),
    ("diffusion_reaction", _change("0001/data", lambda v: v.astype("f8")), "structure", "float32"),
    ("shallow_water", _put("0001/grid/x", 3, 0.5), "coordinates", "x is 0.5 at 3"),
    ("shallow_water", _put("0000/grid/y", 3, np.nan), "coordinates", "y is nan at 3"),
    ("shallow_water", _change("0001/grid/y", lambda v: v + 1), "coordinates", "y"),
    ("shallow_water", _put("0001/grid/t", 3, 0.5), "times", "t is 0.5 at 3"),
    ("shallow_water", _put("0000/grid/t", 3, 0.031), "times", "not uniform"),
    ("shallow_water", _put("0001/data", (3, 4, 5, 0), np.nan), "values", "finite"),
    ("shallow_water", _put("0001/data", (3, 4, 5, 0), 0.0), "values", "(3, 5, 4)"),
    ("shallow_water", _put("0001/momentum", (3, 4, 5, 1), np.inf), "values", "hv"),
    ("diffusion_reaction", _put("0001/data", (3, 4, 5, 1), 1e4), "values", "v must be at most"),
    ("shallow_water", _put("0001/data", (3, 4, 5, 0), 2.9), "mass", "0001"),
    ("diffusion_reaction", _change("0001/data", _swapped), "mean of v", "0001"),
    ("diffusion_reaction", _change("0001/data", lambda v: v[..., ::-1]), "mean of v", "0001"),
    ("diffusion_reaction", _another_seed, "recipe", "seed 6"),
    ("shallow_water", _another_seed, "recipe", "seed 6"),
    ("shallow_water", _attribute("recipe_sha256", "0" * 64), "recipe", "hash"),
    ("shallow_water", _attribute("recipe", "{}"), "recipe", "not of this version"),
    ("shallow_water", _remove("0003"), "recipe", "count = 4, the file holds 3"),
    ("darcy", _put("x-coordinate", 0, 0.0), "coordinates", "x from 0"),
    ("darcy", _put("nu", (1, 2, 3), -0.5), "values", "(1, 3, 2)"),
    ("darcy", _put("tensor", (1, 0, 2, 3), np.nan), "values", "pressure"),
    ("darcy", _change("tensor", lambda v: np.swapaxes(v, -1, -2)), "labels", "relative L2"),
    ("darcy", _change("tensor", lambda v: v * np.float32(1.0001)), "labels", "1.0e-04"),
    ("darcy", _attribute("scheme", "pdebench-ghost0-v1"), "labels", "pdebench-ghost0-v1"),
    ("darcy", _attribute("scheme", "magic"), "labels", "magic"),
    ("darcy", _another_seed, "recipe", "seed 6"),
    ("darcy", _attribute("recipe_sha256", "0" * 64), "recipe", "hash"),
]


@pytest.mark.parametrize(("problem", "plant", "subject", "named"), FAULTS)
def test_a_planted_fault_is_found(
    problem: str, plant: Any, subject: str, named: str, sound: Any, progress: Any
) -> None:
    path = sound(problem)
    with h5py.File(path, "a") as file:
        plant(file)
    (report,) = check_files([path], progress)
    assert statuses(report)[subject] == "fault", str(report)
    assert named in text(report, subject)
    assert not report.is_sound


def test_mass_may_leave_through_open_walls(tmp_path: Path, progress: Any) -> None:
    file = DatasetFile(tmp_path / "x.h5", recipe("shallow_water", walls="outflow", frames=60, seed=1))
    generate([file], 1, progress)
    (report,) = check_files([file.path], progress)
    assert report.is_sound, str(report)
    # and is seen to: called reflecting, the same file is not sound
    with h5py.File(file.path, "a") as written:
        written.attrs["walls"] = "reflecting"
    (report,) = check_files([file.path], progress)
    assert statuses(report)["mass"] == "fault"


def test_equal_initial_states_are_counted(sound: Any, progress: Any) -> None:
    path = sound("shallow_water")
    with h5py.File(path, "a") as file:
        _copy("0001", "0003")(file)
    (report,) = check_files([path], progress)
    assert statuses(report)["inputs"] == "note"
    assert "3 distinct, of 4" in text(report, "inputs")


def test_pdebenchs_dam_breaks_repeat_themselves(tmp_path: Path, progress: Any) -> None:
    """Radii between 0.3 and 0.7 m on cells of 5/128 m: 10 seeds already share states."""
    grid = (128, 128)
    made = recipe("shallow_water", family="pdebench", seed=0, count=60, grid=grid, label_grid=grid, frames=1)
    states = [made.make_input(index)[None].repeat(2, axis=0) for index in range(made.count)]
    made.write(tmp_path / "2D_rdb_NA_NA.h5", states)
    (report,) = check_files([tmp_path / "2D_rdb_NA_NA.h5"], progress)
    distinct = len({state.tobytes() for state in states})
    assert distinct < made.count
    assert f"{distinct} distinct, of 60" in text(report, "inputs")


@pytest.mark.parametrize("problem", RECIPES)
def test_inputs_that_two_files_share_are_found(problem: str, sound: Any, progress: Any) -> None:
    first, second = check_files([sound(problem, "train.h5"), sound(problem, "test.h5")], progress)
    assert first.is_sound
    assert statuses(second)["leakage"] == "fault"
    assert text(second, "leakage").startswith("4 inputs are also in")


def test_states_are_compared_by_the_channels_that_both_files_have(sound: Any, progress: Any) -> None:
    depth_alone = sound("shallow_water", "foreign.h5")
    with h5py.File(depth_alone, "a") as file:
        for key in file:
            del file[key]["momentum"]
    _, second = check_files([sound("shallow_water"), depth_alone], progress)
    assert statuses(second)["leakage"] == "fault"


def test_uniform_fields_are_no_leak(sound: Any, progress: Any) -> None:
    """PDEBench's family has 0.45 % of them."""
    paths = [sound("darcy", name) for name in ("train.h5", "test.h5")]
    for path in paths:
        with h5py.File(path, "a") as file:
            file["nu"][:] = 0.1
    reports = check_files(paths, progress)
    assert all("leakage" not in statuses(report) for report in reports)
    assert text(reports[0], "inputs") == "0 distinct, 4 uniform"


def test_a_file_given_twice_is_no_leak(sound: Any, progress: Any) -> None:
    path = sound("darcy")
    (report,) = check_files([path, path], progress)
    assert report.is_sound


@pytest.mark.parametrize("name", ["shallow_water_pyclaw.h5", "diffusion_reaction_scipy.h5"])
def test_files_of_other_programs_are_judged_too(name: str, progress: Any) -> None:
    """They hold chosen frames, which is all that is wrong with them."""
    (report,) = check_files([ORACLES / name], progress)
    faults = [subject for subject, status in statuses(report).items() if status == "fault"]
    assert faults == ["times"]
    assert statuses(report)["recipe"] == "note"


def test_labels_of_pdebench_are_told_from_the_steady_state(sound: Any, progress: Any) -> None:
    path = sound("darcy")
    with h5py.File(path, "a") as file:
        for name in list(file.attrs):
            if name != "beta":
                del file.attrs[name]
    (report,) = check_files([path], progress)
    assert report.is_sound
    assert (statuses(report)["labels"], statuses(report)["recipe"]) == ("note", "note")


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = mno.run(["data", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_exit_codes_of_the_check(sound: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sound("diffusion_reaction")
    code, out, _ = run(["check", str(path)], capsys)
    assert code == 0
    assert len([line for line in out.splitlines() if " ok " in line]) == 7
    with h5py.File(path, "a") as file:
        file["0001/data"][3, 4, 5, 0] = np.nan
    code, out, err = run(["check", str(path)], capsys)
    assert code == 1
    assert "fault" in out
    assert err.splitlines()[-1] == f"mno: 1 of 1 files are unsound: {path}"
    (tmp_path / "text.h5").write_text("not HDF5")
    code, _, err = run(["check", str(tmp_path / "text.h5")], capsys)
    assert (code, "HDF5" in err) == (2, True)
    assert run(["check", str(tmp_path / "absent.h5")], capsys)[0] == 2
    assert run(["check"], capsys)[0] == 2


@pytest.mark.parametrize("problem", RECIPES)
def test_info_says_what_a_file_holds(problem: str, sound: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(["info", str(sound(problem))], capsys)
    shown = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert code == 0
    assert shown["problem"] == problem
    assert shown["recipe_sha256"] == RECIPES[problem].sha256
    assert shown["grid"] == "16 x 16 cells (y, x)"
    assert json.loads(shown["parameters"]) == {}
