"""Fields as bytes, in the forms that the servers take."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np

from benchmarks.serving.request import Array, Reply, Request
from service.pb import inference_pb2, solver_pb2

__all__ = [
    "from_base64",
    "from_npy",
    "from_oip_grpc",
    "from_oip_http",
    "from_oip_json",
    "from_raw",
    "from_solve_grpc",
    "from_solve_json",
    "oip_grpc",
    "oip_http",
    "oip_json",
    "solve_grpc",
    "solve_json",
    "solve_npy",
    "to_base64",
]

INPUT, OUTPUT = "permeability", "pressure"
NPY = "application/x-npy"
JSON_TYPE = {"content-type": "application/json"}
INFER = "/inference.GRPCInferenceService/ModelInfer"
HEADER_LENGTH = "inference-header-content-length"


def to_base64(field: Array) -> str:
    """The bytes of a field as text."""
    return base64.b64encode(field.tobytes()).decode()


def from_base64(text: str) -> Array:
    """A square field."""
    return _square(base64.b64decode(text))


def from_raw(reply: Reply) -> Array:
    """A square field whose bytes are the whole body."""
    return _square(reply.body)


def _square(data: bytes | memoryview) -> Array:
    values = np.frombuffer(data, np.float32)
    side = round(values.size**0.5)
    return values.reshape(side, side)


def solve_npy(model: str, field: Array, options: str = "") -> Request:
    """Our ``.npy`` route."""
    file = io.BytesIO()
    np.save(file, field)
    path = f"/v1/problems/darcy/solve?model={model}&method=surrogate&error=none{options}"
    return Request(path, file.getvalue(), {"content-type": NPY, "accept": NPY})


def from_npy(reply: Reply) -> Array:
    """The field of a ``.npy`` body."""
    field: Array = np.load(io.BytesIO(reply.body), allow_pickle=False)
    return field


def solve_json(model: str, field: Array) -> Request:
    """Our JSON route: nested lists."""
    options = {"model": model, "method": "surrogate", "error": "none"}
    return Request("/v1/problems/darcy/solve", _nested({INPUT: field.tolist(), **options}), {**JSON_TYPE})


def from_solve_json(reply: Reply) -> Array:
    """The field of our JSON answer."""
    return np.asarray(json.loads(reply.body)[OUTPUT], np.float32)


def solve_grpc(model: str, field: Array) -> Request:
    """Our own ``Solve``."""
    message = solver_pb2.SolveRequest(
        problem="darcy",
        model=model,
        method=solver_pb2.METHOD_SURROGATE,
        error=solver_pb2.ERROR_REQUEST_NONE,
        fields={INPUT: solver_pb2.Tensor(dtype="float32", shape=field.shape, data=field.tobytes())},
    )
    return Request("/mno.v1.Solver/Solve", message.SerializeToString())


def from_solve_grpc(reply: Reply) -> Array:
    """The field of a ``SolveResponse``."""
    tensor = solver_pb2.SolveResponse.FromString(reply.body).fields[OUTPUT]
    return np.frombuffer(tensor.data, np.float32).reshape(tensor.shape)


def oip_http(model: str, field: Array) -> Request:
    """Open Inference Protocol with binary tensors."""
    raw = field.tobytes()
    head = _nested(
        {
            "inputs": [_tensor(field) | {"parameters": {"binary_data_size": len(raw)}}],
            "outputs": [{"name": OUTPUT, "parameters": {"binary_data": True}}],
        }
    )
    headers = {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return Request(f"/v2/models/{model}/infer", head + raw, headers)


def from_oip_http(reply: Reply) -> Array:
    """The field of an answer with binary tensors."""
    length = int(reply.headers[HEADER_LENGTH])
    shape = json.loads(reply.body[:length])["outputs"][0]["shape"]
    return _first(np.frombuffer(reply.body[length:], np.float32).reshape(shape))


def oip_json(model: str, field: Array) -> Request:
    """Open Inference Protocol without its binary extension."""
    data = {"inputs": [_tensor(field) | {"data": field.ravel().tolist()}]}
    return Request(f"/v2/models/{model}/infer", _nested(data), {**JSON_TYPE})


def from_oip_json(reply: Reply) -> Array:
    """The field of a JSON answer."""
    output = json.loads(reply.body)["outputs"][0]
    return _first(np.asarray(output["data"], np.float32).reshape(output["shape"]))


def oip_grpc(model: str, field: Array) -> Request:
    """Open Inference Protocol over gRPC with raw contents."""
    tensor = inference_pb2.ModelInferRequest.InferInputTensor(
        name=INPUT, datatype="FP32", shape=(1, *field.shape)
    )
    message = inference_pb2.ModelInferRequest(
        model_name=model,
        inputs=[tensor],
        # as over HTTP: whoever asks for nothing gets all outputs, bounds of the error among them
        outputs=[inference_pb2.ModelInferRequest.InferRequestedOutputTensor(name=OUTPUT)],
        raw_input_contents=[field.tobytes()],
    )
    return Request(INFER, message.SerializeToString())


def from_oip_grpc(reply: Reply) -> Array:
    """The field of a ``ModelInferResponse`` with raw contents."""
    message = inference_pb2.ModelInferResponse.FromString(reply.body)
    values = np.frombuffer(message.raw_output_contents[0], np.float32)
    return _first(values.reshape(message.outputs[0].shape))


def _tensor(field: Array) -> dict[str, Any]:
    return {"name": INPUT, "shape": [1, *field.shape], "datatype": "FP32"}


def _nested(data: Any) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode()


def _first(batch: Array) -> Array:
    field: Array = batch[0]
    return field
