"""Rollouts against files of a few small trajectories, whose errors are known by construction."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from operators import EvolutionOperator, EvolutionSurrogate
from problems import EVOLUTION_PROBLEMS, Grid
from training import trajectory_metrics
from training.baselines import CoarseSolver, FineSolver, LookUp, Persistence, baselines, evaluate_baselines
from training.compat import CONVENTIONS
from training.dataset import InvalidDataset
from training.trajectories import Trajectories, open_trajectories, write_trajectories
from training.trajectory_evaluation import (
    Window,
    evaluate_forecast,
    evaluate_trajectories,
    predict_trajectories,
    window_of,
)
from training.trajectory_recipe import TrajectoryRecipe

FRAMES, SIDE = 6, 16
NAMES = ("h", "hu", "hv")


class Drift(EvolutionOperator):
    """The mean of the known frames, and ``step`` more with every frame."""

    def __init__(self, step: float = 0.0, history: int = 1, frames: int = 2) -> None:
        super().__init__()
        self.step, self.history, self.frames = step, history, frames

    def forward(
        self,
        history: Float[Tensor, "batch time channel y x"],
        extent: tuple[float, float],  # noqa: ARG002
        chosen: Sequence[int] | None = None,  # noqa: ARG002
    ) -> Float[Tensor, "batch frame channel y x"]:
        steps = torch.arange(1, self.frames + 1)[:, None, None, None]
        return history.mean(dim=1, keepdim=True) + self.step * steps


def drifting(step: float = 0.0, history: int = 1, channels: int = 3) -> EvolutionSurrogate:
    return EvolutionSurrogate(Drift(step, history), channels).eval()


def growing(samples: int = 5, channels: int = 3) -> np.ndarray:
    """A depth of 2 m that grows by 0.5 m a frame, the more the higher the sample's number; no momentum."""
    fields = np.zeros((samples, FRAMES, channels, SIDE, SIDE), np.float32)
    pace = 0.5 * (1 + np.arange(samples))[:, None, None, None]
    fields[:, :, 0] = 2.0 + pace * np.arange(FRAMES)[None, :, None, None]
    return fields


Write = Callable[..., Trajectories]


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Write]:
    """Writes a file and opens it."""
    opened = []

    def open_file(
        fields: np.ndarray, name: str = "data", problem: str = "shallow_water", **attributes: str
    ) -> Trajectories:
        side = EVOLUTION_PROBLEMS[problem].grid.extent
        grid = Grid(fields.shape[-2:], side, (-side[0] / 2, -side[1] / 2))
        times = EVOLUTION_PROBLEMS[problem].frame_interval * np.arange(fields.shape[1])
        write_trajectories(tmp_path / f"{name}.h5", fields, problem, grid, times, attributes)
        opened.append(open_trajectories(tmp_path / f"{name}.h5"))
        return opened[-1]

    yield open_file
    for data in opened:
        data.close()


def test_predicted_frames_follow_the_given_ones(write: Write) -> None:
    data = write(growing())
    # half a meter too much in each of the two frames of a block, then on from there
    predicted = predict_trajectories(drifting(0.5), data, first_frame=1, frames=3, batch_size=2)
    assert predicted.shape == (5, 3, 3, SIDE, SIDE)
    np.testing.assert_allclose(predicted[0, :, 0, 0, 0], [3.0, 3.5, 4.0])
    np.testing.assert_allclose(predicted[4, :, 0, 3, 5], [5.0, 5.5, 6.0])


def test_a_history_is_used_whole(write: Write) -> None:
    data = write(growing())
    predicted = predict_trajectories(drifting(history=3), data, first_frame=2, frames=2, batch_size=8)
    # the mean of the depths 2, 2.5 and 3
    np.testing.assert_allclose(predicted[0, :, 0, 0, 0], [2.5, 2.5])


def test_a_perfect_surrogate_has_no_error(write: Write) -> None:
    # momenta would drift as well: the depth alone
    found = evaluate_trajectories(drifting(0.5, channels=1), write(growing(samples=1)))
    assert found.summary["relative_l2_max"] == pytest.approx(0.0, abs=1e-7)
    assert found.names == ("h",)


def test_errors_are_of_the_predicted_frames_alone(write: Write) -> None:
    data = write(growing(samples=1))
    found = evaluate_trajectories(drifting(), data, first_frame=1)
    # still at 2.5 m, while the reference has 3, 3.5, 4 and 4.5
    error, waves = np.array([0.5, 1.0, 1.5, 2.0]), np.array([2.0, 2.5, 3.0, 3.5])
    np.testing.assert_allclose(found.curves["perturbation_l2"], [error / waves])
    assert found.summary["perturbation_l2_mean"] == pytest.approx((error / waves).mean())
    assert found.summary["relative_l2_mean"] == pytest.approx(
        np.linalg.norm(error) / np.linalg.norm(waves + 1)
    )
    assert found.summary["rmse_h_mean"] == pytest.approx(error.mean())
    assert found.summary["minimum_depth_max"] == pytest.approx(2.5)
    np.testing.assert_allclose(found.times, [0.02, 0.03, 0.04, 0.05])
    assert found.start == pytest.approx(0.01)
    assert (found.window, len(found)) == (Window(1, 4), 1)


