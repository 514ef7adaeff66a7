"""The command ``evaluate``: a published version or a checkpoint, measured on a data set."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from model_store import open_catalog
from operators import AnySurrogate, EvolutionSurrogate, Surrogate
from problems import EVOLUTION_PROBLEMS
from training.baselines import baselines, evaluate_baselines
from training.checkpoint import load_checkpoint
from training.compat import CONVENTIONS, Convention, measure_steady
from training.config import parse_run
from training.dataset import InvalidDataset, read_dataset
from training.evaluate import evaluate as measure
from training.learner import averaged_surrogate
from training.progress import Progress
from training.report import write_report
from training.report_trajectories import cost_table, write_trajectory_report
from training.trainer import choose_device
from training.trajectories import Trajectories, open_trajectories
from training.trajectory_evaluation import BATCH_SIZE, TrajectoryEvaluation, evaluate_trajectories

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
# the samples per forward pass of a steady surrogate, and those shown in a report
_STEADY_BATCH, _PICTURES = 16, 3


@dataclass(frozen=True)
class _Loaded:
    """What is to be measured."""

    surrogate: AnySurrogate
    problem: str
    scheme: str
    frame_interval: float | None
    walls: str | None


@dataclass(frozen=True)
class _Options:
    """What the command line says, beside the model and the data set."""

    report: Path | None
    compat: str | None
    first_frame: int | None
    frames: int | None
    batch_size: int | None
    with_baselines: bool
    training: Path | None

    @property
    def convention(self) -> Convention | None:
        return None if self.compat is None else CONVENTIONS[self.compat]

    def require_steady(self) -> None:
        given = {
            "--first-frame": self.first_frame is not None,
            "--frames": self.frames is not None,
            "--baselines": self.with_baselines,
            "--training": self.training is not None,
        }
        if wrong := [name for name, is_given in given.items() if is_given]:
            raise click.UsageError(
                f"{', '.join(wrong)}: for trajectories, but the model solves a steady problem"
            )


@click.command()
@click.argument("model", metavar="MODEL@VERSION")
@click.argument("dataset", type=_FILE)
@click.option(
    "--report", type=click.Path(file_okay=False, path_type=Path), help="Write a report with pictures here."
)
@click.option(
    "--compat",
    type=click.Choice(list(CONVENTIONS)),
    help="Metrics as that code computes them, too; both give 10 frames (--first-frame 9).",
)
@click.option("--first-frame", type=click.IntRange(0), help="The last frame of a trajectory that is given.")
@click.option("--frames", type=click.IntRange(1), help="Frames to predict, all that follow if not given.")
@click.option("--batch-size", type=click.IntRange(1), help="Samples per batch; --compat depends on it.")
@click.option("--baselines", "with_baselines", is_flag=True, help="Measure solvers and the like beside it.")
@click.option("--training", type=_FILE, help="The training data, to look trajectories up in (--baselines).")
@click.option("--store", envvar="MNO_STORE", metavar="URL", help="A model store, such as file:models.")
@click.pass_obj
def evaluate(
    progress: Progress,
    model: str,
    dataset: Path,
    report: Path | None,
    compat: str | None,
    first_frame: int | None,
    frames: int | None,
    batch_size: int | None,
    with_baselines: bool,
    training: Path | None,
    store: str | None,
) -> None:
    """Measure a version, or a checkpoint file, on a DATASET in PDEBench's HDF5 layout."""
    if training is not None and not with_baselines:
        raise click.UsageError("--training is for the look-up: expected --baselines beside it")
    options = _Options(report, compat, first_frame, frames, batch_size, with_baselines, training)
    loaded = _load(model, store)
    if isinstance(loaded.surrogate, EvolutionSurrogate):
        _evaluate_rollouts(model, loaded, loaded.surrogate, dataset, options, progress)
    else:
        options.require_steady()
        _evaluate_solutions(model, loaded.surrogate, loaded.scheme, dataset, options)


