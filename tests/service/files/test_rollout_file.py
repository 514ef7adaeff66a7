"""``mno rollout``: the frames of the service, in the file's own layout, whole or absent, resumable."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

import mno
from problems import EVOLUTION_PROBLEMS, Grid
from service.errors import InvalidField, NotAvailableYet, ServiceFault, UnsupportedMedia
from service.files.rollout_file import RolloutJob, rollout_file
from service.settings import Settings


class Bar:
    """Counts, and can stop the work as Ctrl-C would."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.done = 0
        self.first: int | None = None
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
        self.first = n if self.first is None else self.first
        self.done += n
        if self._stop_after is not None and self.done >= self._stop_after:
            raise KeyboardInterrupt


@pytest.fixture
def states() -> NDArray[np.float32]:
    """Three states of water [3, 3, 16, 24], not symmetric under a swap of the axes."""
    y, x = np.meshgrid(np.linspace(0, 1, 16), np.linspace(0, 1, 24), indexing="ij")
    waves = [np.stack([1.5 + 0.3 * np.sin(n + 5 * x + y), 0.1 * x, -0.1 * y]) for n in range(3)]
    return np.stack(waves).astype(np.float32)


@pytest.fixture
def roll(tmp_path: Path, water_store: str) -> Callable[..., Bar]:
    def run(input_name: str, output_name: str, bar: Bar | None = None, **changes: Any) -> Bar:
        options = {
            "problem": "shallow_water",
            "steps": 6,
            "every": 2,
            "frame": 0,
            "model": None,
            "method": "surrogate",
            "walls": None,
            "batch_size": 2,
            **changes,
        }
        bar = bar or Bar()
        settings = Settings(store=water_store, models=("shallow_water",), device="cpu", threads=1)
        job = RolloutJob(input=tmp_path / input_name, output=tmp_path / output_name, **options)
        rollout_file(job, settings, bar)
        return bar

    return run


def exact(
    name: str, state: dict[str, NDArray[Any]], steps: int, start: int = 0, walls: str | None = None
) -> NDArray[np.float64]:
    """The reference solver's frames [steps channel y x]."""
    problem = EVOLUTION_PROBLEMS[name]
    grid = Grid(next(iter(state.values())).shape, problem.grid.extent, problem.grid.origin)
    given = {key: values.astype(np.float64) for key, values in state.items()}
    frames = problem.frames(given, grid, walls=walls, start=start)
    return np.stack([np.stack(list(next(frames).values())) for _ in range(steps)])


def write_trajectories(
    path: Path, name: str, data: NDArray[Any], momentum: NDArray[Any] | None = None
) -> None:
    """PDEBench's file of ``data`` [sample t c y x], its axes written out here once more."""
    problem = EVOLUTION_PROBLEMS[name]
    y, x = Grid(data.shape[-2:], problem.grid.extent, problem.grid.origin).coordinates()
    with h5py.File(path, "w") as file:
        for seed, sample in enumerate(data):
            group = file.create_group(f"{7 + seed:04d}")
            for axis, values in (("x", x), ("y", y), ("t", problem.frame_interval * np.arange(len(sample)))):
                group[f"grid/{axis}"] = values.astype(np.float32)
            swap = (0, 3, 2, 1) if name == "shallow_water" else (0, 2, 3, 1)
            group["data"] = sample.transpose(swap)
            if momentum is not None:
                group["momentum"] = momentum[seed].transpose(swap)


