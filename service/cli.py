"""The commands ``mno serve``, ``solve`` and ``rollout``. They import what is heavy only when they run."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from service.errors import NotAvailableYet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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


@click.command()
@click.argument("problem")
@click.argument("input_path", metavar="INPUT", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("output_path", metavar="OUTPUT", type=click.Path(path_type=Path))
@click.option("--model", help="name, name@alias or name@3. Default: the model named after the problem.")
@click.option("--store", help="URL of a model store; goes before the built-in models.")
@click.option("--method", type=click.Choice(["auto", "surrogate", "solver", "hybrid"]), default="auto")
@click.option(
    "--error", type=click.Choice(["bound", "none"]), default="bound", help="Bound each answer's error."
)
@click.option("--source", type=float, help="Uniform right-hand side. Default: the file's, or 1.")
@click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True)
@click.option("--device", type=DEVICES)
@click.option("--tolerance", help="Not available yet.")
@click.option(
    "--engine", type=click.Choice(["local", "ray"]), default="local", help="ray: not available yet."
)
@click.pass_obj
def solve(
    progress: Any,
    /,
    problem: str,
    input_path: Path,
    output_path: Path,
    model: str | None,
    method: Method,
    error: ErrorKind,
    source: float | None,
    batch_size: int,
    tolerance: str | None,
    engine: str,
    **flags: Any,
) -> None:
    """Solve every field of INPUT (.npy, .npz, .h5, .hdf5) into OUTPUT; interrupted work continues."""
    if tolerance is not None:
        raise NotAvailableYet("--tolerance is not available yet; leave it out, or use --method solver")
    if engine != "local":
        raise NotAvailableYet(f"--engine {engine} is not available yet; use --engine local")
    from service.files.solve_file import FileJob, solve_file
    from service.settings import read_settings

    settings = read_settings(None, os.environ, {**flags, "models": model})
    job = FileJob(problem, input_path, output_path, model, method, error, source, batch_size)
    summary = solve_file(job, settings, progress)
    click.echo(summary)


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
    batch_size: int,
    **flags: Any,
) -> None:
    """Step every state of INPUT (.npy, .npz, .h5, .hdf5) into OUTPUT; interrupted work continues."""
    from service.files.rollout_file import RolloutJob, rollout_file
    from service.settings import read_settings

    settings = read_settings(None, os.environ, {**flags, "models": model})
    job = RolloutJob(problem, input_path, output_path, steps, every, frame, model, method, walls, batch_size)
    click.echo(rollout_file(job, settings, progress))
