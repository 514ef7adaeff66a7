"""BentoML with its adaptive batcher."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import final

from benchmarks.serving import forms
from benchmarks.serving.request import Array, Reply, Request, Route
from benchmarks.serving.server import Command, Place, Server

__all__ = ["BentoML"]


@final
class BentoML(Server):
    """One worker; a batched endpoint takes lists, so that base64 in JSON is its best form."""

    name = "bentoml"
    title = "BentoML"
    requirements = ("bentoml==1.4.39", "numpy")
    batching = "batchable, max_batch_size=32, max_latency_ms=60000"
    health = "/livez"

    def prepare(self, place: Place) -> Command:
        """Its own command on a service in its environment."""
        target = "benchmarks.serving.peers.bento_service:Fields"
        options = ["--port", str(place.http_port), "--host", "127.0.0.1", "--working-dir", str(place.imports)]
        home = {"BENTOML_HOME": str(place.folder / "home"), "BENTOML_DO_NOT_TRACK": "True"}
        return Command([place.python, "-m", "bentoml", "serve", target, *options], home)

    def routes(self, place: Place, model: str) -> Sequence[Route]:
        """Base64 in JSON."""

        def encode(field: Array) -> Request:
            return Request(
                f"/{model}", json.dumps({"fields": [forms.to_base64(field)]}).encode(), forms.JSON_TYPE
            )

        def decode(reply: Reply) -> Array:
            return forms.from_base64(json.loads(reply.body)[0])

        return (
            Route(
                "bentoml-base64", "BentoML: base64 JSON", "http", place.http_port, encode, decode, json=True
            ),
        )