@pytest.mark.parametrize("source", ["in.npy", "in.npz", "in.h5"])
@pytest.mark.parametrize("target", ["out.npy", "out.npz", "out.hdf5"])
def test_every_format_holds_the_same_frames(
    tmp_path: Path, roll: Callable[..., Bar], states: NDArray[np.float32], source: str, target: str
) -> None:
    np.save(tmp_path / "in.npy", states)
    np.savez(tmp_path / "in.npz", hv=states[:, 2], h=states[:, 0], hu=states[:, 1])
    write_trajectories(tmp_path / "in.h5", "shallow_water", states[:, None, :1], states[:, None, 1:])
    bar = roll(source, target, method="solver")
    assert (bar.total, bar.done) == (9, 9)
    if target == "out.hdf5":
        with h5py.File(tmp_path / target) as file:
            keys = sorted(file)
            assert keys == (["0007", "0008", "0009"] if source == "in.h5" else ["0000", "0001", "0002"])
            assert file["/"].attrs["problem"] == "shallow_water"
            assert file["/"].attrs["scheme"] == "hllc-muscl-v1"
            assert file[keys[0]]["data"].shape == (4, 24, 16, 1)
            np.testing.assert_allclose(file[keys[0]]["grid/t"], [0, 0.02, 0.04, 0.06], rtol=1e-6)
            assert len(file[keys[0]]["grid/y"]) == 16
            parts = [[file[key][name][:] for key in keys] for name in ("data", "momentum")]
            found = np.concatenate(parts, axis=-1).transpose(0, 1, 4, 3, 2)
    elif target == "out.npz":
        archive = np.load(tmp_path / target)
        found = np.stack([archive[name] for name in ("h", "hu", "hv")], axis=2)
        np.testing.assert_allclose(archive["time"], [0, 0.02, 0.04, 0.06])
        assert archive["step"].tolist() == [0, 2, 4, 6]
        assert np.isnan(archive["error_upper"]).all()
    else:
        found = np.load(tmp_path / target)
    assert found.dtype == np.float32
    assert np.array_equal(found[:, 0], states)
    for state, frames in zip(states, found, strict=True):
        expected = exact("shallow_water", dict(zip(("h", "hu", "hv"), state, strict=True)), 6)
        np.testing.assert_allclose(frames[1:], expected[1::2], rtol=1e-6, atol=1e-7)
    assert not (tmp_path / f"{target}.partial").exists()


def test_the_surrogate_s_frames_carry_what_is_known_about_them(
    tmp_path: Path, roll: Callable[..., Bar], states: NDArray[np.float32]
) -> None:
    states[1, 0] *= 4
    np.save(tmp_path / "in.npy", states)
    roll("in.npy", "out.npz", steps=22, every=11)
    archive = np.load(tmp_path / "out.npz")
    assert archive["model"] == "shallow_water@1"
    assert archive["walls"] == "outflow"
    assert archive["in_distribution"].tolist() == [True, False, True]
    np.testing.assert_allclose(archive["error_upper"], [[np.nan, 0.22, np.nan]] * 3)
    assert np.isfinite(archive["h"]).all()


def test_trajectories_keep_what_is_known_about_their_frames(
    tmp_path: Path, roll: Callable[..., Bar], states: NDArray[np.float32]
) -> None:
    states[1, 0] *= 4
    np.save(tmp_path / "in.npy", states)
    roll("in.npy", "out.h5", steps=22, every=11)
    with h5py.File(tmp_path / "out.h5") as file:
        # PDEBench's loaders take each entry of the file for a trajectory
        assert sorted(file) == ["0000", "0001", "0002"]
        for key, known in (("0000", True), ("0001", False), ("0002", True)):
            np.testing.assert_allclose(file[key]["error_upper"][:], [np.nan, 0.22, np.nan])
            assert file[key].attrs["in_distribution"] == known
    roll("out.h5", "again.npy", steps=2, every=1)


def test_defects_are_kept_beside_the_frames(
    tmp_path: Path, roll: Callable[..., Bar], states: NDArray[np.float32]
) -> None:
    np.save(tmp_path / "in.npy", states)
    roll("in.npy", "out.npz", steps=4, every=1, defects=4)
    archive = np.load(tmp_path / "out.npz")
    assert archive["defect"].shape == (3, 5)
    assert np.isnan(archive["defect"][:, 0]).all()
    assert "exponential_bound" not in archive
    frames = np.stack([archive[name] for name in ("h", "hu", "hv")], axis=2).astype(np.float64)
    for sample, found in zip(frames, archive["defect"], strict=True):
        for step in range(4):
            before = dict(zip(("h", "hu", "hv"), sample[step], strict=True))
            stepped = exact("shallow_water", before, 1, step)[0]
            expected = np.sqrt(np.mean((sample[step + 1] - stepped) ** 2))
            assert found[step + 1] == pytest.approx(expected)
    roll("in.npy", "out.h5", steps=4, every=1, defects=2)
    with h5py.File(tmp_path / "out.h5") as file:
        some = np.stack([file[key]["defect"][:] for key in sorted(file)])
    looked = ~np.isnan(some)
    assert looked.sum(axis=1).tolist() == [2, 2, 2]
    assert np.array_equal(some[looked], archive["defect"][looked])
    roll("in.npy", "plain.npz", steps=4)
    assert "defect" not in np.load(tmp_path / "plain.npz")


