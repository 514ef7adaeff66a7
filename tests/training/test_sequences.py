"""Stretches depend on seed and step alone; symmetries turn vectors as they turn the plane."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from operators.shallow_water_scheme import step
from problems import Grid
from training.augment import RECTANGLE, SQUARE, transform
from training.sequences import HeldTrajectories, SequenceSchedule, SequenceSet, transform_state
from training.trajectories import Trajectories, open_trajectories, write_trajectories

# hu and hv, the components along x and along y
MOMENTUM = [(1, 2)]

SCHEDULE = SequenceSchedule(
    samples=10,
    frames=9,
    first_frame=2,
    history=1,
    batch_size=4,
    seed=5,
    symmetries=SQUARE,
    initial_share=0.0,
)


# --- the schedule


def _drawn(schedule: SequenceSchedule, at: int) -> tuple[object, ...]:
    return (
        *schedule.samples_at(at),
        *schedule.symmetries_at(at),
        *schedule.starts_at(at, 3),
        *schedule.chosen_at(at, 8, 3),
        *torch.rand(3, generator=schedule.noise_at(at)).tolist(),
    )


def test_steps_may_be_asked_in_any_order() -> None:
    forwards = [_drawn(SCHEDULE, at) for at in range(6)]
    assert [_drawn(SCHEDULE, at) for at in reversed(range(6))][::-1] == forwards
    assert len(set(forwards)) == 6
    assert _drawn(SCHEDULE._replace(seed=6), 0) != forwards[0]


def test_an_epoch_takes_every_trajectory_once() -> None:
    schedule = SCHEDULE._replace(samples=12)
    for epoch in range(2):
        taken = [schedule.samples_at(3 * epoch + at) for at in range(3)]
        assert sorted(np.concatenate(taken)) == list(range(12))


def test_an_epochs_remainder_opens_the_next_one() -> None:
    taken = np.concatenate([SCHEDULE.samples_at(at) for at in range(5)])
    assert sorted(taken[:10]) == sorted(taken[10:]) == list(range(10))


def test_stretches_lie_within_the_trajectory() -> None:
    starts = np.concatenate([SCHEDULE.starts_at(at, 3) for at in range(200)])
    assert set(starts) == set(range(2, 7))
    # a stretch as long as what is left has one place
    assert set(SCHEDULE.starts_at(0, 7)) == {2}
    # of two given frames the last one counts
    longer = SCHEDULE._replace(history=2)
    assert {start for at in range(200) for start in longer.starts_at(at, 3)} == set(range(1, 7))


def test_a_share_of_the_stretches_begins_at_the_beginning() -> None:
    schedule = SCHEDULE._replace(initial_share=0.75, frames=1000)
    for history, first in ((1, 2), (3, 0)):
        continued = schedule._replace(history=history)
        starts = np.concatenate([continued.starts_at(at, 4) for at in range(500)])
        assert np.mean(starts == first) == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_chosen_frames_end_with_the_last_one(count: int) -> None:
    chosen = [SCHEDULE.chosen_at(at, 5, count) for at in range(50)]
    assert all(frames == tuple(sorted(set(frames))) for frames in chosen)
    assert {frames[-1] for frames in chosen} == {4}
    assert {len(frames) for frames in chosen} == {count}
    assert {frame for frames in chosen for frame in frames} == ({4} if count == 1 else set(range(5)))


# --- the data


def _set(ny: int = 4, nx: int = 4, extent: tuple[float, float] = (1.0, 1.0)) -> SequenceSet:
    """Three and two trajectories of nine frames."""
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal((count, 9, 3, ny, nx)).astype(np.float32) for count in (3, 2)]
    return SequenceSet([HeldTrajectories(part) for part in parts], extent, MOMENTUM)


def test_a_batch_holds_the_scheduled_stretches() -> None:
    rng, data = np.random.default_rng(0), _set()
    both = np.concatenate([rng.standard_normal((count, 9, 3, 4, 4)).astype(np.float32) for count in (3, 2)])
    schedule = SCHEDULE._replace(samples=len(data), frames=data.frames)
    assert (len(data), data.frames) == (5, 9)
    for at in range(3):
        batch = data.batch(schedule, at, 4)
        drawn = zip(
            schedule.samples_at(at), schedule.starts_at(at, 4), schedule.symmetries_at(at), strict=True
        )
        for found, (sample, start, element) in zip(batch, drawn, strict=True):
            stretch = torch.from_numpy(both[sample, start : start + 4])
            assert torch.equal(found, transform_state(stretch, int(element), MOMENTUM))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Of three and of two trajectories of nine frames."""
    rng, paths = np.random.default_rng(0), [tmp_path / "a.h5", tmp_path / "b.h5"]
    for path, count in zip(paths, (3, 2), strict=True):
        samples = rng.standard_normal((count, 9, 3, 4, 4)).astype(np.float32)
        write_trajectories(path, samples, "shallow_water", Grid((4, 4), (1.0, 1.0)), np.arange(9.0), {})
    return paths


