"""Tesseract, which has no batching."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, final

from benchmarks.serving import forms
from benchmarks.serving.request import Array, Reply, Request, Route
from benchmarks.serving.server import Command, Place, Server

__all__ = ["Tesseract"]


@final
class Tesseract(Server):
    """One worker; a server has one model."""

    name = "tesseract"
    title = "Tesseract"
    requirements = ("tesseract-core[runtime]==1.15.0", "numpy")
    batching = "none"

    def prepare(self, place: Place) -> Command:
        """Its runtime, without a container."""
        api = place.imports / "benchmarks" / "serving" / "peers" / "tesseract_api.py"
        options = ["serve", "--host", "127.0.0.1", "--port", str(place.http_port)]
        output = {"TESSERACT_API_PATH": str(api), "TESSERACT_OUTPUT_PATH": str(place.folder)}
        return Command([str(place.environment / "bin" / "tesseract-runtime"), *options], output)

    def routes(self, place: Place, model: str) -> Sequence[Route]:  # noqa: ARG002
        """Base64 in JSON."""

        def encode(field: Array) -> Request:
            data = {"buffer": forms.to_base64(field), "encoding": "base64"}
            array: dict[str, Any] = {
                "object_type": "array",
                "shape": field.shape,
                "dtype": "float32",
                "data": data,
            }
            body = json.dumps({"inputs": {"permeability": array}}).encode()
            return Request("/apply", body, {**forms.JSON_TYPE, "accept": "application/json+base64"})

        def decode(reply: Reply) -> Array:
            return forms.from_base64(json.loads(reply.body)["pressure"]["data"]["buffer"])

        return (
            Route(
                "tesseract-base64",
                "Tesseract: base64 JSON",
                "http",
                place.http_port,
                encode,
                decode,
                json=True,
            ),
        )
