"""Reports of rollouts: what the tables say, and that the pictures show fields as they are."""

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from problems import EVOLUTION_PROBLEMS, Grid
from training import pictures_trajectories as pictures
from training.animation import animate
from training.baselines import Persistence
from training.report_trajectories import cost_table, error_table, write_trajectory_report
from training.trajectories import open_trajectories, write_trajectories
from training.trajectory_evaluation import TrajectoryEvaluation, Window, evaluate_forecast


def persistent(directory: Path, problem: str, frames: int = 60) -> TrajectoryEvaluation:
    """Persistence on four trajectories of random fields."""
    of = EVOLUTION_PROBLEMS[problem]
    grid = Grid((12, 16), of.grid.extent, of.grid.origin)
    rng = np.random.default_rng(0)
    shape = (4, frames + 1, len(of.outputs), *grid.shape)
    fields = (1.0 + 0.1 * rng.standard_normal(shape)).astype(np.float32)
    fields[:, :, 1] -= 1.0
    times = of.frame_interval * np.arange(frames + 1)
    write_trajectories(directory / f"{problem}.h5", fields, problem, grid, times, {})
    with open_trajectories(directory / f"{problem}.h5") as data:
        return evaluate_forecast(Persistence(), data, Window(0, frames), keep=3)


@pytest.fixture(scope="module", params=["shallow_water", "diffusion_reaction"])
def evaluation(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> TrajectoryEvaluation:
    return persistent(tmp_path_factory.mktemp("data"), request.param)


def animation_frames(path: Path) -> int:
    """Frames of an animated PNG, from its control chunk."""
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    return int(struct.unpack(">I", data[data.index(b"acTL") + 4 :][:4])[0])


def with_title(figure: Figure, title: str) -> Axes:
    return next(axes for axes in figure.axes if axes.get_title().startswith(title))


@pytest.mark.slow
def test_report_and_its_pictures(evaluation: TrajectoryEvaluation, tmp_path: Path) -> None:
    other = replace(evaluation, forecast="solver, 128 x 128", kept=())
    path = write_trajectory_report(tmp_path / "report", "a model", {"wide": [evaluation, other]})
    text = path.read_text()
    pictures = {found.name for found in path.parent.glob("*.png")}
    assert {f"wide_{kind}.png" for kind in ("error", "spectra")} < pictures
    middle = evaluation.kept[1].index
    assert f"wide_{middle:04d}_animation.png" in pictures
    assert {f"wide_{middle:04d}_{name}.png" for name in evaluation.names} < pictures
    assert all(f"({name})" in text for name in pictures)
    assert animation_frames(tmp_path / "report" / f"wide_{middle:04d}_animation.png") == 30
    assert "| solver, 128 x 128 |" in text
    assert "0 of 4 rollouts have values that are not finite." in text


def test_tables(evaluation: TrajectoryEvaluation) -> None:
    metric = {"shallow_water": "perturbation_l2", "diffusion_reaction": "relative_l2"}[evaluation.problem]
    median = f"{100 * evaluation.summary[f'{metric}_median']:.2f}"
    assert f"| wide | 4 | 1-60 | {pictures.METRIC_TITLES[metric]} | {median} |" in error_table(
        {"wide": evaluation}
    )
    slow = replace(evaluation, cpu_seconds_per_sample=1.5, seconds_per_sample=0.75)
    assert f"| persistence | {median} |" in cost_table([slow])
    assert cost_table([slow]).endswith("| 1.500 | 0.750 |")


def test_values_of_other_codes_are_shown(evaluation: TrajectoryEvaluation, tmp_path: Path) -> None:
    found = replace(evaluation, compat={"RMSE": 0.125}, kept=())
    text = write_trajectory_report(tmp_path, "a model", {"wide": [found]}).read_text()
    assert "| RMSE |\n| --- |\n| 0.125 |" in text


def test_an_animation_has_no_more_frames_than_needed(
    evaluation: TrajectoryEvaluation, tmp_path: Path
) -> None:
    kept = evaluation.kept[0]
    short = replace(kept, reference=kept.reference[:5], predicted=kept.predicted[:5])
    animate(tmp_path / "short.png", evaluation, short)
    assert animation_frames(tmp_path / "short.png") == 5


def test_fields_are_shown_as_they_lie(evaluation: TrajectoryEvaluation) -> None:
    kept = evaluation.kept[0]
    figure = pictures.rollout(evaluation, kept, 0)
    reference, predicted, error = (
        with_title(figure, title) for title in ("reference", "persistence", "error")
    )
    (y, x), (ly, lx) = evaluation.grid.origin, evaluation.grid.extent
    for axes in (reference, predicted, error):
        image = axes.images[0]
        assert image.origin == "lower"
        assert image.get_extent() == [x, x + lx, y, y + ly]
        assert axes.get_aspect() == 1.0
    np.testing.assert_array_equal(reference.images[0].get_array(), kept.reference[0, 0])
    np.testing.assert_array_equal(error.images[0].get_array(), kept.predicted[0, 0] - kept.reference[0, 0])
    assert reference.images[0].norm is predicted.images[0].norm
    assert error.images[0].norm.vmin == -error.images[0].norm.vmax
    assert reference.get_ylabel().endswith("y [m]")
    spec = EVOLUTION_PROBLEMS[evaluation.problem].outputs[0]
    assert figure.get_suptitle().startswith(f"{spec.description}, {spec.symbol}")


def test_units_are_typeset(evaluation: TrajectoryEvaluation) -> None:
    figure = pictures.rollout(evaluation, evaluation.kept[0], 1)
    title = figure.get_suptitle()
    assert ("[m²/s]" if evaluation.problem == "shallow_water" else ", v, sample") in title
    labels = [axes.get_ylabel() for axes in pictures.spectra(evaluation).axes]
    expected = ["h² [m²]", "hu² [(m²/s)²]"] if evaluation.problem == "shallow_water" else ["u²", "v²"]
    assert all(f"power per mode, {unit}" in labels for unit in expected)


def test_error_over_time_has_a_line_for_every_forecast(evaluation: TrajectoryEvaluation) -> None:
    other = replace(evaluation, forecast="look-up")
    left, right = pictures.error_over_time([evaluation, other]).axes
    labels = [line.get_label() for line in left.lines]
    assert labels == ["persistence, median and 10-90 %", "look-up, median"]
    assert [str(line.get_label()).split(",")[0] for line in right.lines] == list(evaluation.names)
    metric = "perturbation_l2" if evaluation.problem == "shallow_water" else "relative_l2"
    np.testing.assert_array_equal(left.lines[0].get_ydata(), evaluation.per_frame(metric, 0.5))
    assert left.get_xlabel() == "time [s]"


def test_scales_of_fields_that_change_sign_are_symmetric() -> None:
    field = np.array([[-1.0, 3.0]], np.float32)
    found = pictures.scales(field, field + 0.5)
    assert (found.values.vmin, found.values.vmax) == (-3.0, 3.0)
    assert (found.errors.vmin, found.errors.vmax) == (-0.5, 0.5)


@pytest.mark.parametrize("value", [1.0, np.nan, np.inf])
def test_scales_of_uniform_and_broken_fields(value: float) -> None:
    uniform = np.ones((2, 2), np.float32)
    found = pictures.scales(uniform, np.full((2, 2), value, np.float32))
    assert found.values.vmin is not None
    assert found.values.vmax is not None
    assert found.values.vmin < found.values.vmax
    assert (found.errors.vmin, found.errors.vmax) == (-1.0, 1.0)


def test_a_rollout_that_blew_up_can_be_shown(evaluation: TrajectoryEvaluation, tmp_path: Path) -> None:
    kept = evaluation.kept[0]
    predicted = kept.predicted.copy()
    predicted[30:] = np.nan
    broken = replace(evaluation, kept=(replace(kept, predicted=predicted),))
    assert write_trajectory_report(tmp_path, "a model", {"wide": [broken]}).exists()
