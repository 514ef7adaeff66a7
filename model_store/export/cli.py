"""The command ``mno export``."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final, final

import click

SUFFIXES: Final = (".onnx", ".pt2")
EXTRA: Final = ("onnx", "onnxscript", "onnxruntime")


@final
class MissingExtra(click.ClickException):
    """The libraries for ONNX are not installed."""

    exit_code = 2


def _suffixed(_: click.Context, __: click.Parameter, path: Path) -> Path:
    if path.suffix not in SUFFIXES:
        raise click.BadParameter(
            f"expected OUT.onnx or OUT.pt2 (a program of torch.export), got {path.name!r}"
        )
    return path


@click.command()
@click.argument("wanted", metavar="MODEL[@VERSION|@ALIAS]")
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False), callback=_suffixed)
@click.option(
    "--store",
    "url",
    envvar="MNO_STORE",
    metavar="URL",
    help="A model store; without it the built-in models.",
)
def export(wanted: str, out: Path, url: str | None) -> None:
    """Write a version as ONNX (OUT.onnx) or as a program of torch.export (OUT.pt2), and check the file."""
    if out.suffix == ".onnx":
        require(EXTRA)
    # imported here: `mno export --help` and a missing extra have no use for PyTorch
    from model_store import open_catalog
    from model_store.export.story import write

    catalog = open_catalog(url)
    reference = catalog.resolve(wanted)
    written = write(catalog.load(reference.name, reference.version), out)
    click.echo(f"{reference} is {out}: {written}")


def require(modules: Sequence[str]) -> None:
    """See that libraries of the extra are there.

    Raises:
        MissingExtra: one is not.
    """
    for name in modules:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise MissingExtra(
                f'{error.name} is not installed; ONNX needs `pip install "mno[export]"`, OUT.pt2 does not'
            ) from error
