"""The commands ``generate`` and ``data``: reference data made, looked at and checked."""

from pathlib import Path

import click

from bulk.options import Where, engine_options
from training.check import check_files
from training.info import describe
from training.progress import Progress

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


class UnsoundData(RuntimeError):
    """Some files are not what they should be."""


@click.command()
@click.argument("run_file", type=_FILE, metavar="RUN.toml")
@engine_options
@click.pass_obj
def generate(progress: Progress, run_file: Path, where: Where) -> None:
    """Generate the reference data of RUN.toml; continues an interrupted generation."""
    # imported here: the other commands have no use for operators, nor for what they bring along
    from bulk.ray_engine import Share
    from training import run as story
    from training.config import parse_run
    from training.splits import worker_count

    run = parse_run(run_file.read_text())
    engine = where.engine([{}] * worker_count(run), Share(device="cpu"))
    story.make_data(run, progress, engine)


@click.group()
def data() -> None:
    """Look at and check data files."""


@data.command()
@click.argument("files", type=_FILE, nargs=-1, required=True, metavar="FILE...")
@click.pass_obj
def check(progress: Progress, files: tuple[Path, ...]) -> None:
    """Check data files: structure, values, balances, recipe, duplicates, and inputs that files share."""
    reports = check_files(files, progress)
    click.echo("\n".join(map(str, reports)))
    unsound = [str(report.path) for report in reports if not report.is_sound]
    if unsound:
        raise UnsoundData(f"{len(unsound)} of {len(reports)} files are unsound: {', '.join(unsound)}")


@data.command()
@click.argument("file", type=_FILE)
def info(file: Path) -> None:
    """Show what a data file holds."""
    for name, value in describe(file).items():
        click.echo(f"{name:14} {value}")