@pytest.mark.parametrize("part", [slice(None), slice(1, 3)])
def test_from_the_disk_come_the_same_stretches(files: list[Path], part: slice) -> None:
    with open_trajectories(files[0]) as one, open_trajectories(files[1]) as other:
        stored = SequenceSet([one, other], one.extent, MOMENTUM)
        held = SequenceSet([HeldTrajectories(file.load()) for file in (one, other)], one.extent, MOMENTUM)
        assert (len(stored), stored.frames, stored.symmetries) == (5, 9, held.symmetries)
        assert stored.moments() == held.moments()
        schedule = SCHEDULE._replace(samples=5, frames=9)
        for at in range(3):
            assert torch.equal(stored.batch(schedule, at, 4, part), held.batch(schedule, at, 4, part))


class Watched:
    """Trajectories that note which of their frames are read."""

    def __init__(self, file: Trajectories) -> None:
        self._file, self.read_frames = file, list[tuple[int, int, int]]()

    def __len__(self) -> int:
        return len(self._file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, index: int, frames: slice) -> NDArray[np.float32]:
        self.read_frames.append((index, frames.start, frames.stop))
        return self._file.read(index, frames)


def test_a_process_reads_its_stretches_and_no_more(files: list[Path]) -> None:
    schedule = SCHEDULE._replace(samples=5, frames=9)
    with open_trajectories(files[0]) as one, open_trajectories(files[1]) as other:
        watched = [Watched(one), Watched(other)]
        data = SequenceSet(cast("list[Trajectories]", watched), one.extent, MOMENTUM)
        data.batch(schedule, 2, 4, slice(1, 3))
    drawn = zip(schedule.samples_at(2)[1:3], schedule.starts_at(2, 4)[1:3], strict=True)
    read = [*watched[0].read_frames, *((3 + index, *frames) for index, *frames in watched[1].read_frames)]
    assert sorted(read) == sorted((int(sample), int(start), int(start) + 4) for sample, start in drawn)


def test_moments_by_hand() -> None:
    values = np.array([1.0, 3.0, 5.0, 7.0], np.float32)
    parts = [values[:3].reshape(3, 1, 1, 1, 1), values[3:].reshape(1, 1, 1, 1, 1)]
    held = [HeldTrajectories(part) for part in parts]
    mean, deviation = SequenceSet(held, (1.0, 1.0), []).moments()
    assert mean == [4.0]
    assert deviation == pytest.approx([5**0.5])


@pytest.mark.parametrize(
    ("shape", "extent", "expected"),
    [
        ((4, 4), (1.0, 1.0), SQUARE),
        ((4, 8), (1.0, 2.0), RECTANGLE),
        ((4, 4), (1.0, 2.0), RECTANGLE),
        ((4, 8), (1.0, 1.0), RECTANGLE),
    ],
)
def test_only_squares_of_squares_are_turned(
    shape: tuple[int, int], extent: tuple[float, float], expected: int
) -> None:
    assert _set(*shape, extent).symmetries == expected


# --- symmetries of scalars and vectors


def _slope(depth: Tensor) -> Tensor:
    """The gradient by central differences on a torus: components along x and along y."""
    along_x = depth.roll(-1, -1) - depth.roll(1, -1)
    along_y = depth.roll(-1, -2) - depth.roll(1, -2)
    return torch.stack([along_x, along_y], dim=-3)


@pytest.mark.parametrize("element", range(SQUARE))
def test_a_gradient_stays_the_gradient(element: int) -> None:
    depth = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(0))
    states = torch.cat([depth[:, None], _slope(depth)], dim=1)
    moved = transform_state(states, element, MOMENTUM)
    assert torch.equal(moved[:, 0], transform(depth, element))
    assert torch.equal(moved[:, 1:], _slope(moved[:, 0]))


@pytest.mark.parametrize("element", range(SQUARE))
def test_vectors_turn_with_the_points(element: int) -> None:
    """Where the points go tells the rotation as a matrix; vectors must be multiplied by it."""
    y, x = torch.meshgrid(torch.arange(-2.5, 3), torch.arange(-2.5, 3), indexing="ij")
    here = torch.stack([x, y]).flatten(1)
    from_where = torch.stack([transform(x, element), transform(y, element)]).flatten(1)
    matrix = torch.linalg.lstsq(from_where.T, here.T).solution.T
    vectors = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(0))
    expected = torch.einsum("ij,jyx->iyx", matrix, transform(vectors[1:], element))
    torch.testing.assert_close(transform_state(vectors, element, MOMENTUM)[1:], expected)


@pytest.mark.parametrize("element", range(SQUARE))
def test_flowing_commutes_with_the_symmetries(element: int) -> None:
    generator = torch.Generator().manual_seed(0)
    state = torch.rand(1, 3, 8, 8, generator=generator, dtype=torch.float64) - 0.5
    state[:, 0] += 1.5
    ratio = torch.full((1, 1, 1), 0.3, dtype=torch.float64)
    flowed = step(state, (ratio, ratio), "outflow", x_first=True)
    turned = transform_state(state, element, MOMENTUM)
    # the axes exchange their sweeps
    found = step(turned, (ratio, ratio), "outflow", x_first=not element & 4)
    torch.testing.assert_close(found, transform_state(flowed, element, MOMENTUM), rtol=0, atol=1e-14)


@pytest.mark.parametrize("element", range(SQUARE))
def test_scalars_are_only_moved(element: int) -> None:
    states = torch.rand(2, 3, 2, 5, 5)
    before = states.clone()
    assert torch.equal(transform_state(states, element, []), transform(states, element))
    assert torch.equal(states, before)