def test_an_array_alone_has_no_place_for_defects(
    tmp_path: Path, roll: Callable[..., Bar], states: NDArray[np.float32]
) -> None:
    np.save(tmp_path / "in.npy", states)
    with pytest.raises(InvalidField, match=r"expected \.npz or \.h5"):
        roll("in.npy", "out.npy", defects=1)
    with pytest.raises(InvalidField, match="method=solver"):
        roll("in.npy", "out.npz", defects=1, method="solver")
    assert not (tmp_path / "out.npz").exists()


def test_trajectories_go_on_from_a_frame(tmp_path: Path, roll: Callable[..., Bar]) -> None:
    rng = np.random.default_rng(3)
    data = rng.normal(size=(2, 4, 2, 16, 24)).astype(np.float32)
    write_trajectories(tmp_path / "in.h5", "diffusion_reaction", data)
    roll("in.h5", "out.h5", problem="diffusion_reaction", frame=3, steps=5, every=1, method="solver")
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["0008/data"].shape == (3, 16, 24, 2)
        np.testing.assert_allclose(file["0008/grid/t"], [0.15, 0.2, 0.25], rtol=1e-6)
        found = file["0008/data"][:].transpose(0, 3, 1, 2)
    assert np.array_equal(found[0], data[1, 3])
    expected = exact("diffusion_reaction", {"u": data[1, 3, 0], "v": data[1, 3, 1]}, 2, start=3)
    np.testing.assert_allclose(found[1:], expected, rtol=1e-5, atol=1e-6)


def test_one_state_without_momentum_and_other_walls(
    tmp_path: Path, roll: Callable[..., Bar], states: NDArray[np.float32]
) -> None:
    np.savez(tmp_path / "in.npz", h=states[0, 0].astype(np.float64))
    roll("in.npz", "out.npy", steps=2, every=1, method="solver", walls="periodic")
    found = np.load(tmp_path / "out.npy")
    assert found.shape == (1, 3, 3, 16, 24)
    assert found.dtype == np.float64
    state = {"h": states[0, 0], "hu": np.zeros((16, 24)), "hv": np.zeros((16, 24))}
    np.testing.assert_allclose(found[0, 1:], exact("shallow_water", state, 2, walls="periodic"), atol=1e-14)


def test_interrupted_work_continues_and_gives_the_same(
    tmp_path: Path, roll: Callable[..., Bar], states: NDArray[np.float32]
) -> None:
    np.save(tmp_path / "in.npy", states)
    roll("in.npy", "whole.npy")
    with pytest.raises(KeyboardInterrupt):
        roll("in.npy", "out.npy", Bar(stop_after=7))
    assert not (tmp_path / "out.npy").exists()
    with pytest.raises(InvalidField, match="remove it"):
        roll("in.npy", "out.npy", steps=8)
    bar = roll("in.npy", "out.npy")
    # the first batch, two states of three frames, is not computed again
    assert (bar.first, bar.done) == (6, 9)
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_a_bad_sample_is_named_by_its_key(
    tmp_path: Path, roll: Callable[..., Bar], states: NDArray[np.float32]
) -> None:
    states[2, 0, 3, 4] = -1.0
    write_trajectories(tmp_path / "in.h5", "shallow_water", states[:, None, :1])
    with pytest.raises(InvalidField, match="sample 0009") as fault:
        roll("in.h5", "out.npy")
    assert fault.value.index == (2, 3, 4)


