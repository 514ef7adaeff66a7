"""``mno bench export``: an exported file in its runtime against the surrogate that it was made of.

One thread each; PyTorch, ONNX Runtime and the program of ``torch.export`` take turns on the same input, so
that other load on the machine meets all alike. The weights are random: they do not change the time.
"""

import platform
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

import click
import torch
from torch import Tensor

from benchmarks.forward import milliseconds
from model_store import Card, FieldRecord, LoadedVersion, open_store
from model_store.export.cli import EXTRA, require
from operators import surrogate_from_config
from operators.presets import PRESETS, Task, preset

INPUTS = (FieldRecord(name="permeability", unit="m^2/(Pa s)"), FieldRecord(name="source", unit="1/s"))
OUTPUTS = (FieldRecord(name="pressure", unit="Pa"),)


def published(name: str, cells: int) -> LoadedVersion:
    """A preset for a steady problem at its full size, as a version."""
    config = preset(name, Task(spacing=1 / cells))
    torch.manual_seed(0)
    card = Card(
        problem="darcy",
        scheme="tpfa-harmonic-v1",
        operator=config,
        grids=((cells, cells),),
        inputs=INPUTS,
        outputs=OUTPUTS,
        dataset={"sha256": "0" * 64},
        run="",
        metrics={},
        code_version="",
        created=datetime.now(UTC),
    )
    store = open_store("memory:")
    return store.load(name, store.publish(name, surrogate_from_config(config).state_dict(), card))


def interleaved(works: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median wall time of each [ms]; the first round is for warming up."""
    rounds = [[milliseconds(work) for work in works] for _ in range(1 + repeats)]
    return [median(times) for times in zip(*rounds[1:], strict=True)]


def row(name: str, cells: int, batch: int, repeats: int) -> str:
    """One line of the table."""
    # they need the extra
    from model_store.export import onnx_model, program
    from model_store.export.signature import samples
    from model_store.export.story import write

    preset_version = published(name, cells)
    inputs = samples(preset_version, batch, (cells, cells), seed=0)
    with tempfile.TemporaryDirectory() as folder:
        model, graph = (Path(folder, f"{name}.{suffix}") for suffix in ("onnx", "pt2"))
        for path in (model, graph):
            write(preset_version, path)
        files = (
            program.callable_of(preset_version).eval(),
            onnx_model.load(model, threads=1),
            program.load(graph)[0],
        )

    def called(file: Callable[..., Tensor]) -> Callable[[], Tensor]:
        def call() -> Tensor:
            with torch.inference_mode():
                return file(*inputs)

        return call

    eager, onnx, traced = interleaved([called(file) for file in files], repeats)
    return f"{name:<18} {eager:>9.1f} {onnx:>9.1f} {onnx / eager:>6.2f} {traced:>9.1f} {traced / eager:>6.2f}"


@click.command("export")
@click.option("--presets", default="fno,unet,mamba_gnot", show_default=True, help="Separated by commas.")
@click.option("--cells", default=64, show_default=True, help="Cells along each side of the grid.")
@click.option("--batch", default=1, show_default=True, help="Samples of a call.")
@click.option("--repeats", default=20, show_default=True, help="Calls of each, interleaved.")
def bench_export(presets: str, cells: int, batch: int, repeats: int) -> None:
    """Time exported files against their surrogate in PyTorch."""
    names = presets.split(",")
    unknown = [name for name in names if name not in PRESETS]
    if unknown:
        raise click.BadParameter(f"expected some of {', '.join(PRESETS)}, got {unknown[0]!r}")
    require(EXTRA)
    torch.set_num_threads(1)
    click.echo(
        f"{batch} x {cells} x {cells}, float32, one thread; torch {torch.__version__.split('+')[0]}, "
        f"onnxruntime {version('onnxruntime')}, {platform.machine()}"
    )
    click.echo("median wall milliseconds of a call, and their ratio to PyTorch's")
    click.echo(f"{'preset':<18} {'PyTorch':>9} {'ONNX':>16} {'torch.export':>16}")
    for name in names:
        click.echo(row(name, cells, batch, repeats))
