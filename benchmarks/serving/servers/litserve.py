"""LitServe, with the two binary-ish forms that its batched endpoints take."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import final

from benchmarks.serving import forms
from benchmarks.serving.request import Array, Reply, Request, Route
from benchmarks.serving.server import Command, Place, Server

__all__ = ["LitServe"]

BOUNDARY = "mno-bench"


@final
class LitServe(Server):
    """One worker, batches within a window of 2 ms."""

    name = "litserve"
    title = "LitServe"
    # forms need python-multipart
    requirements = ("litserve==0.2.19", "python-multipart", "numpy")
    # a worker asks its queue every millisecond: a quarter of a core
    restless = True
    batching = "max_batch_size=32, batch_timeout=0.002"

    def prepare(self, place: Place) -> Command:
        """A program in its environment."""
        return Command([place.python, "-m", "benchmarks.serving.peers.lit_server"])

    def routes(self, place: Place, model: str) -> Sequence[Route]:
        """Base64 in JSON, and a file of a form; answers are base64 in JSON."""

        def in_json(field: Array) -> Request:
            body = json.dumps({"field": forms.to_base64(field), "side": len(field)}).encode()
            return Request(f"/{model}", body, forms.JSON_TYPE)

        def in_form(field: Array) -> Request:
            head = (
                f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="field"; filename="field"\r\n'
                "Content-Type: application/octet-stream\r\n\r\n"
            )
            body = head.encode() + field.tobytes() + f"\r\n--{BOUNDARY}--\r\n".encode()
            return Request(f"/{model}", body, {"content-type": f"multipart/form-data; boundary={BOUNDARY}"})

        def decode(reply: Reply) -> Array:
            return forms.from_base64(json.loads(reply.body)["field"])

        return (
            Route(
                "litserve-base64",
                "LitServe: base64 JSON",
                "http",
                place.http_port,
                in_json,
                decode,
                json=True,
            ),
            Route("litserve-form", "LitServe: multipart", "http", place.http_port, in_form, decode),
        )
