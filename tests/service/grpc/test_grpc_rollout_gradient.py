"""Gradients through rollouts over gRPC, by messages of its own library."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from service.pb import solver_pb2 as pb

VJP = "/mno.v1.Solver/VectorJacobianProduct"
REST = np.ones((16, 24))


def tensor(array: NDArray[Any]) -> pb.Tensor:
    return pb.Tensor(dtype=array.dtype.name, shape=array.shape, data=np.ascontiguousarray(array).tobytes())


def ask(channel: grpc.Channel, wanted: pb.VjpRequest) -> pb.VjpResponse:
    method = channel.unary_unary(VJP, lambda m: m.SerializeToString(), pb.VjpResponse.FromString)
    answer: pb.VjpResponse = method(wanted, timeout=60)
    return answer


def test_a_drift_is_gone_back_exactly(water_channel: grpc.Channel, water: NDArray[np.float32]) -> None:
    weights = np.random.default_rng(2).normal(size=(2, 16, 24)).astype(np.float32)
    state = {name: tensor(field) for name, field in zip(("h", "hu", "hv"), water, strict=True)}
    wanted = pb.VjpRequest(
        request=pb.SolveRequest(problem="shallow_water", fields=state, id="mine", dtype="float64"),
        cotangents={"hv": tensor(weights)},
        wrt="hv",
        steps=9,
        start_step=3,
        walls="outflow",
    )
    got = ask(water_channel, wanted)
    gradient = np.frombuffer(got.gradient.data, got.gradient.dtype).reshape(tuple(got.gradient.shape))
    assert gradient.dtype == np.float64
    assert np.array_equal(gradient, np.roll(weights, -6, axis=-1))
    known = got.solution
    assert (known.id, known.model, known.method) == ("mine", "shallow_water@1", pb.METHOD_SURROGATE)
    assert (got.wrt, list(got.errors), list(known.certified)) == ("hv", [], [False])
    assert (known.operator, list(known.in_distribution)) == ("hllc-muscl-v1", [True])


def wanted(cotangent: NDArray[Any] = REST, steps: int = 5, **options: Any) -> pb.VjpRequest:
    fields = options.pop("fields", {"h": REST})
    rest = {name: options.pop(name) for name in ("start_step", "walls", "wrt") if name in options}
    asked = pb.SolveRequest(
        problem="shallow_water", fields={n: tensor(f) for n, f in fields.items()}, **options
    )
    return pb.VjpRequest(request=asked, cotangents={"h": tensor(cotangent)}, steps=steps, **rest)


BAD: list[tuple[dict[str, Any], grpc.StatusCode, str]] = [
    ({"steps": 0}, grpc.StatusCode.INVALID_ARGUMENT, "steps: expected 1 to"),
    ({"steps": 101}, grpc.StatusCode.INVALID_ARGUMENT, "at most 100, got 101"),
    ({"start_step": 2**31}, grpc.StatusCode.INVALID_ARGUMENT, "steps: expected 1 to"),
    ({"fields": {"h": REST[None]}}, grpc.StatusCode.INVALID_ARGUMENT, "starts from one state"),
    ({"fields": {"h": REST, "a": REST}}, grpc.StatusCode.INVALID_ARGUMENT, "'a' is no field"),
    ({"fields": {}}, grpc.StatusCode.INVALID_ARGUMENT, "expected an array by name"),
    ({"cotangent": REST[:1]}, grpc.StatusCode.INVALID_ARGUMENT, "expected shape"),
    ({"parameters": {"source": 1.0}}, grpc.StatusCode.INVALID_ARGUMENT, "no problem that evolves has"),
    ({"walls": "periodic"}, grpc.StatusCode.INVALID_ARGUMENT, "knows walls 'outflow' only"),
    ({"wrt": "log_hu"}, grpc.StatusCode.INVALID_ARGUMENT, "wrt: expected"),
    ({"error": pb.ERROR_REQUEST_BOUND}, grpc.StatusCode.INVALID_ARGUMENT, "error"),
    ({"method": pb.METHOD_ADJOINT}, grpc.StatusCode.UNIMPLEMENTED, "no adjoint of the reference solver"),
    ({"method": pb.METHOD_HYBRID}, grpc.StatusCode.UNIMPLEMENTED, "ask for surrogate"),
    ({"tolerance": pb.Tolerance(relative_energy=1e-3)}, grpc.StatusCode.FAILED_PRECONDITION, "leave it out"),
    ({"tolerance": pb.Tolerance(discretization=True)}, grpc.StatusCode.INVALID_ARGUMENT, "tolerance"),
]


@pytest.mark.parametrize(("changes", "code", "why"), BAD)
def test_what_is_refused(
    water_channel: grpc.Channel, changes: dict[str, Any], code: grpc.StatusCode, why: str
) -> None:
    assert ask(water_channel, wanted()).wrt == "h"
    with pytest.raises(grpc.RpcError, match=why) as refused:
        ask(water_channel, wanted(**changes))
    assert refused.value.code() is code


def test_what_has_no_steps_cannot_be_asked_for_them(
    channel: grpc.Channel, permeability: NDArray[np.float32]
) -> None:
    asked = pb.SolveRequest(problem="darcy", fields={"permeability": tensor(permeability[0])})
    message = pb.VjpRequest(request=asked, cotangents={"pressure": tensor(permeability[0])}, steps=3)
    with pytest.raises(grpc.RpcError, match="darcy has no steps") as refused:
        ask(channel, message)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
