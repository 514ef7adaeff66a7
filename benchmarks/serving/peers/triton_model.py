"""Triton's python backend: one forward for all requests that Triton has put together."""

import os
from typing import Any

import torch
import triton_python_backend_utils as pb_utils

from benchmarks.serving.models import Forward, build


class TritonPythonModel:
    """What Triton's python backend looks for by this name."""

    def initialize(self, args: dict[str, str]) -> None:
        """Build the model of this name."""
        self._forward: Forward = build(args["model_name"], os.environ["BENCH_FROZEN"] == "1")

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers in the order of the requests."""
        fields = [
            torch.from_numpy(pb_utils.get_input_tensor_by_name(request, "permeability").as_numpy())
            for request in requests
        ]
        answer = self._forward(torch.cat(fields) if len(fields) > 1 else fields[0])
        parts = torch.split(answer, [len(field) for field in fields])
        return [pb_utils.InferenceResponse([pb_utils.Tensor("pressure", part.numpy())]) for part in parts]
