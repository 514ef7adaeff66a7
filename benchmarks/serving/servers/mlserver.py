"""Seldon's MLServer, which speaks the Open Inference Protocol; binary tensors over gRPC only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import final

from benchmarks.serving import forms
from benchmarks.serving.models import MAX_BATCH
from benchmarks.serving.request import Route
from benchmarks.serving.server import Command, Place, Server, free_port

__all__ = ["MLServer"]


@final
class MLServer(Server):
    """The model in its own process, which measured better than its worker pool."""

    name = "mlserver"
    title = "MLServer, 0 workers"
    # it does not start with a newer uvloop
    requirements = ("mlserver==1.7.1", "uvloop==0.21.0", "numpy")
    batching = "max_batch_size 32, max_batch_time 0.002"
    health = "/v2/health/live"

    def prepare(self, place: Place) -> Command:
        """Its settings, and those of each model."""
        settings = {
            "host": "127.0.0.1",
            "http_port": place.http_port,
            "grpc_port": place.grpc_port,
            "metrics_port": free_port(),
            "parallel_workers": 0,
            "debug": False,
        }
        folder = place.folder / "models"
        folder.mkdir()
        (folder / "settings.json").write_text(json.dumps(settings))
        for model in place.models:
            (folder / model).mkdir()
            configuration = {
                "name": model,
                "implementation": "benchmarks.serving.peers.mlserver_runtime.Runtime",
                "max_batch_size": MAX_BATCH,
                "max_batch_time": 0.002,
            }
            (folder / model / "model-settings.json").write_text(json.dumps(configuration))
        return Command([str(place.environment / "bin" / "mlserver"), "start", str(folder)])

    def routes(self, place: Place, model: str) -> Sequence[Route]:
        """Raw contents over gRPC, and JSON."""
        http, grpc = place.http_port, place.grpc_port
        return (
            Route(
                "mlserver-grpc",
                "MLServer: OIP gRPC",
                "grpc",
                grpc,
                partial(forms.oip_grpc, model),
                forms.from_oip_grpc,
            ),
            Route(
                "mlserver-json",
                "MLServer: OIP JSON",
                "http",
                http,
                partial(forms.oip_json, model),
                forms.from_oip_json,
                json=True,
            ),
        )