def _evaluate_solutions(model: str, surrogate: Surrogate, scheme: str, path: Path, options: _Options) -> None:
    """Of a steady problem."""
    dataset = read_dataset(path)
    evaluation = measure(surrogate, dataset, batch_size=_STEADY_BATCH, scheme=scheme)
    click.echo(_lines(evaluation.summary))
    if options.convention is not None:
        values = measure_steady(
            options.convention, evaluation.predicted, dataset.pressure, options.batch_size
        )
        click.echo(_lines({f"{options.compat}.{name}": value for name, value in values.items()}))
    if options.report is not None:
        click.echo(
            f"report: {write_report(options.report, model, {path.stem: evaluation}, samples=_PICTURES)}"
        )


def _evaluate_rollouts(
    model: str,
    loaded: _Loaded,
    surrogate: EvolutionSurrogate,
    path: Path,
    options: _Options,
    progress: Progress,
) -> None:
    """Of an evolution problem."""
    surrogate = surrogate.to(choose_device("auto"))
    with open_trajectories(path) as data:
        _require_same_problem(loaded, data)
        evaluation = _measured(surrogate, data, options, progress)
        others = _baselines(evaluation, data, options, progress) if options.with_baselines else []
    click.echo(_lines(evaluation.summary))
    if evaluation.compat:
        click.echo(_lines({f"{options.compat}.{name}": value for name, value in evaluation.compat.items()}))
    click.echo(cost_table([evaluation, *others]))
    if options.report is not None:
        found = {path.stem: [evaluation, *others]}
        click.echo(f"report: {write_trajectory_report(options.report, model, found)}")


def _measured(
    surrogate: EvolutionSurrogate, data: Trajectories, options: _Options, progress: Progress
) -> TrajectoryEvaluation:
    convention = options.convention
    usual = BATCH_SIZE if convention is None else convention.evolution_batch
    with progress(None, len(data), "evaluate") as bar:
        return evaluate_trajectories(
            surrogate,
            data,
            options.first_frame,
            options.frames,
            options.batch_size or usual,
            keep=_PICTURES if options.report is not None else 0,
            convention=convention,
            advance=bar.update,
        )


def _baselines(
    evaluation: TrajectoryEvaluation, data: Trajectories, options: _Options, progress: Progress
) -> list[TrajectoryEvaluation]:
    window = evaluation.window
    training = None if options.training is None else open_trajectories(options.training)
    try:
        forecasts = baselines(data, window, training)
        with progress(None, len(data) * len(forecasts), "baselines") as bar:
            return evaluate_baselines(forecasts, data, window, bar.update)
    finally:
        if training is not None:
            training.close()


def _require_same_problem(loaded: _Loaded, data: Trajectories) -> None:
    """A model predicts frames of its own problem and walls, at the distance in time that it has learnt."""
    if loaded.problem != data.problem:
        raise InvalidDataset(f"{data.path}: expected trajectories of {loaded.problem}, got {data.problem}")
    expected = loaded.frame_interval or EVOLUTION_PROBLEMS[data.problem].frame_interval
    found = np.diff(data.times)
    # the times of a file are rounded to float32
    if not np.allclose(found, expected, rtol=1e-3, atol=1e-6 * float(data.times[-1])):
        raise InvalidDataset(
            f"{data.path}: expected a frame every {expected:g} s, as the model predicts them, "
            f"got intervals of {found.min():g} to {found.max():g} s"
        )
    # a file of another program does not say
    walls = data.attributes.get("walls", loaded.walls)
    if loaded.walls is not None and walls != loaded.walls:
        raise InvalidDataset(f"{data.path}: expected walls {loaded.walls}, as the model knows, got {walls}")


def _load(model: str, store: str | None) -> _Loaded:
    """From a checkpoint file or from a store."""
    if Path(model).is_file():
        checkpoint = load_checkpoint(Path(model))
        run = parse_run(checkpoint.run)
        surrogate, data = averaged_surrogate(run, checkpoint), run.data
        return _Loaded(surrogate, data.problem, data.scheme, None, data.walls)
    catalog = open_catalog(store)
    reference = catalog.resolve(model)
    version = catalog.load(reference.name, reference.version)
    card = version.card
    return _Loaded(version.surrogate, card.problem, card.scheme, card.frame_interval, card.walls)


def _lines(values: Mapping[str, float]) -> str:
    return "\n".join(f"{name:24} {value:.6g}" for name, value in values.items())
