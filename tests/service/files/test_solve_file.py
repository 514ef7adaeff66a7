"""``mno solve``: the answers of the service, in the file's own layout, whole or absent, resumable."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import folder_buckets
import h5py
import numpy as np
import obstore
import pytest
import zarr
from numpy.typing import NDArray

from bulk.objects import Place, RemotePlace
from bulk.options import Where
from model_store import open_store
from operators import Surrogate
from problems import PROBLEMS, Grid
from service.errors import InvalidField, NotCertifiable, ServiceFault, UnsupportedMedia
from service.files.solve_file import HERE, FileJob, solve_file
from service.settings import Settings
from service.workers.compute import choose_device


class Bar:
    """Counts, and can stop the work as Ctrl-C would."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.updates: list[int] = []
        self.total: int | None = None
        self._stop_after = stop_after

    def __call__(self, iterable: None, total: int, label: str) -> Self:  # noqa: ARG002
        self.total = total
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, n: int = 1) -> None:
        self.updates.append(n)
        if self._stop_after is not None and sum(self.updates) >= self._stop_after:
            raise KeyboardInterrupt


@pytest.fixture
def fields() -> NDArray[np.float32]:
    """Not symmetric under a swap of the axes: [7, 32, 48]."""
    y, x = np.meshgrid(np.linspace(0, 1, 32), np.linspace(0, 1, 48), indexing="ij")
    return np.stack([np.exp(np.sin(n + 5 * x + y)) for n in range(7)]).astype(np.float32)


@pytest.fixture
def solve(tmp_path: Path, settings: Settings) -> Callable[..., Bar]:
    def run(
        input_name: str, output_name: str, bar: Bar | None = None, where: Where = HERE, **changes: Any
    ) -> Bar:
        options = {
            "model": None,
            "method": "surrogate",
            "error": "bound",
            "source": None,
            "batch_size": 2,
            **changes,
        }
        bar = bar or Bar()
        job = FileJob("darcy", _place(tmp_path, input_name), _place(tmp_path, output_name), **options)
        solve_file(job, settings, bar, where)
        return bar

    return run


def _place(folder: Path, name: str) -> Place:
    return RemotePlace(name) if "://" in name else folder / name


def reference(field: NDArray[Any], source: float) -> NDArray[np.float64]:
    inputs = {"permeability": field.astype(np.float64), "source": np.array(source)}
    return np.asarray(PROBLEMS["darcy"].solve(inputs, Grid(field.shape)).fields["pressure"])


def write_pdebench(path: Path, fields: NDArray[Any], beta: float | None) -> None:
    with h5py.File(path, "w") as file:
        file["nu"] = fields.transpose(0, 2, 1)
        file["x-coordinate"] = (np.arange(fields.shape[2]) + 0.5) / fields.shape[2]
        file["y-coordinate"] = (np.arange(fields.shape[1]) + 0.5) / fields.shape[1]
        if beta is not None:
            file.attrs["beta"] = beta


def write_zarr(path: Path, fields: NDArray[Any], source: float) -> None:
    group = zarr.create_group(str(path), attributes={"source": source})
    group.create_array("permeability", data=fields, chunks=(3, *fields.shape[1:]))


@pytest.mark.parametrize("beta", [None, 2.5])
def test_pdebench_s_layout_in_and_out(
    tmp_path: Path, solve: Callable[..., Bar], fields: NDArray[np.float32], beta: float | None
) -> None:
    write_pdebench(tmp_path / "in.hdf5", fields, beta)
    bar = solve("in.hdf5", "out.h5", method="solver")
    assert (bar.total, sum(bar.updates)) == (7, 7)
    with h5py.File(tmp_path / "out.h5") as file:
        assert np.array_equal(file["nu"][:], fields.transpose(0, 2, 1))
        assert file["tensor"].shape == (7, 1, 48, 32)
        assert file["x-coordinate"].shape == (48,)
        assert file["error_upper"].shape == (7,)
        assert file["error_upper"][:].max() < 1e-4
        assert file.attrs["beta"] == (beta or 1.0)
        assert file.attrs["scheme"] == "tpfa-harmonic-v1"
        for field, answer in zip(fields, file["tensor"][:, 0], strict=True):
            np.testing.assert_allclose(answer.T, reference(field, beta or 1.0), rtol=1e-5)
    assert {path.name for path in tmp_path.iterdir()} == {"in.hdf5", "out.h5"}


