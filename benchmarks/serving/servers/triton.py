"""NVIDIA Triton out of the wheel of nvidia-pytriton, with its python backend."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from typing import final

from benchmarks.serving import forms
from benchmarks.serving.models import MAX_BATCH
from benchmarks.serving.request import Route
from benchmarks.serving.server import Command, Place, Server, library_folder, python_version, site_packages

__all__ = ["Triton"]

CONFIGURATION = """\
backend: "python"
max_batch_size: {max_batch}
input [{{name: "permeability", data_type: TYPE_FP32, dims: [128, 128]}}]
output [{{name: "pressure", data_type: TYPE_FP32, dims: [128, 128]}}]
dynamic_batching {{}}
instance_group [{{kind: KIND_CPU, count: 1}}]
"""


@final
class Triton(Server):
    """Dynamic batching without a delay, as its documentation recommends to begin with."""

    name = "triton"
    title = "Triton, python backend"
    requirements = ("nvidia-pytriton==0.7.0", "numpy<2")
    batching = "dynamic_batching {}, max_batch_size 32"
    health = "/v2/health/live"

    def prepare(self, place: Place) -> Command:
        """A repository with one model each; the backend finds its stub beside it only."""
        wheel = site_packages(place) / "pytriton" / "tritonserver"
        backends = place.folder / "backends"
        shutil.copytree(wheel / "backends", backends)
        shutil.copy(
            wheel / "python_backend_stubs" / python_version(place) / "triton_python_backend_stub",
            backends / "python",
        )
        for model in place.models:
            folder = place.folder / "models" / model / "1"
            folder.mkdir(parents=True)
            shutil.copy(
                place.folder / "imports/benchmarks/serving/peers/triton_model.py", folder / "model.py"
            )
            (folder.parent / "config.pbtxt").write_text(CONFIGURATION.format(max_batch=MAX_BATCH))
        options = {
            "model-repository": place.folder / "models",
            "backend-directory": backends,
            "http-address": "127.0.0.1",
            "http-port": place.http_port,
            "grpc-address": "127.0.0.1",
            "grpc-port": place.grpc_port,
            "allow-metrics": "false",
        }
        arguments = [
            str(wheel / "bin" / "tritonserver"),
            *(f"--{name}={value}" for name, value in options.items()),
        ]
        # the stub's own search path for libraries holds only where the wheel has put it
        libraries = f"{library_folder(place)}:{site_packages(place) / 'nvidia_pytriton.libs'}"
        # and it imports from the working directory, not from PYTHONPATH
        return Command(arguments, {"LD_LIBRARY_PATH": libraries}, place.imports)

    def routes(self, place: Place, model: str) -> Sequence[Route]:
        """Open Inference Protocol: binary over HTTP, raw contents over gRPC, JSON."""
        http, grpc = place.http_port, place.grpc_port
        return (
            Route(
                "triton-http",
                "Triton: OIP binary HTTP",
                "http",
                http,
                partial(forms.oip_http, model),
                forms.from_oip_http,
            ),
            Route(
                "triton-grpc",
                "Triton: OIP gRPC",
                "grpc",
                grpc,
                partial(forms.oip_grpc, model),
                forms.from_oip_grpc,
            ),
            Route(
                "triton-json",
                "Triton: OIP JSON",
                "http",
                http,
                partial(forms.oip_json, model),
                forms.from_oip_json,
                json=True,
            ),
        )
