"""``mno bench serve``: the service beside its peers, under the same load."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from benchmarks.serving.behavior import behavior_table
from benchmarks.serving.extras import measure_extras
from benchmarks.serving.install import InstallFailed, install
from benchmarks.serving.load import preferred_loop
from benchmarks.serving.results import Results
from benchmarks.serving.rounds import Plan, measure_rounds
from benchmarks.serving.server import Server
from benchmarks.serving.servers import OURS, PEERS
from benchmarks.serving.streaming import measure_streaming
from benchmarks.serving.table import inserted, markdown
from benchmarks.serving.targets import verdicts

__all__ = ["bench_serve"]

DEFAULT_PEERS = Path("~/.cache/mno/peers")
# slow by their form; they are measured with the null model, where the form is all that counts
JSON_ROUTES = frozenset({"mno-json", "triton-json", "mlserver-json"})


def _names(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:  # noqa: ARG001
    names = tuple(filter(None, (value or ",".join(PEERS)).split(",")))
    if unknown := set(names) - PEERS.keys():
        raise click.BadParameter(f"expected some of {', '.join(PEERS)}, got {', '.join(sorted(unknown))}")
    return names


def _counts(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:  # noqa: ARG001
    try:
        return tuple(int(count) for count in value.split(",") if count)
    except ValueError:
        raise click.BadParameter(f"expected numbers separated by commas, got {value!r}") from None


@click.command("serve")
@click.option(
    "--peers",
    "folder",
    type=click.Path(path_type=Path),
    default=DEFAULT_PEERS,
    show_default=True,
    help="Folder with an environment for each peer.",
)
@click.option("--install-peers", is_flag=True, help="Make the environments of --only, and exit.")
@click.option("--only", callback=_names, help="Peers, separated by commas. Default: all that are installed.")
@click.option("--models", default="null,patch", show_default=True, help="Models, separated by commas.")
@click.option("--frozen", is_flag=True, help="The models as frozen TorchScript, for all servers alike.")
@click.option("--clients", default="1,8,32", callback=_counts, show_default=True, help="Closed-loop clients.")
@click.option("--bursts", default=5, show_default=True, help="Rounds; every route has a burst in each.")
@click.option("--seconds", default=1.3, show_default=True, help="Length of a burst.")
@click.option(
    "--cores",
    callback=_counts,
    default="",
    help="Cores, such as 0,1: the last one is the load's, the others every server's in turn.",
)
@click.option("--quick", is_flag=True, help="This service and the raw forward only, in less than a minute.")
@click.option(
    "--behavior", "--behaviour", is_flag=True, help="What the servers do when something goes wrong."
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="File for the raw results.")
@click.option(
    "--markdown",
    "markdown_path",
    type=click.Path(path_type=Path),
    help="File for the tables; in a document they go between its <!-- load --> or <!-- behavior --> marks.",
)
@click.option("--from-json", type=click.Path(exists=True, path_type=Path), help="Print the tables of a run.")
def bench_serve(
    folder: Path,
    install_peers: bool,
    only: tuple[str, ...],
    from_json: Path | None,
    json_path: Path | None,
    markdown_path: Path | None,
    behavior: bool,
    quick: bool,
    **options: Any,
) -> None:
    """Load this service and its installed peers alike, in turn, and print the table.

    Ratios within a run count; absolute numbers are those of the machine at that time.
    """
    folder = folder.expanduser()
    if install_peers:
        return _install(only, folder)
    if from_json is not None:
        results = Results.from_json(json.loads(from_json.read_text()))
    else:
        servers = (OURS, *(() if quick else _installed(only, folder)))
        with tempfile.TemporaryDirectory(prefix="mno-bench-") as work:
            results = _measure(servers, folder, Path(work), behavior, quick, **options)
        if json_path is not None:
            json_path.write_text(json.dumps(results.to_json(), indent=1) + "\n")
    report = markdown(results, [] if behavior else verdicts(results))
    if markdown_path is not None:
        before = markdown_path.read_text() if markdown_path.exists() else ""
        markdown_path.write_text(inserted(before, report, "behavior" if behavior else "load"))
    click.echo(report)
    return None


def _install(names: tuple[str, ...], folder: Path) -> None:
    for name in names:
        click.echo(f"installing {name}: {' '.join(PEERS[name].requirements)}", err=True)
        try:
            install(PEERS[name], folder / name)
        except InstallFailed as error:
            raise click.ClickException(str(error)) from error


def _installed(names: tuple[str, ...], folder: Path) -> list[Server]:
    chosen = [PEERS[name] for name in names]
    for server in chosen:
        if not server.available(folder / server.name):
            click.echo(
                f"{server.name} is not in {folder}: it is left out; "
                f"mno bench serve --install-peers --only {server.name} installs it",
                err=True,
            )
    return [server for server in chosen if server.available(folder / server.name)]


def _measure(
    servers: tuple[Server, ...],
    folder: Path,
    work: Path,
    behavior: bool,
    quick: bool,
    *,
    models: str,
    clients: tuple[int, ...],
    bursts: int,
    seconds: float,
    cores: tuple[int, ...],
    frozen: bool,
) -> Results:
    loop = preferred_loop()
    plan = Plan(
        servers,
        folder,
        work,
        loop,
        clients,
        1 if quick else bursts,
        0.5 if quick else seconds,
        warm_up=0.1 if quick else 0.3,
        frozen=frozen,
        server_cores=cores[:-1],
        load_cores=cores[-1:] if len(cores) > 1 else (),
    )
    results = Results(about=_about(plan))

    def say(text: str) -> None:
        click.echo(text, err=True)

    if behavior:
        results.extras["Behavior"] = behavior_table(plan, say)
        return results
    for model in filter(None, models.split(",")):
        skip = frozenset() if model == "null" else JSON_ROUTES
        measure_rounds(model, plan.without(skip), results, say)
    measure_streaming(plan, results, say)
    if not quick:
        measure_extras(plan, results, say)
    return results


def _about(plan: Plan) -> dict[str, str]:
    return {
        "command": _command_line(sys.argv[3:]),
        "commit": _commit(),
        "machine": f"{os.cpu_count()} cores, {_processor()}; {platform.system()}",
        "software": f"Python {platform.python_version()}, torch {version('torch').partition('+')[0]}",
        "load": f"{plan.loop.name}, closed loop, {plan.bursts} interleaved bursts of {plan.seconds:g} s, "
        "64 KiB in and 64 KiB out",
        "models": f"{'frozen TorchScript' if plan.frozen else 'eager'}, one thread, the same weights for all",
        "cores": "not pinned"
        if not plan.server_cores
        else f"servers on {plan.server_cores}, load on {plan.load_cores}",
        "servers": "; ".join(
            f"{server.title} ({', '.join(server.requirements[:1]) or version('mno')}; {server.batching})"
            for server in plan.servers
        ),
    }


def _command_line(arguments: Sequence[str]) -> str:
    """What was typed, without the files that it writes."""
    kept = list(arguments)
    for option in ("--json", "--markdown", "--peers"):
        if option in kept:
            position = kept.index(option)
            del kept[position : position + 2]
    return " ".join(["mno bench serve", *map(shlex.quote, kept)])


def _commit() -> str:
    root = Path(__file__).parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or f"mno {version('mno')}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