@pytest.mark.parametrize("target", ["out.npy", "out.npz", "out.h5", "out.zarr"])
@pytest.mark.parametrize("source", ["in.npy", "in.npz", "in.zarr"])
def test_every_format_holds_the_same_answers(
    tmp_path: Path, solve: Callable[..., Bar], fields: NDArray[np.float32], source: str, target: str
) -> None:
    np.save(tmp_path / "in.npy", fields)
    np.savez(tmp_path / "in.npz", permeability=fields, source=3.0)
    write_zarr(tmp_path / "in.zarr", fields, 3.0)
    solve(source, target, source=1.5)
    solve("in.npy", "expected.npy", source=1.5)
    expected = np.load(tmp_path / "expected.npy")
    if target == "out.h5":
        with h5py.File(tmp_path / target) as file:
            answers = file["tensor"][:, 0].transpose(0, 2, 1)
            assert file.attrs["model"] == "darcy@1"
    elif target == "out.zarr":
        group = zarr.open_group(str(tmp_path / target), mode="r")
        assert dict(group.attrs) == {"source": 1.5, "model": "darcy@1", "scheme": "tpfa-harmonic-v1"}
        assert group["pressure"].metadata.dimension_names == ("sample", "y", "x")
        assert np.isfinite(group["error_upper"][:]).all()
        answers = group["pressure"][:]
    else:
        loaded = np.load(tmp_path / target)
        answers = loaded if target == "out.npy" else loaded["pressure"]
    assert np.array_equal(answers, expected)


def test_an_archive_s_own_source_is_used(
    tmp_path: Path, solve: Callable[..., Bar], fields: NDArray[np.float32]
) -> None:
    np.savez(tmp_path / "in.npz", permeability=fields, source=2.0)
    np.save(tmp_path / "in.npy", fields)
    solve("in.npz", "two.npy")
    solve("in.npy", "one.npy")
    assert np.array_equal(np.load(tmp_path / "two.npy"), 2 * np.load(tmp_path / "one.npy"))


def test_a_zarr_array_alone_will_do_and_an_output_is_replaced_whole(
    tmp_path: Path, solve: Callable[..., Bar], fields: NDArray[np.float32]
) -> None:
    zarr.create_array(str(tmp_path / "in.zarr"), data=fields)
    np.save(tmp_path / "in.npy", fields[:3])
    solve("in.zarr", "out.zarr", source=2.0)
    before = zarr.open_group(str(tmp_path / "out.zarr"), mode="r")["pressure"][:3]
    solve("in.npy", "out.zarr", source=4.0)
    assert np.array_equal(zarr.open_group(str(tmp_path / "out.zarr"), mode="r")["pressure"][:], 2 * before)
    assert {path.name for path in tmp_path.iterdir()} == {"in.zarr", "in.npy", "out.zarr"}


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100])
def test_an_answer_depends_on_no_company(
    tmp_path: Path, solve: Callable[..., Bar], fields: NDArray[np.float32], chunk_size: int
) -> None:
    np.save(tmp_path / "in.npy", fields)
    np.save(tmp_path / "one.npy", fields[4:5])
    solve("in.npy", "out.npy", chunk_size=chunk_size, batch_size=3)
    solve("one.npy", "alone.npy", batch_size=3)
    assert np.array_equal(np.load(tmp_path / "out.npy")[4:5], np.load(tmp_path / "alone.npy"))


@pytest.mark.slow
def test_processes_give_the_same_bytes_and_name_a_bad_sample(
    tmp_path: Path, solve: Callable[..., Bar], fields: NDArray[np.float32]
) -> None:
    np.save(tmp_path / "in.npy", fields)
    solve("in.npy", "here.h5")
    bar = solve("in.npy", "there.h5", where=Where(workers=2))
    assert sorted(bar.updates) == [0, 1, 2, 2, 2]
    assert (tmp_path / "here.h5").read_bytes() == (tmp_path / "there.h5").read_bytes()
    fields[5, 3, 4] = -1.0
    np.save(tmp_path / "in.npy", fields)
    with pytest.raises(InvalidField, match="sample 5") as fault:
        solve("in.npy", "there.h5", where=Where(workers=2))
    assert fault.value.index == (5, 3, 4)


