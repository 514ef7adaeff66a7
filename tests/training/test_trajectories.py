"""PDEBench's files of trajectories: opened as published, transposed at the border, refused when damaged."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from problems import EVOLUTION_PROBLEMS, Grid
from training.dataset import InvalidDataset
from training.trajectories import LAYOUTS, is_trajectories, open_trajectories, write_trajectories

ORACLES = Path(__file__).parents[1] / "data"
TIMES = np.array([0.0, 0.01, 0.02, 0.03])
CONFIG = "name: 2d_rdb\nsim:\n  T_end: 1.0\n  dam_radius: 0.5\n  gravity: 1.0\n"


def published(path: Path, channels: int, side: int = 8, half: float = 2.5, count: int = 3) -> Path:
    """A file as PDEBench's generators write it, without anything of this project's."""
    random = np.random.default_rng(channels)
    centres = (-half + (np.arange(side) + 0.5) * 2 * half / side).astype("f4")
    options = {"compression": "lzf"} if channels == 2 else {}
    with h5py.File(path, "w") as file:
        for seed in range(900, 900 + count):
            shape = (len(TIMES), side, side, channels)
            group = file.create_group(f"{seed:04d}")
            group.create_dataset("data", data=1 + random.random(shape, dtype="f4"), dtype="f", **options)
            for name, values in (("x", centres), ("y", centres), ("t", TIMES)):
                group.create_dataset(f"grid/{name}", data=values, dtype="f", **options)
            group.attrs["config"] = CONFIG
    return path


def samples(channels: int, shape: tuple[int, int], count: int = 2) -> NDArray[np.float32]:
    random = np.random.default_rng(0)
    return random.random((count, len(TIMES), channels, *shape), dtype=np.float32)


def test_published_shallow_water_opens_unchanged(tmp_path: Path) -> None:
    path = published(tmp_path / "2D_rdb_NA_NA.h5", channels=1)
    with open_trajectories(path) as data, h5py.File(path) as file:
        assert (data.problem, data.names, data.keys) == ("shallow_water", ("h",), ("0900", "0901", "0902"))
        assert (data.grid, data.extent, data.origin) == ((8, 8), (5.0, 5.0), (-2.5, -2.5))
        np.testing.assert_array_equal(data.times, TIMES)
        # index order [t x y c]
        assert data.read(1)[3, 0, 5, 2] == file["0901/data"][3, 2, 5, 0]
        assert data.read(1).shape == (4, 1, 8, 8)


def test_published_diffusion_reaction_opens_unchanged(tmp_path: Path) -> None:
    path = published(tmp_path / "2D_diff-react_NA_NA.h5", channels=2, half=1.0)
    with open_trajectories(path) as data, h5py.File(path) as file:
        assert (data.problem, data.names) == ("diffusion_reaction", ("u", "v"))
        assert (data.extent, data.origin, len(data)) == ((2.0, 2.0), (-1.0, -1.0), 3)
        # index order [t y x c]
        assert data.read(2)[3, 1, 5, 2] == file["0902/data"][3, 5, 2, 1]


@pytest.mark.parametrize(
    ("name", "problem", "times"),
    [
        ("shallow_water_pyclaw.h5", "shallow_water", [0, 0.01, 0.02, 0.05, *np.arange(1, 11) / 10]),
        ("diffusion_reaction_scipy.h5", "diffusion_reaction", [0, 0.05, 0.1, 0.5, 1, 2.5, 5]),
    ],
)
def test_files_of_other_programs_open(name: str, problem: str, times: list[float]) -> None:
    with open_trajectories(ORACLES / name) as data:
        assert data.problem == problem
        assert (data.grid, data.extent) == ((128, 128), EVOLUTION_PROBLEMS[problem].grid.extent)
        # exactly: not what float32 makes of 0.3
        assert data.times.tolist() == times
        assert np.isfinite(data.load()).all()


@pytest.mark.parametrize("problem", EVOLUTION_PROBLEMS)
def test_written_is_read(tmp_path: Path, problem: str) -> None:
    names = tuple(spec.name for spec in EVOLUTION_PROBLEMS[problem].outputs)
    grid, written = Grid((3, 5), (1.5, 2.0), (-0.5, 10.0)), samples(len(names), (3, 5))
    path = tmp_path / "data.h5"
    write_trajectories(path, iter(written), problem, grid, TIMES, {"walls": "w", "seed": 3})
    with open_trajectories(path) as data:
        np.testing.assert_array_equal(data.load(), written)
        assert (data.problem, data.names, data.grid) == (problem, names, grid.shape)
        assert (data.extent, data.origin) == (grid.extent, grid.origin)
        assert (data.attributes["walls"], data.attributes["seed"]) == ("w", 3)


def test_momentum_lies_beside_what_pdebench_reads(tmp_path: Path) -> None:
    written = samples(3, (3, 5))
    write_trajectories(tmp_path / "x.h5", written, "shallow_water", Grid((3, 5)), TIMES, {})
    with h5py.File(tmp_path / "x.h5") as file:
        assert file["0001/data"].shape == (4, 5, 3, 1)
        assert file["0001/data"][2, 4, 1, 0] == written[1, 2, 0, 1, 4]
        assert file["0001/momentum"][2, 4, 1, 1] == written[1, 2, 2, 1, 4]
        assert {file[f"0000/grid/{axis}"].dtype for axis in "xyt"} == {np.dtype("f4")}
        assert "xdim: 5" in file["0000"].attrs["config"]


def test_depth_alone_is_written_as_published(tmp_path: Path) -> None:
    write_trajectories(tmp_path / "x.h5", samples(1, (3, 5)), "shallow_water", Grid((3, 5)), TIMES, {})
    with open_trajectories(tmp_path / "x.h5") as data:
        assert data.names == ("h",)


def test_other_channels_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hu, hv"):
        write_trajectories(tmp_path / "x.h5", samples(2, (3, 5)), "shallow_water", Grid((3, 5)), TIMES, {})


@pytest.mark.parametrize(
    "frames", [slice(None), slice(1, 3), slice(-2, None), slice(0, None, 2), slice(3, 1), slice(0, 99)]
)
def test_frames_are_read_alone(tmp_path: Path, frames: slice) -> None:
    with open_trajectories(published(tmp_path / "x.h5", channels=2)) as data:
        np.testing.assert_array_equal(data.read(1, frames), data.read(1)[frames])
        np.testing.assert_array_equal(data.load(frames), data.load()[:, frames])


def test_frames_are_not_read_backwards(tmp_path: Path) -> None:
    with (
        open_trajectories(published(tmp_path / "x.h5", channels=2)) as data,
        pytest.raises(ValueError, match="forwards"),
    ):
        data.read(0, slice(None, None, -1))


def test_layouts_are_those_of_the_problems() -> None:
    for problem, layout in LAYOUTS.items():
        assert layout.channels == tuple(spec.name for spec in EVOLUTION_PROBLEMS[problem].outputs)


def _damaged(path: Path, what: str) -> Path:
    with h5py.File(published(path, channels=1), "a") as file:
        match what:
            case "no data":
                del file["0900/data"]
            case "no times":
                del file["0900/grid/t"]
            case "other shape":
                del file["0900/data"]
                file["0900/data"] = np.ones((4, 8, 7, 1), "f4")
            case "one axis too few":
                del file["0900/data"]
                file["0900/data"] = np.ones((4, 8, 1), "f4")
            case "words":
                del file["0900/grid/x"]
                file["0900/grid/x"] = "abc"
            case "other problem":
                file.attrs["problem"] = "wave"
            case "backwards":
                file["0900/grid/x"][:] = file["0900/grid/x"][()][::-1]
            case "no groups":
                for key in list(file):
                    del file[key]
    return path


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("no data", "data"),
        ("no times", "grid/t"),
        ("other shape", r"expected \(4, 8, 8, 1\)"),
        ("one axis too few", "got"),
        ("words", "floating-point"),
        ("other problem", "wave"),
        ("backwards", "increasing"),
        ("no groups", "groups named 0000"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, what: str, named: str) -> None:
    with pytest.raises(InvalidDataset, match=named):
        open_trajectories(_damaged(tmp_path / "x.h5", what))


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("not HDF5")
    for read in (open_trajectories, is_trajectories):
        with pytest.raises(InvalidDataset, match="HDF5"):
            read(tmp_path / "text.h5")
    with pytest.raises(InvalidDataset, match="no data set"):
        open_trajectories(tmp_path / "absent.h5")


def test_a_later_trajectory_of_another_shape_is_refused_when_read(tmp_path: Path) -> None:
    path = published(tmp_path / "x.h5", channels=1)
    with h5py.File(path, "a") as file:
        del file["0902/data"]
        file["0902/data"] = np.ones((3, 8, 8, 1), "f4")
    with open_trajectories(path) as data:
        data.read(1)
        with pytest.raises(InvalidDataset, match="0902/data"):
            data.read(2)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = published(tmp_path / "x.h5", channels=1)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidDataset):
        open_trajectories(path)