def test_a_sample_that_cannot_be_stepped_is_named_by_its_key(
    tmp_path: Path, roll: Callable[..., Bar], states: NDArray[np.float32]
) -> None:
    states[1, 1, 3, 4] = 1e12
    write_trajectories(tmp_path / "in.h5", "shallow_water", states[:, None, :1], states[:, None, 1:])
    with pytest.raises(InvalidField, match="sample 0008: step 1") as fault:
        roll("in.h5", "out.npy", method="solver")
    assert (fault.value.rule, fault.value.index) == ("diverged", (1,))


@pytest.mark.parametrize(
    ("source", "target", "fault"),
    [
        ("in.npy", "out.zarr", NotAvailableYet),
        ("in.npy", "out.txt", UnsupportedMedia),
        ("in.npy", "nowhere/out.npy", InvalidField),
        ("in.npy", "in.npy", InvalidField),
        ("in.zarr", "out.npy", NotAvailableYet),
        ("torn.h5", "out.npy", InvalidField),
        ("torn.npy", "out.npy", InvalidField),
        ("torn.npz", "out.npy", InvalidField),
        ("objects.npy", "out.npy", InvalidField),
        ("rank.npy", "out.npy", InvalidField),
        ("two.npy", "out.npy", InvalidField),
        ("other.npz", "out.npy", InvalidField),
        ("shapes.npz", "out.npy", InvalidField),
        ("empty.h5", "out.npy", InvalidField),
        ("stretched.h5", "out.npy", InvalidField),
        ("slow.h5", "out.npy", InvalidField),
        ("ragged.h5", "out.npy", InvalidField),
        ("bytes.h5", "out.npy", InvalidField),
        ("later.h5", "out.npy", InvalidField),
    ],
)
def test_files_that_cannot_be_used_are_refused_in_one_line(
    tmp_path: Path,
    roll: Callable[..., Bar],
    states: NDArray[np.float32],
    source: str,
    target: str,
    fault: type,
) -> None:
    np.save(tmp_path / "in.npy", states)
    for name in ("in.zarr", "torn.h5", "torn.npy"):
        (tmp_path / name).write_bytes(b"\x93NUMPY")
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04")
    np.save(tmp_path / "objects.npy", np.array([None]), allow_pickle=True)
    np.save(tmp_path / "rank.npy", np.ones((16, 24)))
    np.save(tmp_path / "two.npy", np.ones((2, 16, 24)))
    np.savez(tmp_path / "other.npz", u=states[:, 0])
    np.savez(tmp_path / "shapes.npz", h=states[:, 0], hu=states[:2, 1], hv=states[:, 2])
    h5py.File(tmp_path / "empty.h5", "w").close()
    trajectories = np.repeat(states[:, None, :1], 2, axis=1)
    for name in ("stretched", "slow", "ragged", "bytes", "later"):
        write_trajectories(tmp_path / f"{name}.h5", "shallow_water", trajectories)
    with h5py.File(tmp_path / "stretched.h5", "r+") as file:
        file["0007/grid/x"][:] *= 2
    with h5py.File(tmp_path / "slow.h5", "r+") as file:
        file["0007/grid/t"][:] += 0.005
    with h5py.File(tmp_path / "ragged.h5", "r+") as file:
        del file["0008/data"]
        file["0008/data"] = np.ones((2, 16, 24, 1))
    with h5py.File(tmp_path / "bytes.h5", "r+") as file:
        del file["0008/data"]
        file["0008/data"] = np.full((2, 24, 16, 1), b"x")
    before = (tmp_path / "in.npy").read_bytes()
    with pytest.raises(ServiceFault) as refusal:
        # the depth alone does not tell how the water moves in a later frame
        roll(source, target, frame=1 if source == "later.h5" else 0)
    assert isinstance(refusal.value, fault)
    assert "\n" not in str(refusal.value)
    assert target == "in.npy" or not (tmp_path / target).exists()
    assert (tmp_path / "in.npy").read_bytes() == before


