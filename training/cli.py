"""The commands ``train``, ``publish`` and ``calibrate``."""

import os
from pathlib import Path

import click

from model_store import open_store
from training import run as story
from training.calibrate import make_calibration_data, recalibrate, require_origin
from training.checkpoint import load_checkpoint
from training.config import Run, parse_run
from training.progress import Progress
from training.publish import move_alias
from training.ranks import joined_ranks

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_RUN_FILE = click.argument("run_file", type=_FILE, metavar="RUN.toml")
_STORE = click.option(
    "--store", envvar="MNO_STORE", metavar="URL", help="A model store, such as file:models."
)


@click.command()
@_RUN_FILE
@click.option("--resume", is_flag=True, help="Continue from the last checkpoint, if there is one.")
@_STORE
@click.pass_obj
def train(progress: Progress, run_file: Path, resume: bool, store: str | None) -> None:
    """Carry out RUN.toml: generate, train, evaluate, report, and publish if it says so.

    The store is where a run file publishes that names none itself.

    On several GPUs or processes: torchrun --nproc-per-node 8 -m mno train RUN.toml
    """
    run, text = _read(run_file)
    with joined_ranks(os.environ) as ranks:
        story.execute(run, text, progress, resume=resume, ranks=ranks, store=store)


@click.command()
@click.argument("checkpoint", type=_FILE)
@click.argument("model")
@_STORE
@click.option("--alias", help="Point this alias, such as production, at the new version.")
@click.pass_obj
def publish(progress: Progress, checkpoint: Path, model: str, store: str | None, alias: str | None) -> None:
    """Make CHECKPOINT a version of MODEL, if it meets the limits of its run file on the test splits."""
    saved = load_checkpoint(checkpoint)
    run = parse_run(saved.run)
    evaluations = story.evaluate_tests(run, saved, progress)
    story.make_version(run, saved, evaluations, model, store or story.DEFAULT_STORE, alias)


@click.command()
@click.argument("model", metavar="MODEL@VERSION")
@_RUN_FILE
@_STORE
@click.option("--alias", help="Point this alias, such as production, at the new version.")
@click.pass_obj
def calibrate(progress: Progress, model: str, run_file: Path, store: str | None, alias: str | None) -> None:
    """Publish MODEL@VERSION once more, with estimates measured on samples that it has not learnt from.

    RUN.toml is the version's run file, perhaps with samples set aside, such as calibration = 1000 for a
    family; else its test samples are taken. What is missing is generated. The weights stay as they are,
    and so do the ranges of inputs on the card; those that it lacks are added.
    """
    run, _ = _read(run_file)
    opened = open_store(store or story.DEFAULT_STORE)
    reference = opened.resolve(model)
    version = opened.load(reference.name, reference.version)
    # refused before anything is generated
    require_origin(run, version.card)
    make_calibration_data(run, progress)
    found = recalibrate(opened, version, run)
    if alias is not None:
        move_alias(opened, found, alias)
    click.echo(f"published {found}{f' as {found.name}@{alias}' if alias else ''} in {opened.url}")


def _read(path: Path) -> tuple[Run, str]:
    text = path.read_text()
    return parse_run(text), text