def test_frames_can_be_fewer_than_the_file_has(write: Write) -> None:
    found = evaluate_trajectories(drifting(), write(growing()), first_frame=0, frames=2)
    assert found.curves["rmse"].shape == (5, 2, 3)


def test_the_size_of_a_batch_changes_nothing(write: Write) -> None:
    data = write(growing())
    one, all_ = (evaluate_trajectories(drifting(0.1), data, batch_size=size) for size in (1, 8))
    assert one.summary == pytest.approx(all_.summary)


def test_quantiles_per_frame(write: Write) -> None:
    found = evaluate_trajectories(drifting(), write(growing(samples=5)), frames=2)
    # in frame 1 the samples are wrong by 0.5, 1, ..., 2.5 m, the waves being 1 m higher
    errors = 0.5 * np.arange(1, 6) / (1 + 0.5 * np.arange(1, 6))
    assert found.per_frame("perturbation_l2", 0.5)[0] == pytest.approx(errors[2])
    assert found.per_frame("perturbation_l2", 1.0)[0] == pytest.approx(errors[4])
    assert found.per_frame("rmse", 0.25)[:, 0] == pytest.approx([1.0, 2.0])


def test_kept_rollouts_go_from_good_to_bad(write: Write) -> None:
    data = write(growing()[::-1].copy())
    found = evaluate_trajectories(drifting(), data, keep=3)
    assert [kept.index for kept in found.kept] == [3, 2, 1]
    np.testing.assert_array_equal(found.kept[0].reference, data.read(3)[1:])
    np.testing.assert_array_equal(found.kept[0].start, data.read(3)[0])
    np.testing.assert_array_equal(found.kept[0].predicted[4], data.read(3)[0])
    assert evaluate_trajectories(drifting(), data).kept == ()


def test_spectra_are_averages_over_the_samples(write: Write) -> None:
    fields = growing(samples=2)
    y, x = Grid((SIDE, SIDE), (5.0, 5.0)).coordinates()
    fields[1, :, 1] = np.cos(2 * np.pi * x / 5.0)[None, :] * np.ones_like(y)[:, None]
    found = evaluate_trajectories(drifting(), write(fields)).spectra
    assert found.frames == (0, 1, 3, 4)
    # two half-waves are the second ring; a persistent wave is predicted without error
    assert found.reference[0, 1].argmax() == 1
    np.testing.assert_allclose(found.predicted, found.reference, atol=1e-12)
    assert found.error.max() < 1e-12
    ring = np.rint(np.hypot(*np.mgrid[:SIDE, :SIDE])) == 2
    assert found.reference[0, 1, 1] == pytest.approx(0.5 / ring.sum() / 2)


def test_conventions_see_the_batches_and_pdebenchs_channels(write: Write) -> None:
    data = write(growing())
    convention = CONVENTIONS["mno"]
    found = evaluate_trajectories(drifting(), data, first_frame=1, batch_size=3, convention=convention)
    fields = growing()[:, :, :1]
    predicted = np.repeat(fields[:, 1:2], 4, axis=1)
    batches = [slice(0, 3), slice(3, 5)]
    values = [convention.evolution(predicted[b], fields[b, 2:], fields[b, :2]) for b in batches]
    assert found.compat == pytest.approx(convention.combine(values))


def test_a_file_without_momentum_starts_at_rest(write: Write) -> None:
    data = write(growing(channels=1))
    found = evaluate_trajectories(drifting(), data)
    whole = evaluate_trajectories(drifting(), write(growing(), "whole"))
    assert found.names == ("h",)
    np.testing.assert_array_equal(found.curves["perturbation_l2"], whole.curves["perturbation_l2"])
    with pytest.raises(InvalidDataset, match="start at frame 0"):
        evaluate_trajectories(drifting(), data, first_frame=1)


def test_a_rollout_that_blows_up_is_reported_not_raised(write: Write) -> None:
    found = evaluate_trajectories(drifting(np.inf), write(growing()), keep=1)
    assert found.summary["diverged_mean"] == 1.0
    assert found.summary["perturbation_l2_median"] == np.inf


@pytest.mark.parametrize(("first_frame", "frames"), [(1, None), (5, None), (2, 4), (-1, None), (7, None)])
def test_frames_that_are_not_there(write: Write, first_frame: int, frames: int | None) -> None:
    with pytest.raises(InvalidDataset, match="frame"):
        evaluate_trajectories(drifting(history=3), write(growing()), first_frame, frames)


def test_progress_is_told(write: Write) -> None:
    done: list[int] = []
    evaluate_trajectories(drifting(), write(growing()), batch_size=2, advance=done.append)
    assert done == [2, 2, 1]


# baselines


