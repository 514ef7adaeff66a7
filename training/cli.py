"""The commands ``train`` and ``publish``."""

import os
from pathlib import Path

import click

from training import run as story
from training.checkpoint import load_checkpoint
from training.config import Run, parse_run
from training.progress import Progress
from training.ranks import joined_ranks

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_RUN_FILE = click.argument("run_file", type=_FILE, metavar="RUN.toml")
_STORE = click.option(
    "--store", envvar="MNO_STORE", metavar="URL", help="A model store, such as file:models."
)


@click.command()
@_RUN_FILE
@click.option("--resume", is_flag=True, help="Continue from the last checkpoint, if there is one.")
@click.pass_obj
def train(progress: Progress, run_file: Path, resume: bool) -> None:
    """Carry out RUN.toml: generate, train, evaluate, report, and publish if it says so.

    On several GPUs or processes: torchrun --nproc-per-node 8 -m mno train RUN.toml
    """
    run, text = _read(run_file)
    with joined_ranks(os.environ) as ranks:
        story.execute(run, text, progress, resume=resume, ranks=ranks)


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


def _read(path: Path) -> tuple[Run, str]:
    text = path.read_text()
    return parse_run(text), text
