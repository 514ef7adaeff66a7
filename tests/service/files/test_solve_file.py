"""``mno solve``: the answers of the service, in the file's own layout, whole or absent, resumable."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from model_store import open_store
from operators import Surrogate
from problems import PROBLEMS, Grid
from service.errors import InvalidField, NotAvailableYet, ServiceFault, UnsupportedMedia
from service.files.solve_file import FileJob, solve_file
from service.settings import Settings


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
    def run(input_name: str, output_name: str, bar: Bar | None = None, **changes: Any) -> Bar:
        options = {
            "model": None,
            "method": "surrogate",
            "error": "bound",
            "source": None,
            "batch_size": 2,
            **changes,
        }
        bar = bar or Bar()
        solve_file(FileJob("darcy", tmp_path / input_name, tmp_path / output_name, **options), settings, bar)
        return bar

    return run


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


@pytest.mark.parametrize("target", ["out.npy", "out.npz", "out.h5"])
@pytest.mark.parametrize("source", ["in.npy", "in.npz"])
def test_every_format_holds_the_same_answers(
    tmp_path: Path, solve: Callable[..., Bar], fields: NDArray[np.float32], source: str, target: str
) -> None:
    np.save(tmp_path / "in.npy", fields)
    np.savez(tmp_path / "in.npz", permeability=fields, source=3.0)
    solve(source, target, source=1.5)
    solve("in.npy", "expected.npy", source=1.5)
    expected = np.load(tmp_path / "expected.npy")
    if target == "out.h5":
        with h5py.File(tmp_path / target) as file:
            answers = file["tensor"][:, 0].transpose(0, 2, 1)
            assert file.attrs["model"] == "darcy@1"
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


def test_interrupted_work_continues_and_gives_the_same(
    tmp_path: Path, solve: Callable[..., Bar], fields: NDArray[np.float32]
) -> None:
    np.save(tmp_path / "in.npy", fields)
    solve("in.npy", "whole.npy")
    with pytest.raises(KeyboardInterrupt):
        solve("in.npy", "out.npy", Bar(stop_after=4))
    assert not (tmp_path / "out.npy").exists()
    assert solve("in.npy", "out.npy").updates == [4, 2, 1]
    assert np.array_equal(np.load(tmp_path / "out.npy"), np.load(tmp_path / "whole.npy"))


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
        ("in.npy", "out.zarr", NotAvailableYet),
        ("in.npy", "out.txt", UnsupportedMedia),
        ("in.npy", "nowhere/out.npy", InvalidField),
        ("in.txt", "out.npy", UnsupportedMedia),
        ("in.zarr", "out.npy", NotAvailableYet),
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
    for name in ("in.txt", "in.zarr", "torn.h5", "torn.npy"):
        (tmp_path / name).write_bytes(b"\x93NUMPY")
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
    assert not (tmp_path / target).exists()


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