def test_interrupted_work_continues_and_gives_the_same(
    tmp_path: Path, solve: Callable[..., Bar], fields: NDArray[np.float32]
) -> None:
    np.save(tmp_path / "in.npy", fields)
    solve("in.npy", "whole.npy")
    with pytest.raises(KeyboardInterrupt):
        solve("in.npy", "out.npy", Bar(stop_after=4))
    assert not (tmp_path / "out.npy").exists()
    assert solve("in.npy", "out.npy").updates == [4, 2, 1]
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_other_work_is_not_continued(
    tmp_path: Path, solve: Callable[..., Bar], fields: NDArray[np.float32]
) -> None:
    np.save(tmp_path / "in.npy", fields)
    with pytest.raises(KeyboardInterrupt):
        solve("in.npy", "out.npy", Bar(stop_after=4))
    with pytest.raises(InvalidField, match="remove it"):
        solve("in.npy", "out.npy", source=7.0)


def test_a_bad_sample_is_named_by_its_number_in_the_file(
    tmp_path: Path, solve: Callable[..., Bar], fields: NDArray[np.float32]
) -> None:
    fields[5, 3, 4] = -1.0
    np.save(tmp_path / "in.npy", fields)
    with pytest.raises(InvalidField, match="sample 5") as fault:
        solve("in.npy", "out.npy")
    assert fault.value.index == (5, 3, 4)


def test_what_cannot_be_certified_is_named_by_its_numbers_in_the_file(
    tmp_path: Path, solve: Callable[..., Bar], fields: NDArray[np.float32]
) -> None:
    # float64 carries the tolerance for all but one
    fields[:] = 1.0
    fields[4] = 10.0 ** np.random.default_rng(0).uniform(-8.0, 8.0, fields[4].shape)
    np.save(tmp_path / "in.npy", fields)
    with pytest.raises(NotCertifiable, match=r"in\.npy: in the batch of samples 4 to 5, counted from 0: "):
        solve("in.npy", "out.npy", method="solver", error="certified", tolerance=1e-11)


def test_without_bounds_none_are_written(
    tmp_path: Path, solve: Callable[..., Bar], fields: NDArray[np.float32]
) -> None:
    np.save(tmp_path / "in.npy", fields.astype(np.float64)[0])
    solve("in.npy", "out.npz", error="none")
    archive = np.load(tmp_path / "out.npz")
    assert archive["pressure"].dtype == np.float64
    assert archive["pressure"].shape == (1, 32, 48)
    assert np.isnan(archive["error_upper"]).all()


