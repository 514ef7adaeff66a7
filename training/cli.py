"""The commands ``generate``, ``train``, ``evaluate`` and ``publish``."""

from pathlib import Path

import click

from model_store import open_catalog
from operators import Surrogate
from training import run as story
from training.checkpoint import load_checkpoint
from training.config import Run, parse_run
from training.dataset import read_dataset
from training.evaluate import Evaluation
from training.evaluate import evaluate as measure
from training.learner import averaged_surrogate
from training.progress import Progress
from training.report import write_report

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_RUN_FILE = click.argument("run_file", type=_FILE, metavar="RUN.toml")
_STORE = click.option(
    "--store", envvar="MNO_STORE", metavar="URL", help="A model store, such as file:models."
)


@click.command()
@_RUN_FILE
@click.pass_obj
def generate(progress: Progress, run_file: Path) -> None:
    """Generate the reference data of RUN.toml; continues an interrupted generation."""
    story.make_data(_read(run_file)[0], progress)


@click.command()
@_RUN_FILE
@click.option("--resume", is_flag=True, help="Continue from the last checkpoint, if there is one.")
@click.pass_obj
def train(progress: Progress, run_file: Path, resume: bool) -> None:
    """Carry out RUN.toml: generate, train, evaluate, report, and publish if it says so."""
    run, text = _read(run_file)
    story.execute(run, text, progress, resume=resume)


@click.command()
@click.argument("model", metavar="MODEL@VERSION")
@click.argument("dataset", type=_FILE)
@click.option(
    "--report", type=click.Path(file_okay=False, path_type=Path), help="Write a report with pictures here."
)
@click.option("--compat", type=click.Choice(["mno", "pdebench"]), help="Metrics as other code computes them.")
@_STORE
def evaluate(model: str, dataset: Path, report: Path | None, compat: str | None, store: str | None) -> None:
    """Measure a version, or a checkpoint file, on a DATASET in PDEBench's HDF5 layout."""
    if compat is not None:
        raise click.UsageError("--compat is not available yet: leave it out")
    surrogate, scheme = _load(model, store)
    evaluation = measure(surrogate, read_dataset(dataset), batch_size=16, scheme=scheme)
    click.echo(_text(evaluation))
    if report is not None:
        click.echo(f"report: {write_report(report, model, {dataset.stem: evaluation}, samples=3)}")


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


def _load(model: str, store: str | None) -> tuple[Surrogate, str]:
    """A surrogate and the scheme of its labels, from a checkpoint file or from a store."""
    if Path(model).is_file():
        checkpoint = load_checkpoint(Path(model))
        run = parse_run(checkpoint.run)
        return averaged_surrogate(run, checkpoint), run.data.scheme
    catalog = open_catalog(store)
    reference = catalog.resolve(model)
    version = catalog.load(reference.name, reference.version)
    return version.surrogate, version.card.scheme


def _text(evaluation: Evaluation) -> str:
    return "\n".join(f"{name:24} {value:.6g}" for name, value in evaluation.summary.items())
