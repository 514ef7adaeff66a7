"""The commands ``mno serve``, ``solve`` and ``rollout``. They import what is heavy only when they run."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import click

from bulk.objects import parse_place
from bulk.options import Where, engine_options
from bulk.start import ONE_THREAD

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bulk.objects import Place
    from service.files.file_job import Tolerance
    from service.processes.supervisor import Addresses
    from service.processes.zygote import Launched
    from service.rollout import RolloutMethod
    from service.solver import ErrorKind, Method
    from service.versions.served import ServedVersion

__all__ = ["rollout", "serve", "solve"]

DEVICES = click.Choice(["auto", "cpu", "cuda"])

READY = """mno is ready at {http}{grpc} (models: {models}; endpoints: {http}/docs). Ask it:

  python -c "import numpy as np; np.save('permeability.npy', np.random.lognormal(size=(128, 128)))"
  curl -H 'Content-Type: application/x-npy' --data-binary @permeability.npy \\
       -H 'Accept: application/x-npy' -o pressure.npy '{http}/v1/problems/darcy/solve'
"""


@click.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=False)
@click.option("--store", help="URL of a model store; goes before the built-in models.")
@click.option("--models", help="Models to load, such as darcy,darcy@3. Default: all.")
@click.option("--device", type=DEVICES)
@click.option("--host", help="Address to listen on. Default: 127.0.0.1.")
@click.option("--http-port", type=click.IntRange(0, 65535), help="Default: 8080; 0 takes a free port.")
@click.option("--grpc-port", type=click.IntRange(0, 65535), help="Default: 8081; 0 takes a free port.")
@click.option("--processes", type=click.Choice(["workers", "none"]), help="none: everything in one process.")
@click.option("--fronts", type=click.IntRange(1, 64), help="Processes that answer. Default: 1.")
@click.option("--check-config", is_flag=True, help="Check and print the settings that would hold, and exit.")
@click.pass_context
def serve(context: click.Context, /, config: Path | None, check_config: bool, **flags: Any) -> None:
    """Answer over HTTP and gRPC, as CONFIG.toml, MNO_* variables and the options say (the later wins)."""
    from service.processes.descriptors import allow_many_files

    # before anything is started that is to inherit it
    allow_many_files()
    if check_config:
        _check(config, flags)
    elif flags["processes"] == "none":
        context.exit(_answer(config, flags, None))
    else:
        # it is what takes longest, and needs to know nothing yet
        from service.processes.zygote import launch_zygote

        zygote = launch_zygote()
        try:
            status = _answer(config, flags, zygote)
        finally:
            zygote.give_up()
        context.exit(status)


def _check(config: Path | None, flags: Mapping[str, Any]) -> None:
    from service.check import check
    from service.settings import read_settings

    settings = read_settings(config, os.environ, flags)
    check(settings)
    click.echo(settings.model_dump_json(indent=1))


def _answer(config: Path | None, flags: Mapping[str, Any], zygote: Launched | None) -> int:
    from service.settings import read_settings
    from service.telemetry.logs import set_up_logs

    settings = read_settings(config, os.environ, flags)
    set_up_logs(settings.logs, "supervisor")
    if settings.processes == "none":
        if zygote is not None:
            zygote.give_up()
        from service.serve import serve

        return serve(settings, _announce)
    from service.processes.supervisor import supervise

    return supervise(settings, _announce, zygote)


def _announce(addresses: Addresses, versions: Sequence[ServedVersion]) -> None:
    models = ", ".join(map(str, versions)) or "none, only method=solver"
    grpc = "" if addresses.grpc is None else f" and {addresses.grpc}"
    click.echo(READY.format(http=addresses.http, grpc=grpc, models=models))
    # whoever reads a pipe wants to know now
    sys.stdout.flush()


@final
class PlaceType(click.ParamType[Any]):
    """A path, or the URL of an object."""

    name = "place"

    def __init__(self, *, exists: bool) -> None:
        self._path = click.Path(exists=exists)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Place:
        """See ``click.ParamType``."""
        try:
            place = parse_place(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if isinstance(place, Path):
            self._path.convert(value, param, ctx)
        return place


@final
class ToleranceType(click.ParamType[Any]):
    """A positive number, or the word ``discretization``."""

    name = "number|discretization"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Tolerance:
        """See ``click.ParamType``."""
        if value == "discretization":
            return "discretization"
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            self.fail(f"expected a positive number or discretization, got {value!r}", param, ctx)
        return number


@final
class DefectsType(click.ParamType[Any]):
    """A number of frames, or the word ``all``."""

    name = "number|all"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """See ``click.ParamType``."""
        if value == "all":
            from service.rollout import ALL

            return ALL
        # Python reads no number of thousands of digits
        if not (isinstance(value, int) or (str(value).isdecimal() and len(str(value)) < 20)):
            self.fail(f"expected a number of frames or all, got {value!r}", param, ctx)
        return int(value)


@click.command()
@click.argument("problem")
@click.argument("input_place", metavar="INPUT", type=PlaceType(exists=True))
@click.argument("output_place", metavar="OUTPUT", type=PlaceType(exists=False))
@click.option("--model", help="name, name@alias or name@3. Default: the model named after the problem.")
@click.option("--store", help="URL of a model store; goes before the built-in models.")
@click.option("--method", type=click.Choice(["auto", "surrogate", "solver", "hybrid"]), default="auto")
@click.option(
    "--error",
    type=click.Choice(["bound", "none", "certified"]),
    default="bound",
    help="What is said about each answer's error.",
)
@click.option(
    "--tolerance",
    type=ToleranceType(),
    help="Relative energy error that each answer is certified to; the answers are float64.",
)
@click.option("--source", type=float, help="Uniform right-hand side. Default: the file's, or 1.")
@click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True)
@click.option("--chunk-size", type=click.IntRange(1), help="Fields kept, or lost, together. Default: 16 MiB.")
@click.option("--device", type=DEVICES)
@engine_options
@click.pass_obj
def solve(
    progress: Any,
    /,
    problem: str,
    input_place: Place,
    output_place: Place,
    model: str | None,
    method: Method,
    error: ErrorKind,
    tolerance: Tolerance | None,
    source: float | None,
    batch_size: int,
    chunk_size: int | None,
    where: Where,
    **flags: Any,
) -> None:
    """Solve every field of INPUT into OUTPUT; the same command continues what was interrupted.

    Both are .npy, .npz, .h5, .hdf5 or .zarr, or s3://bucket/key of one of the last three.
    """
    # before NumPy is imported: what one worker computes must not depend on the cores that it finds
    os.environ.update(ONE_THREAD)
    from service.files.file_job import FileJob
    from service.files.solve_file import solve_file
    from service.settings import read_settings

    settings = read_settings(None, os.environ, {**flags, "models": model})
    job = FileJob(
        problem, input_place, output_place, model, method, error, source, batch_size, tolerance, chunk_size
    )
    click.echo(solve_file(job, settings, progress, where))


@click.command()
@click.argument("problem")
@click.argument("input_path", metavar="INPUT", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("output_path", metavar="OUTPUT", type=click.Path(path_type=Path))
@click.option(
    "--steps",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="The last step, counted from the initial state.",
)
@click.option("--every", type=click.IntRange(1), default=1, show_default=True, help="Keep every N-th step.")
@click.option(
    "--frame",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Step that the states belong to; of trajectories (.h5), the frame to start from.",
)
@click.option("--model", help="name, name@alias or name@3. Default: the model named after the problem.")
@click.option("--store", help="URL of a model store; goes before the built-in models.")
@click.option("--method", type=click.Choice(["auto", "surrogate", "solver"]), default="auto")
@click.option("--walls", help="Boundary conditions. Default: the model's.")
@click.option(
    "--defects",
    type=DefectsType(),
    default=0,
    show_default=True,
    help="Compare so many frames, or all, with one step of the reference solver from the one before.",
)
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True)
@click.option("--device", type=DEVICES)
@click.pass_obj
def rollout(
    progress: Any,
    /,
    problem: str,
    input_path: Path,
    output_path: Path,
    steps: int,
    every: int,
    frame: int,
    model: str | None,
    method: RolloutMethod,
    walls: str | None,
    defects: int,
    batch_size: int,
    **flags: Any,
) -> None:
    """Step every state of INPUT (.npy, .npz, .h5, .hdf5) into OUTPUT; interrupted work continues."""
    from service.files.rollout_file import RolloutJob, rollout_file
    from service.settings import read_settings

    settings = read_settings(None, os.environ, {**flags, "models": model})
    job = RolloutJob(
        problem, input_path, output_path, steps, every, frame, model, method, walls, batch_size, defects
    )
    click.echo(rollout_file(job, settings, progress))