@pytest.mark.parametrize(
    ("source", "target", "fault"),
    [
        ("in.npy", "out.txt", UnsupportedMedia),
        ("in.npy", "folder.npy", InvalidField),
        ("in.npy", "folder.zarr", InvalidField),
        ("in.npy", "nowhere/out.npy", InvalidField),
        ("in.txt", "out.npy", UnsupportedMedia),
        ("torn.zarr", "out.npy", InvalidField),
        ("other.zarr", "out.npy", InvalidField),
        ("rank.zarr", "out.npy", InvalidField),
        ("torn.h5", "out.npy", InvalidField),
        ("torn.npy", "out.npy", InvalidField),
        ("torn.npz", "out.npy", InvalidField),
        ("objects.npy", "out.npy", InvalidField),
        ("rank.npy", "out.npy", InvalidField),
        ("stretched.h5", "out.npy", InvalidField),
        ("other.npz", "out.npy", InvalidField),
        ("other.h5", "out.npy", InvalidField),
        ("sources.npz", "out.npy", InvalidField),
        ("bytes.h5", "out.npy", InvalidField),
        ("sources.h5", "out.npy", InvalidField),
    ],
)
def test_files_that_cannot_be_used_are_refused_in_one_line(
    tmp_path: Path,
    solve: Callable[..., Bar],
    fields: NDArray[np.float32],
    source: str,
    target: str,
    fault: type,
) -> None:
    np.save(tmp_path / "in.npy", fields)
    for name in ("in.txt", "torn.h5", "torn.npy", "torn.zarr"):
        (tmp_path / name).write_bytes(b"\x93NUMPY")
    for name in ("folder.npy", "folder.zarr"):
        (tmp_path / name).mkdir()
    zarr.create_group(str(tmp_path / "other.zarr"))
    zarr.create_array(str(tmp_path / "rank.zarr"), shape=(3,), dtype="float32")
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04")
    np.save(tmp_path / "objects.npy", np.array([None]), allow_pickle=True)
    np.save(tmp_path / "rank.npy", np.ones(3))
    np.savez(tmp_path / "other.npz", a=fields, b=fields)
    write_pdebench(tmp_path / "stretched.h5", fields, 1.0)
    with h5py.File(tmp_path / "stretched.h5", "r+") as file:
        file["x-coordinate"][:] *= 2
    h5py.File(tmp_path / "other.h5", "w").close()
    np.savez(tmp_path / "sources.npz", permeability=fields, source=np.ones(len(fields)))
    write_pdebench(tmp_path / "sources.h5", fields, np.ones(3))  # type: ignore[arg-type]
    with h5py.File(tmp_path / "bytes.h5", "w") as file:
        file["nu"] = np.full((1, 32, 48), b"x")
    with pytest.raises(ServiceFault) as refusal:
        solve(source, target)
    assert isinstance(refusal.value, fault)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / target).exists() or (tmp_path / target).is_dir()


def test_the_input_is_never_replaced(
    tmp_path: Path, solve: Callable[..., Bar], fields: NDArray[np.float32]
) -> None:
    np.save(tmp_path / "in.npy", fields)
    (tmp_path / "link.npy").symlink_to(tmp_path / "in.npy")
    for output in ("in.npy", "link.npy"):
        with pytest.raises(InvalidField, match="another output"):
            solve("in.npy", output)
    assert np.array_equal(np.load(tmp_path / "in.npy"), fields)


def test_work_that_failed_before_its_first_batch_blocks_nothing(
    tmp_path: Path, solve: Callable[..., Bar], fields: NDArray[np.float32]
) -> None:
    np.save(tmp_path / "bad.npy", -fields)
    np.save(tmp_path / "in.npy", fields[:3])
    with pytest.raises(InvalidField):
        solve("bad.npy", "out.npy")
    solve("in.npy", "out.npy")
    assert np.load(tmp_path / "out.npy").shape == (3, 32, 48)
    assert not (tmp_path / "out.npy.partial").exists()


def test_a_version_of_another_store_continues_nothing(
    tmp_path: Path,
    solve: Callable[..., Bar],
    settings: Settings,
    surrogate: Surrogate,
    fields: NDArray[np.float32],
) -> None:
    assert settings.store is not None
    card = open_store(settings.store).card("darcy", 1)
    state = {name: 1.5 * values for name, values in surrogate.state_dict().items()}
    other = open_store(f"file:{tmp_path / 'other'}")
    for _ in range(2):
        other.publish("darcy", state, card)
    other.set_alias("darcy", "production", 1, expected=None)
    np.save(tmp_path / "in.npy", fields)
    with pytest.raises(KeyboardInterrupt):
        solve("in.npy", "out.npy", Bar(stop_after=4))
    job = FileJob(
        "darcy", tmp_path / "in.npy", tmp_path / "out.npy", None, "surrogate", "bound", None, batch_size=2
    )
    with pytest.raises(InvalidField, match="another input, version"):
        solve_file(job, settings.model_copy(update={"store": other.url}), Bar())
    assert solve("in.npy", "out.npy").updates == [4, 2, 1]


def test_two_cannot_write_one_output_at_a_time(
    tmp_path: Path, solve: Callable[..., Bar], fields: NDArray[np.float32]
) -> None:
    np.save(tmp_path / "in.npy", fields)
    refused: list[InvalidField] = []

    class Intruder(Bar):
        def update(self, n: int = 1) -> None:
            super().update(n)
            if not refused:
                with pytest.raises(InvalidField, match="another process") as refusal:
                    intrude()
                refused.append(refusal.value)

    def intrude() -> None:
        # as another process would: this one's event loop is taken
        with ThreadPoolExecutor(1) as thread:
            thread.submit(solve, "in.npy", "out.npy").result()

    solve("in.npy", "out.npy", Intruder())
    assert refused
    assert np.load(tmp_path / "out.npy").shape == (7, 32, 48)


