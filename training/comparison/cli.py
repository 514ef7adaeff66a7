"""The command ``compare``."""

from pathlib import Path

import click

from training.comparison import story
from training.comparison.config import parse_comparison
from training.progress import Progress


@click.command()
@click.argument(
    "comparison_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="COMPARISON.toml",
)
@click.option(
    "--only",
    default="*",
    metavar="PATTERN",
    help="Only these rows, such as 'darcy/gnot/seed_0' or '*/seed_0'.",
)
@click.option(
    "--report",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIRECTORY",
    help="Where the report goes. Default: report/ in the comparison's directory.",
)
@click.option("--render", is_flag=True, help="Compute nothing: write the report of what is there.")
@click.pass_obj
def compare(progress: Progress, comparison_file: Path, only: str, report: Path | None, render: bool) -> None:
    """Train the operators of COMPARISON.toml alike, and write the table, its CSV and its figures.

    The same command goes on after an interruption.
    """
    comparison = parse_comparison(comparison_file.read_text())
    command = f"mno compare {comparison_file}"
    place = report or comparison.comparison.directory / "report"
    if render:
        click.echo(f"report: {story.render(comparison, place, command)}")
    else:
        story.compare(comparison, place, command, progress, only)
