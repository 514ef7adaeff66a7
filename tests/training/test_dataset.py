"""PDEBench's layout: transposed at the border, read without our attributes, refused when incomplete."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from problems import Grid
from training.dataset import InvalidDataset, read_dataset, write_dataset

GRID = Grid((3, 4), (1.5, 2.0))


def _fields(count: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    permeability, pressure = random.random((2, count, *GRID.shape), dtype=np.float32)
    return permeability, pressure


def test_written_is_read(tmp_path: Path) -> None:
    permeability, pressure = _fields(5)
    shards = [(permeability[:3], pressure[:3]), (permeability[3:], pressure[3:])]
    path = tmp_path / "data.hdf5"
    write_dataset(path, 5, shards, GRID.coordinates(), {"beta": 2.5, "scheme": "x"})
    found = read_dataset(path)
    np.testing.assert_array_equal(found.permeability[:, 0], permeability)
    np.testing.assert_array_equal(found.pressure[:, 0], pressure)
    assert (found.source, found.grid, found.attributes["scheme"]) == (2.5, (3, 4), "x")
    assert found.extent == pytest.approx(GRID.extent)
    assert found.spacing == pytest.approx(GRID.spacing)


def test_files_hold_pdebenchs_layout(tmp_path: Path) -> None:
    permeability, pressure = _fields(2)
    write_dataset(tmp_path / "data.hdf5", 2, [(permeability, pressure)], GRID.coordinates(), {"beta": 1.0})
    with h5py.File(tmp_path / "data.hdf5") as file:
        assert file["nu"].shape == (2, 4, 3)
        assert file["tensor"].shape == (2, 1, 4, 3)
        assert {file[name].dtype for name in file} == {np.dtype("f4")}
        # index order [sample x y]
        assert file["nu"][1, 3, 2] == permeability[1, 2, 3]
        np.testing.assert_allclose(file["x-coordinate"], [0.25, 0.75, 1.25, 1.75])
        np.testing.assert_allclose(file["y-coordinate"], [0.25, 0.75, 1.25])


def _foreign(path: Path, **changes: object) -> Path:
    content: dict[str, object] = {
        "nu": np.ones((2, 4, 4), "f4"),
        "tensor": np.ones((2, 1, 4, 4), "f4"),
        "x-coordinate": np.arange(0.125, 1, 0.25, dtype="f4"),
        "y-coordinate": np.arange(0.125, 1, 0.25, dtype="f4"),
    }
    with h5py.File(path, "w") as file:
        for name, value in (content | changes).items():
            if value is not None:
                file[name] = value
        file.attrs["beta"] = 10.0
        file.attrs["list"] = [1, 2]
    return path


def test_foreign_files_are_read(tmp_path: Path) -> None:
    found = read_dataset(_foreign(tmp_path / "pdebench.hdf5"))
    assert (len(found), found.source, found.extent) == (2, 10.0, (1.0, 1.0))
    assert found.contrast == pytest.approx([1.0, 1.0])


def test_a_file_as_published_is_read(tmp_path: Path) -> None:
    """PDEBench's attribute beta alone, and the times that its merged files may have kept."""
    path = _foreign(tmp_path / "2D_DarcyFlow_beta10.0_Train.hdf5", **{"t-coordinate": np.ones(2, "f4")})
    assert len(read_dataset(path)) == 2


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"nu": None}, "nu"),
        ({"tensor": np.ones((3, 1, 4, 4), "f4")}, "tensor"),
        ({"y-coordinate": np.ones(3, "f4")}, "cell centres"),
    ],
)
def test_other_layouts_are_refused(tmp_path: Path, changes: dict[str, object], named: str) -> None:
    path = _foreign(tmp_path / "bad.hdf5", **changes)
    with pytest.raises(InvalidDataset, match=named):
        read_dataset(path)


def test_files_without_source_are_refused(tmp_path: Path) -> None:
    path = _foreign(tmp_path / "bad.hdf5")
    with h5py.File(path, "a") as file:
        del file.attrs["beta"]
    with pytest.raises(InvalidDataset, match="beta"):
        read_dataset(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.hdf5").write_text("not HDF5")
    with pytest.raises(InvalidDataset, match="HDF5"):
        read_dataset(tmp_path / "text.hdf5")
    with pytest.raises(InvalidDataset, match="no data set"):
        read_dataset(tmp_path / "absent.hdf5")