@pytest.mark.parametrize(("output", "written"), [("out.npy", 2), ("out.h5", 3)])
def test_work_continues_where_the_disk_has_room_for_the_rest_alone(
    tmp_path: Path,
    solve: Callable[..., Bar],
    fields: NDArray[np.float32],
    monkeypatch: pytest.MonkeyPatch,
    output: str,
    written: int,
) -> None:
    np.save(tmp_path / "in.npy", fields)
    partial = tmp_path / f"{output}.partial"

    def usage(_: Path) -> SimpleNamespace:
        # what lies beside the answers in chunks needs a little
        return SimpleNamespace(free=written * fields.nbytes + 10_000 - _bytes_in(partial))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(KeyboardInterrupt):
        solve("in.npy", output, Bar(stop_after=4))
    # an assembly that was killed
    (partial / f"whole{Path(output).suffix}").write_bytes(bytes(20_000))
    assert solve("in.npy", output).updates == [4, 2, 1]
    written -= 1
    with pytest.raises(InvalidField, match="of free space"):
        solve("in.npy", output)


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_work_is_not_continued_on_another_device(
    tmp_path: Path, settings: Settings, fields: NDArray[np.float32]
) -> None:
    np.save(tmp_path / "in.npy", fields)

    def run(device: str, bar: Bar, where: Where = HERE) -> Bar:
        job = FileJob("darcy", tmp_path / "in.npy", tmp_path / "out.npy", None, "surrogate", "bound", None, 2)
        solve_file(job, settings.model_copy(update={"device": device}), bar, where)
        return bar

    with pytest.raises(KeyboardInterrupt):
        run("auto", Bar(stop_after=4))
    # nobody here knows what its nodes have
    with pytest.raises(InvalidField, match="version or option"):
        run("auto", Bar(), Where("ray"))
    assert run(choose_device("auto").type, Bar()).updates == [4, 2, 1]


def test_a_file_is_no_zarr_to_be_replaced(
    tmp_path: Path, solve: Callable[..., Bar], fields: NDArray[np.float32]
) -> None:
    np.save(tmp_path / "in.npy", fields)
    (tmp_path / "out.zarr").write_text("mine")
    with pytest.raises(InvalidField, match="remove it, or choose another output"):
        solve("in.npy", "out.zarr")
    assert (tmp_path / "out.zarr").read_text() == "mine"


def test_an_upload_that_was_killed_is_continued_and_a_whole_one_not_replaced(
    tmp_path: Path,
    solve: Callable[..., Bar],
    fields: NDArray[np.float32],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder_buckets.keep_in(tmp_path / "buckets", monkeypatch)
    output = RemotePlace("s3://bucket/out.zarr")
    np.save(tmp_path / "in.npy", fields)
    with pytest.raises(KeyboardInterrupt):
        solve("in.npy", output.url, Bar(stop_after=7))
    obstore.put(output.open_store(), "pressure/zarr.json", b"{")
    assert solve("in.npy", output.url).updates == [7]
    solve("in.npy", "expected.npy")
    group = zarr.open_group(str(tmp_path / "buckets" / "bucket" / "out.zarr"), mode="r")
    assert np.array_equal(group["pressure"][:], np.load(tmp_path / "expected.npy"))
    assert output.beside("out.zarr.partial").identify() == []
    with pytest.raises(InvalidField, match="nothing there yet"):
        solve("in.npy", output.url)


def test_what_goes_into_a_bucket_needs_room_here_too(
    tmp_path: Path,
    solve: Callable[..., Bar],
    fields: NDArray[np.float32],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder_buckets.keep_in(tmp_path / "buckets", monkeypatch)
    np.save(tmp_path / "in.npy", fields)
    free = fields.nbytes
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    solve("in.npy", "s3://bucket/enough.npy")
    free -= 1
    with pytest.raises(InvalidField, match="TMPDIR"):
        solve("in.npy", "s3://bucket/out.npy")