def solved(recipe: TrajectoryRecipe, path: Path) -> Trajectories:
    recipe.write(path, (recipe.make(index) for index in range(recipe.count)))
    return open_trajectories(path)


def recipe(problem: str, family: str, label: int, seed: int = 1) -> TrajectoryRecipe:
    of = EVOLUTION_PROBLEMS[problem]
    return TrajectoryRecipe(
        problem=problem,
        family=family,
        parameters={},
        seed=seed,
        count=2,
        grid=(SIDE, SIDE),
        extent=of.grid.extent,
        origin=of.grid.origin,
        scheme=of.schemes[0],
        label_grid=(label, label),
        frames=4,
        walls=of.walls[0],
    )


def test_persistence(write: Write) -> None:
    data = write(growing())
    found = evaluate_forecast(Persistence(), data, Window(1, 3))
    expected = evaluate_trajectories(drifting(), data, first_frame=1, frames=3)
    assert found.summary == pytest.approx(expected.summary)
    assert found.cpu_seconds_per_sample == 0.0


def test_look_up_finds_the_twin(write: Write) -> None:
    data, training = write(growing()), write(growing()[::-1].copy(), "training")
    # all samples start alike: they differ from the second frame on
    found = evaluate_forecast(LookUp(training, Window(1, 3)), data, Window(1, 3))
    assert found.summary["relative_l2_max"] == 0.0


def test_look_up_finds_the_closest_state(write: Write) -> None:
    fields = growing()
    near = fields[1:2].copy()
    near[:, 0, 2] += 0.1
    fields[:, 0, 0] += np.arange(5)[:, None, None]
    near[:, 0, 0] += 1.0
    look_up = LookUp(write(fields, "training"), Window(0, 5))
    found = evaluate_forecast(look_up, write(near), Window(0, 5))
    # the second training trajectory, which goes on like this one
    assert found.summary["relative_l2_max"] == 0.0


@pytest.mark.parametrize(
    ("training", "complaint"), [((5, FRAMES, 1, 16, 16), "expected channels"), ((5, 3, 3, 16, 16), "frames")]
)
def test_look_up_refuses_other_data(write: Write, training: tuple[int, ...], complaint: str) -> None:
    data = write(growing())
    window = window_of(data, 0, None)
    with pytest.raises(InvalidDataset, match=complaint):
        evaluate_forecast(LookUp(write(np.ones(training, np.float32), "training"), window), data, window)


@pytest.mark.parametrize("first_frame", [0, 2])
@pytest.mark.parametrize(
    ("problem", "family"), [("shallow_water", "dams"), ("diffusion_reaction", "pdebench")]
)
def test_the_solver_of_the_labels_has_no_error(
    problem: str, family: str, first_frame: int, tmp_path: Path
) -> None:
    with solved(recipe(problem, family, label=SIDE), tmp_path / "data.h5") as data:
        window = window_of(data, first_frame, None)
        of = EVOLUTION_PROBLEMS[problem]
        grid = Grid(data.grid, data.extent, data.origin)
        served = CoarseSolver(of, grid, of.schemes[0], of.walls[0], first_frame)
        found = evaluate_forecast(served, data, window)
    # frames of the file are rounded to float32
    assert found.summary["relative_l2_max"] < 1e-5
    assert found.cpu_seconds_per_sample > 0.0


@pytest.mark.parametrize("first_frame", [0, 1])
def test_a_finer_solver_starts_from_the_state_of_the_labels(first_frame: int, tmp_path: Path) -> None:
    made = recipe("shallow_water", "dams", label=2 * SIDE)
    with solved(made, tmp_path / "data.h5") as data:
        fine = FineSolver(made, (2 * SIDE, 2 * SIDE), window_of(data, first_frame, None))
        found = evaluate_forecast(fine, data, window_of(data, first_frame, None))
    assert found.summary["relative_l2_max"] < 1e-6


def test_baselines_are_those_that_the_file_allows(write: Write, tmp_path: Path) -> None:
    with solved(recipe("shallow_water", "dams", label=4 * SIDE), tmp_path / "solved.h5") as data:
        window = window_of(data, 0, None)
        names = [forecast.name for forecast in baselines(data, window, data)]
        assert names == ["solver, 16 x 16", "solver, 32 x 32", "look-up", "persistence"]
        served, finer, look_up, _ = evaluate_baselines(baselines(data, window, data), data, window)
    assert finer.summary["perturbation_l2_mean"] < served.summary["perturbation_l2_mean"]
    assert look_up.summary["perturbation_l2_mean"] == 0.0
    foreign = write(growing(channels=1))
    of_foreign = baselines(foreign, Window(1, 2), None)
    assert [forecast.name for forecast in of_foreign] == ["persistence"]


def test_every_curve_can_be_asked_for(write: Write) -> None:
    found = evaluate_trajectories(drifting(), write(growing()))
    for metric in (*trajectory_metrics.METRICS[:-1], *trajectory_metrics.DEPTH_METRICS[:-1]):
        assert len(found.per_frame(metric, 0.9)) == 5, metric
