"""This service: ``mno serve`` with the models of the benchmark."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import final

from benchmarks.serving import forms
from benchmarks.serving.process_tree import ProcessTree, command_line
from benchmarks.serving.request import Route
from benchmarks.serving.server import Command, Place, Server

__all__ = ["WAVES", "Ours"]

# the model of rollouts
WAVES = "waves"


@final
class Ours(Server):
    """One front and one model worker; batching as it comes."""

    name = "mno"
    title = "mno"
    batching = "max_batch 32, linger_ms 2 (the defaults)"
    health = "/healthz/live"

    def available(self, environment: Path) -> bool:  # noqa: ARG002
        """Always: it runs in this environment."""
        return True

    def prepare(self, place: Place) -> Command:
        """A configuration whose models are functions of this package."""
        lines = [
            f"http_port = {place.http_port}",
            f"grpc_port = {place.grpc_port}",
            "threads = 1",
            # these and nothing else: without the line, the built-in models are served too
            f"models = {json.dumps(list(place.models))}",
        ]
        for model in place.models:
            lines += [f"[imported.{model}]", *_imported(model, place.frozen)]
        (place.folder / "mno.toml").write_text("\n".join(lines) + "\n")
        return Command([str(Path(sys.executable).parent / "mno"), "serve", "mno.toml"], {"PYTHONPATH": ""})

    def routes(self, place: Place, model: str) -> Sequence[Route]:
        """The raw route first."""
        http, grpc = place.http_port, place.grpc_port
        return (
            Route("mno-npy", "mno: .npy", "http", http, partial(forms.solve_npy, model), forms.from_npy),
            Route(
                "mno-oip",
                "mno: OIP binary HTTP",
                "http",
                http,
                partial(forms.oip_http, model),
                forms.from_oip_http,
            ),
            Route(
                "mno-oip-grpc",
                "mno: OIP gRPC",
                "grpc",
                grpc,
                partial(forms.oip_grpc, model),
                forms.from_oip_grpc,
            ),
            Route(
                "mno-solve-grpc",
                "mno: Solve gRPC",
                "grpc",
                grpc,
                partial(forms.solve_grpc, model),
                forms.from_solve_grpc,
            ),
            Route(
                "mno-json",
                "mno: JSON",
                "http",
                http,
                partial(forms.solve_json, model),
                forms.from_solve_json,
                json=True,
            ),
        )

    def fronts(self, tree: ProcessTree) -> Sequence[int]:
        """By their command line."""
        return [pid for pid in tree.alive() if "service.processes.front" in command_line(pid)]


def _imported(model: str, frozen: bool) -> list[str]:
    if model == WAVES:
        return [
            'function = "benchmarks.serving.loader:load_waves"',
            f"arguments = {{name = {json.dumps(model)}}}",
        ]
    arguments = f"{{model = {json.dumps(model)}, frozen = {json.dumps(frozen)}}}"
    return ['function = "benchmarks.serving.loader:load"', f"arguments = {arguments}"]
