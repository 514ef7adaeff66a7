"""Whatever is sent gets a status, and the next client is answered."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.pb import inference_pb2, solver_pb2

SOLVER, INFERENCE = "/mno.v1.Solver/", "/inference.GRPCInferenceService/"
PATHS = [
    *(SOLVER + name for name in ("Solve", "Rollout", "VectorJacobianProduct", "SolveStream")),
    *(
        INFERENCE + name
        for name in (
            "ModelInfer",
            "ModelStreamInfer",
            "ModelMetadata",
            "ModelConfig",
            "ModelStatistics",
            "RepositoryIndex",
        )
    ),
    "/grpc.health.v1.Health/Check",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
]
# what a fault of the client may end as; never UNKNOWN or INTERNAL, which would be the server's
FINE = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
BOUNDED = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def field() -> bytes:
    return np.ones((32, 32), np.float32).tobytes()


def solve_message() -> bytes:
    message = solver_pb2.SolveRequest(problem="darcy", id="1", model="darcy@1")
    message.fields["permeability"].CopyFrom(solver_pb2.Tensor(dtype="float32", shape=[32, 32], data=field()))
    message.parameters["source"] = 2.0
    return message.SerializeToString()


def infer_message() -> bytes:
    message = inference_pb2.ModelInferRequest(model_name="darcy", id="1", raw_input_contents=[field()])
    message.inputs.add(name="permeability", datatype="FP32", shape=[32, 32])
    message.parameters["timeout"].int64_param = 10**9
    return message.SerializeToString()


def code_of(channel: grpc.Channel, path: str, body: bytes, **options: Any) -> grpc.StatusCode:
    """How a call with one message ends, whatever its kind."""
    try:
        for _ in channel.stream_stream(path)(iter([body]), timeout=30, **options):
            pass
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


def is_well(channel: grpc.Channel) -> bool:
    answer = channel.unary_unary(SOLVER + "Solve")(solve_message(), timeout=60)
    found = solver_pb2.SolveResponse.FromString(answer)
    return len(found.fields["pressure"].data) == len(field())


@pytest.fixture(autouse=True)
def survives(grpc_address: str) -> Iterator[None]:
    yield
    with grpc.insecure_channel(grpc_address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        assert is_well(channel)


@BOUNDED
@given(path=st.sampled_from(PATHS), body=st.binary(max_size=300))
def test_any_bytes(channel: grpc.Channel, path: str, body: bytes) -> None:
    assert code_of(channel, path, body) in FINE


@BOUNDED
@given(
    whole=st.sampled_from([(SOLVER + "Solve", solve_message()), (INFERENCE + "ModelInfer", infer_message())]),
    changes=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=8),
    end=st.integers(0, 5000),
)
def test_messages_with_wrong_bytes(
    channel: grpc.Channel, whole: tuple[str, bytes], changes: list[tuple[int, int]], end: int
) -> None:
    path, message = whole
    data = bytearray(message)
    for position, value in changes:
        # most bytes are elements, which may have any value: aim at what stands around them
        data[position % len(data) if position > 200 else -(position + 1) % len(data)] = value
    assert code_of(channel, path, bytes(data)) in FINE
    assert code_of(channel, path, bytes(data[: end % len(data)])) in FINE


@BOUNDED
@given(
    dtype=st.sampled_from(["float32", "float64", "float16", "", "object", "<f4", "float32" * 99]),
    shape=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 40), max_size=6),
    size=st.integers(0, 5000),
)
def test_tensors_that_say_something_else_than_they_have(
    channel: grpc.Channel, dtype: str, shape: list[int], size: int
) -> None:
    message = solver_pb2.SolveRequest(problem="darcy")
    message.fields["permeability"].CopyFrom(
        solver_pb2.Tensor(dtype=dtype, shape=shape, data=np.ones(size, np.uint8).tobytes())
    )
    fits = dtype in ("float32", "float64") and shape == [32, 32] and size == 1024 * int(dtype[-2:]) // 8
    if not fits:
        assert code_of(channel, SOLVER + "Solve", message.SerializeToString()) in FINE - {grpc.StatusCode.OK}
    inferred = inference_pb2.ModelInferRequest(model_name="darcy", raw_input_contents=[bytes(size)])
    inferred.inputs.add(name="permeability", datatype="FP32", shape=shape)
    assert code_of(channel, INFERENCE + "ModelInfer", inferred.SerializeToString()) in FINE


@BOUNDED
@given(
    name=st.sampled_from(["error", "method", "priority", "timeout", "source", "reproducible", "steps", "x"]),
    kind=st.sampled_from(["bool_param", "int64_param", "string_param", "double_param", "uint64_param"]),
    value=st.one_of(
        st.booleans(), st.integers(-(2**63), 2**64 - 1), st.text(max_size=20), st.floats(width=64)
    ),
)
def test_any_parameter(channel: grpc.Channel, name: str, kind: str, value: Any) -> None:
    message = inference_pb2.ModelInferRequest.FromString(infer_message())
    try:
        setattr(message.parameters[name], kind, value)
    except (TypeError, ValueError):
        return
    # a timeout of a microsecond is one, too
    fine = FINE | {grpc.StatusCode.DEADLINE_EXCEEDED}
    assert code_of(channel, INFERENCE + "ModelInfer", message.SerializeToString()) in fine


@pytest.mark.parametrize("size", [100, 20_000, 10**6])
def test_large_metadata_is_refused(grpc_address: str, size: int) -> None:
    # a channel of its own: the library closes a connection that sends too much of it
    with grpc.insecure_channel(grpc_address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        found = code_of(channel, SOLVER + "Solve", solve_message(), metadata=[("x-more", "x" * size)])
    assert (found is grpc.StatusCode.OK) == (size == 100)


@pytest.mark.parametrize("timeout", [-1.0, 0.0, 1e-9])
def test_a_deadline_that_has_passed(channel: grpc.Channel, timeout: float) -> None:
    with pytest.raises(grpc.RpcError) as late:
        channel.unary_unary(SOLVER + "Solve")(solve_message(), timeout=timeout)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = bytes(3) + b"\x04" + bytes(5)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


RAW = {
    "http1": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "nothing": b"",
    "half-a-preface": PREFACE[:10],
    "zeros": bytes(4096),
    "ones": b"\xff" * 4096,
    "a-frame-of-16-MiB": PREFACE + SETTINGS + b"\xff\xff\xff" + bytes(6),
    "headers-without-end": PREFACE + SETTINGS + frame(1, 0, 1, b"\x82"),
    "no-header-block": PREFACE + SETTINGS + frame(1, 5, 1, b"\xff" * 64),
    "data-of-no-stream": PREFACE + SETTINGS + frame(0, 1, 7, b"x" * 99),
    "even-stream": PREFACE + SETTINGS + frame(1, 5, 2, b"\x82"),
    "resets": PREFACE + SETTINGS + b"".join(frame(3, 0, n, bytes(4)) for n in range(1, 999, 2)),
    "pings": PREFACE + SETTINGS + frame(6, 0, 0, bytes(8)) * 5000,
    "settings": PREFACE + SETTINGS * 5000,
    "continuations": PREFACE + SETTINGS + frame(1, 0, 1, b"\x82") + frame(9, 0, 1, b"\x00") * 5000,
    "window-overflow": PREFACE + SETTINGS + frame(8, 0, 0, b"\x7f\xff\xff\xff") * 2,
}


def send(address: str, data: bytes) -> None:
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
        except OSError:
            # the server may close before it has read all
            pass


@pytest.mark.parametrize("name", RAW)
def test_raw_bytes(grpc_address: str, name: str) -> None:
    send(grpc_address, RAW[name])


@settings(max_examples=30, derandomize=True, deadline=None)
@given(data=st.binary(max_size=200), greeted=st.booleans())
def test_random_raw_bytes(grpc_address: str, data: bytes, greeted: bool) -> None:
    send(grpc_address, (PREFACE + SETTINGS if greeted else b"") + data)
