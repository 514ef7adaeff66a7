"""LitServe: one forward for all requests of its window."""

import base64
import os
from typing import Any

import litserve
import numpy as np
import torch
from fastapi import Request
from torch import Tensor

from benchmarks.serving.models import MAX_BATCH, build


class Api(litserve.LitAPI):
    """Its four verbs."""

    def setup(self, device: str) -> None:  # noqa: ARG002
        """Build the model in the worker."""
        self._forward = build(self.api_path.strip("/"), os.environ["BENCH_FROZEN"] == "1")

    def decode_request(self, request: Request) -> Tensor:
        """Base64 in JSON, or a file of a form."""
        field: Any = request["field"]
        data = base64.b64decode(field) if isinstance(field, str) else field.file.read()
        values = np.frombuffer(data, np.float32)
        side = round(values.size**0.5)
        return torch.from_numpy(values.reshape(side, side).copy())

    def batch(self, inputs: list[Tensor]) -> Tensor:
        """All fields as one batch."""
        return torch.stack(inputs)

    def predict(self, x: Tensor) -> Tensor:
        """One forward."""
        return self._forward(x)

    def unbatch(self, output: Tensor) -> list[Tensor]:
        """The fields one by one."""
        return list(output)

    # LitServe reads the annotation: without one FastAPI does not validate the answer
    def encode_response(self, output: Tensor):  # type: ignore[no-untyped-def]
        """Base64 in JSON."""
        return {"field": base64.b64encode(output.contiguous().numpy().tobytes()).decode()}


if __name__ == "__main__":
    apis = [
        Api(max_batch_size=MAX_BATCH, batch_timeout=0.002, api_path=f"/{model}")
        for model in os.environ["BENCH_MODELS"].split(",")
    ]
    server = litserve.LitServer(apis, accelerator="cpu", workers_per_device=1, timeout=60)
    server.run(
        host="127.0.0.1",
        port=int(os.environ["BENCH_HTTP_PORT"]),
        generate_client_file=False,
        log_level="warning",
    )
