"""``mno solve`` from and into a real S3 server: read in pieces, staged by the workers, whole or absent."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import obstore
import pytest
import seaweed
import zarr
from numpy.typing import NDArray
from zarr.storage import ObjectStore

from bulk.objects import Place, RemotePlace
from bulk.options import Where
from service.errors import InvalidField, UnsupportedMedia
from service.files.solve_file import HERE, FileJob, solve_file
from service.settings import Settings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RemotePlace]:
    """A bucket, whose server the environment names."""
    with seaweed.running(tmp_path_factory.mktemp("seaweed")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        yield RemotePlace(f"s3://{seaweed.BUCKET}/jobs/x")


@pytest.fixture(scope="module")
def fields() -> NDArray[np.float32]:
    return np.exp(np.random.default_rng(0).normal(size=(7, 32, 48))).astype(np.float32)


@pytest.fixture(scope="module")
def stored(bucket: RemotePlace, fields: NDArray[np.float32]) -> RemotePlace:
    """The fields, as HDF5 and as Zarr."""
    file = io.BytesIO()
    with h5py.File(file, "w") as written:
        written["nu"] = fields.transpose(0, 2, 1)
        written.attrs["beta"] = 2.0
    obstore.put(bucket.beside("").open_store(), "in.h5", file.getvalue())
    group = zarr.create_group(ObjectStore(bucket.beside("in.zarr").open_store()), attributes={"source": 2.0})
    group.create_array("permeability", data=fields, chunks=(2, 32, 48))
    return bucket


class Bar:
    """Stops the work as Ctrl-C would."""

    def __init__(self, stop_after: int = 10**9) -> None:
        self.updates: list[int] = []
        self._stop_after = stop_after

    def __call__(self, *_: object) -> "Bar":
        return self

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, n: int = 1) -> None:
        self.updates.append(n)
        if sum(self.updates) >= self._stop_after:
            raise KeyboardInterrupt


def solve(
    settings: Settings, given: Place, target: Place, bar: Bar, where: Where = HERE, **changes: Any
) -> None:
    options = {"model": None, "method": "surrogate", "error": "bound", "source": None, "batch_size": 2}
    solve_file(FileJob("darcy", given, target, **{**options, **changes}), settings, bar, where)


def names(place: RemotePlace) -> set[str]:
    found = (meta["path"] for page in obstore.list(place.beside("").open_store()) for meta in page)
    return {name.split("/")[0] for name in found}


@pytest.mark.parametrize("extension", ["h5", "zarr"])
def test_an_object_becomes_an_object(
    stored: RemotePlace, settings: Settings, fields: NDArray[np.float32], tmp_path: Path, extension: str
) -> None:
    np.savez(tmp_path / "in.npz", permeability=fields, source=2.0)
    solve(settings, tmp_path / "in.npz", tmp_path / "expected.npy", Bar())
    target = stored.beside(f"out.{extension}")
    with pytest.raises(KeyboardInterrupt):
        solve(settings, stored.beside(f"in.{extension}"), target, Bar(stop_after=4))
    assert target.identify() == []
    assert f"{target.name}.partial" in names(stored)
    with pytest.raises(InvalidField, match="remove it"):
        solve(settings, stored.beside(f"in.{extension}"), target, Bar(), source=7.0)
    bar = Bar()
    solve(settings, stored.beside(f"in.{extension}"), target, bar, Where(workers=2))
    assert bar.updates[0] == 4
    assert sum(bar.updates) == 7
    if extension == "h5":
        with h5py.File(target.open_file()) as file:
            answers = file["tensor"][:, 0].transpose(0, 2, 1)
    else:
        answers = zarr.open_group(ObjectStore(target.open_store(), read_only=True), mode="r")["pressure"][:]
        with pytest.raises(InvalidField, match="nothing there yet"):
            solve(settings, stored.beside("in.zarr"), target, Bar())
    assert np.array_equal(answers, np.load(tmp_path / "expected.npy"))
    assert f"{target.name}.partial" not in names(stored)


def test_an_object_that_changed_continues_nothing(stored: RemotePlace, settings: Settings) -> None:
    folder, target = stored.beside("").open_store(), stored.beside("changing.npy")
    data = bytes(obstore.get(folder, "in.h5").bytes())
    obstore.put(folder, "changing.h5", data)
    with pytest.raises(KeyboardInterrupt):
        solve(settings, stored.beside("changing.h5"), target, Bar(stop_after=2))
    obstore.put(folder, "changing.h5", data + b" ")
    with pytest.raises(InvalidField, match="another input"):
        solve(settings, stored.beside("changing.h5"), target, Bar())


@pytest.mark.parametrize(
    ("name", "fault"),
    [("absent.h5", InvalidField), ("absent.zarr", InvalidField), ("in.npy", UnsupportedMedia)],
)
def test_what_cannot_be_read_is_refused_in_a_line(
    stored: RemotePlace, settings: Settings, tmp_path: Path, name: str, fault: type[Exception]
) -> None:
    with pytest.raises(fault, match=name) as refusal:
        solve(settings, stored.beside(name), tmp_path / "out.npy", Bar())
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []
