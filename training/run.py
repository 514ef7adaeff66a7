"""The story of a run: generate, train, evaluate, report, publish."""

import json
from functools import partial
from pathlib import Path

import click
import torch

from bulk.engine import Engine
from model_store import open_store
from operators import AnySurrogate, Surrogate
from problems import EVOLUTION_PROBLEMS
from training.calibrate import held_out_files, measure_calibration
from training.checkpoint import Checkpoint
from training.config import Run
from training.dataset import read_dataset
from training.evaluate import Evaluation, evaluate
from training.evolution_task import EvolutionTask
from training.files import exclusive, replace_atomically
from training.generate import estimate, generate
from training.learner import averaged_surrogate
from training.progress import Progress, silent
from training.publish import Calibrate, move_alias, publish, uncalibrated
from training.ranks import ALONE, Ranks
from training.report import write_report
from training.report_trajectories import write_trajectory_report
from training.splits import all_files, split_files, worker_count
from training.steady_task import SteadyTask
from training.task import Task
from training.trainer import choose_device, train
from training.trajectories import open_trajectories
from training.trajectory_evaluation import TrajectoryEvaluation, evaluate_trajectories

DEFAULT_STORE = "file:models"

# family -> how the surrogate does on its test split
Evaluations = dict[str, Evaluation | TrajectoryEvaluation]


def execute(
    run: Run,
    text: str,
    progress: Progress,
    *,
    resume: bool,
    ranks: Ranks = ALONE,
    store: str | None = None,
) -> None:
    """Carry out a run file from its data to its published version.

    Of several processes that train together the one that leads does everything but the training. ``store`` is
    the URL of the store to publish into where the run file names none.
    """
    ranks.part(run.optimizer.batch_size)
    if not ranks.leads:
        ranks.wait()
        make_checkpoint(run, text, silent, resume=resume, ranks=ranks)
        return
    make_data(run, progress)
    ranks.wait()
    with exclusive(run.run.directory):
        checkpoint = make_checkpoint(run, text, progress, resume=resume, ranks=ranks)
    evaluations = evaluate_tests(run, checkpoint, progress)
    make_report(run, evaluations)
    if run.publish is not None:
        url = run.publish.store or store or DEFAULT_STORE
        make_version(run, checkpoint, evaluations, run.publish.model, url, run.publish.alias)


def make_data(run: Run, progress: Progress, engine: Engine | None = None) -> None:
    """Generate the files that are missing, on this machine or by an engine."""
    files, workers = all_files(run), worker_count(run)
    with exclusive(run.data.directory):
        expected = estimate(files, workers if engine is None else 1)
        if expected.samples:
            where = f"on {workers} processes" if engine is None else "on one core, less on several"
            click.echo(f"{expected} {where}, into {run.data.directory}")
        generate(files, workers, progress, engine)


def make_checkpoint(
    run: Run, text: str, progress: Progress, *, resume: bool, ranks: Ranks = ALONE
) -> Checkpoint:
    """Train on the training split, validating on the validation split."""
    return train(run, text, partial(make_task, run, ranks), progress, resume=resume, ranks=ranks)


def make_task(run: Run, ranks: Ranks, device: torch.device) -> Task:
    """What the run learns, with its training and validation data."""
    training = [file.path for file in split_files(run, "train").values()]
    validation = {name: file.path for name, file in split_files(run, "validation").items()}
    if run.data.problem in EVOLUTION_PROBLEMS:
        return EvolutionTask(run, training, validation, device, ranks)
    return SteadyTask(run, training, validation, device, ranks)


def evaluate_tests(run: Run, checkpoint: Checkpoint, progress: Progress) -> Evaluations:
    """Evaluate the averaged weights on every test split: family -> evaluation."""
    surrogate = averaged_surrogate(run, checkpoint).to(choose_device(run.run.device))
    files = split_files(run, "test")
    evaluations: Evaluations = {}
    with progress(None, sum(file.recipe.count for file in files.values()), "evaluate") as bar:
        for family, file in files.items():
            evaluations[family] = evaluate_file(run, surrogate, file.path)
            bar.update(file.recipe.count)
    return evaluations


def evaluate_file(
    run: Run, surrogate: AnySurrogate, path: Path, frames: int | None = None
) -> Evaluation | TrajectoryEvaluation:
    """Evaluate a surrogate on a file of the run's problem, which may be of another grid than the run's.

    Args:
        run: the run.
        surrogate: in evaluation mode.
        path: of the file.
        frames: of a problem in time, how many to predict; None for all that follow.
    """
    options = run.evaluation
    if isinstance(surrogate, Surrogate):
        return evaluate(surrogate, read_dataset(path), options.batch_size, run.data.scheme)
    first = None if run.sequence is None else run.sequence.first_frame
    with open_trajectories(path) as data:
        return evaluate_trajectories(
            surrogate, data, first, frames, options.batch_size, keep=options.pictures
        )


def make_report(run: Run, evaluations: Evaluations) -> None:
    """Write the metrics as JSON, and the report with its pictures, into the run's directory."""
    directory = run.run.directory
    with replace_atomically(directory / "evaluation.json") as path:
        path.write_text(json.dumps(_metrics(evaluations), indent=1) + "\n")
    if not evaluations:
        return
    log, place, title = directory / "log.jsonl", directory / "report", run.run.name
    steady = {family: found for family, found in evaluations.items() if isinstance(found, Evaluation)}
    rollouts = {
        family: [found] for family, found in evaluations.items() if isinstance(found, TrajectoryEvaluation)
    }
    if steady:
        report = write_report(place, title, steady, run.evaluation.pictures, log)
    else:
        report = write_trajectory_report(place, title, rollouts, log)
    click.echo(f"report: {report}")


def make_version(
    run: Run, checkpoint: Checkpoint, evaluations: Evaluations, model: str, url: str, alias: str | None
) -> None:
    """Publish the checkpoint, and point the alias at the new version."""
    store = open_store(url)
    description = "" if run.publish is None else run.publish.description
    measure: Calibrate = uncalibrated
    if held_out_files(run):
        measure = partial(measure_calibration, run, averaged_surrogate(run, checkpoint))
    reference = publish(store, model, run, checkpoint, _metrics(evaluations), description, measure)
    if alias is not None:
        move_alias(store, reference, alias)
    click.echo(f"published {reference}{f' as {model}@{alias}' if alias else ''} in {store.url}")


def _metrics(evaluations: Evaluations) -> dict[str, dict[str, float]]:
    return {family: evaluation.summary for family, evaluation in evaluations.items()}