@pytest.fixture
def command(tmp_path: Path, water_store: str, states: NDArray[np.float32]) -> Callable[..., int]:
    np.save(tmp_path / "in.npy", states)
    paths = [str(tmp_path / name) for name in ("in.npy", "out.npy")]

    def run(*options: str, problem: str = "shallow_water") -> int:
        return mno.run(["rollout", problem, *paths, "--store", water_store, *options])

    return run


def test_the_command_writes_the_output(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--model", "shallow_water@1", "--steps", "5") == 0
    assert np.load(tmp_path / "out.npy").shape == (3, 6, 3, 16, 24)
    said = capsys.readouterr().out
    assert "3 rollouts of 5 frames by shallow_water@1" in said
    assert "relative L2 error of the perturbation of the last frame at most 0.2 in 90 % of states" in said


@pytest.mark.parametrize(("wanted", "count"), [("all", 3), ("2", 2), ("0", None)])
def test_the_command_compares_frames(
    tmp_path: Path, water_store: str, states: NDArray[np.float32], wanted: str, count: int | None
) -> None:
    np.save(tmp_path / "in.npy", states)
    paths = [str(tmp_path / name) for name in ("in.npy", "out.npz")]
    options = ["--store", water_store, "--model", "shallow_water@1", "--steps", "3", "--defects", wanted]
    assert mno.run(["rollout", "shallow_water", *paths, *options]) == 0
    archive = np.load(tmp_path / "out.npz")
    assert ("defect" in archive) == (count is not None)
    if count is not None:
        assert np.isfinite(archive["defect"]).sum(axis=1).tolist() == [count] * 3


@pytest.mark.parametrize("wanted", ["-1", "some", "1.5"])
def test_the_command_says_what_a_number_of_frames_is(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], wanted: str
) -> None:
    assert command("--defects", wanted) == 2
    assert "expected a number of frames or all" in capsys.readouterr().err


def test_nothing_is_promised_of_unknown_states_or_beyond_the_calibration(
    command: Callable[..., int],
    tmp_path: Path,
    states: NDArray[np.float32],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command("--model", "shallow_water@1", "--steps", "21") == 0
    assert "at most" not in capsys.readouterr().out
    states[1, 0] *= 4
    np.save(tmp_path / "in.npy", states)
    assert command("--model", "shallow_water@1", "--steps", "5") == 0
    said = capsys.readouterr().out
    assert "1 of the states are unlike" in said
    assert "at most" not in said


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--steps", "0"], "0"),
        (["--steps", "3", "--frame", "3"], "start_step"),
        (["--steps", "3", "--every", "4"], "every"),
        (["--model", "navier"], "navier"),
        (["--method", "hybrid"], "hybrid"),
        (["--method", "solver", "--walls", "brick"], "periodic"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    command: Callable[..., int],
    tmp_path: Path,
    options: list[str],
    word: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(*options) == 2
    said = capsys.readouterr().err.strip()
    assert word in said.splitlines()[-1]
    assert not (tmp_path / "out.npy").exists()


def test_a_steady_problem_is_told_to_be_solved(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(problem="darcy") == 2
    assert "solve" in capsys.readouterr().err


@pytest.mark.slow
def test_diffusion_reaction_keeps_bounds_beside_defects(tmp_path: Path) -> None:
    y, x = np.meshgrid(*(np.linspace(0, math.pi, 128),) * 2, indexing="ij")
    state = np.stack([0.5 * np.cos(x) * np.cos(2 * y), 0.3 * np.cos(y)]).astype(np.float32)
    np.save(tmp_path / "in.npy", state[None])
    paths = [str(tmp_path / name) for name in ("in.npy", "out.npz")]
    options = ["--frame", "10", "--steps", "13", "--defects", "all"]
    assert mno.run(["rollout", "diffusion_reaction", *paths, *options]) == 0
    archive = np.load(tmp_path / "out.npz")
    defects, bounds = archive["defect"][0], archive["exponential_bound"][0]
    assert math.isnan(bounds[0])
    grown = [math.exp(0.05) * bound for bound in (0.0, *bounds[1:-1])]
    assert bounds[1:] == pytest.approx(defects[1:] + grown)
