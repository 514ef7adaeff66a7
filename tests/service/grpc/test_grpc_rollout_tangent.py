"""Tangents through rollouts over gRPC, by messages of its own library."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from service.pb import solver_pb2 as pb

JVP = "/mno.v1.Solver/JacobianVectorProduct"
NAMES = ("h", "hu", "hv")
REST = np.ones((16, 24))


def tensor(array: NDArray[Any]) -> pb.Tensor:
    return pb.Tensor(dtype=array.dtype.name, shape=array.shape, data=np.ascontiguousarray(array).tobytes())


def array(message: pb.Tensor) -> NDArray[Any]:
    return np.frombuffer(message.data, message.dtype).reshape(tuple(message.shape))


def ask(channel: grpc.Channel, wanted: pb.JvpRequest) -> pb.JvpResponse:
    method = channel.unary_unary(JVP, lambda m: m.SerializeToString(), pb.JvpResponse.FromString)
    answer: pb.JvpResponse = method(wanted, timeout=60)
    return answer


def test_a_tangent_drifts_with_the_state(water_channel: grpc.Channel, water: NDArray[np.float32]) -> None:
    moved = np.random.default_rng(2).normal(size=(2, 16, 24)).astype(np.float32)
    state = {name: tensor(field) for name, field in zip(NAMES, water, strict=True)}
    wanted = pb.JvpRequest(
        request=pb.SolveRequest(problem="shallow_water", fields=state, id="mine", dtype="float64"),
        tangents={"hv": tensor(moved)},
        steps=9,
        every=4,
        start_step=3,
        walls="outflow",
    )
    got = ask(water_channel, wanted)
    assert sorted(got.tangents) == ["h", "hu", "hv"]
    assert list(got.steps) == [4, 8]
    tangent = array(got.tangents["hv"])
    assert tangent.dtype == np.float64
    assert np.array_equal(tangent, np.stack([np.roll(moved, step, axis=-1) for step in (1, 5)], axis=1))
    assert not array(got.tangents["h"]).any()
    known = got.solution
    assert (known.id, known.model, known.method) == ("mine", "shallow_water@1", pb.METHOD_SURROGATE)
    assert (list(got.errors), list(known.certified)) == ([], [False])
    assert (known.operator, list(known.in_distribution)) == ("hllc-muscl-v1", [True])


def wanted(tangent: NDArray[Any] = REST, steps: int = 5, **options: Any) -> pb.JvpRequest:
    fields = options.pop("fields", {"h": REST})
    rest = {name: options.pop(name) for name in ("start_step", "every", "walls", "wrt") if name in options}
    asked = pb.SolveRequest(
        problem="shallow_water", fields={n: tensor(f) for n, f in fields.items()}, **options
    )
    return pb.JvpRequest(request=asked, tangents={"h": tensor(tangent)}, steps=steps, **rest)


def test_of_one_step_and_of_a_logarithm(water_channel: grpc.Channel) -> None:
    got = ask(water_channel, wanted(2 * REST, fields={"h": 3 * REST}, wrt="log_h"))
    assert list(got.steps) == [5]
    assert np.allclose(array(got.tangents["h"]), 6 * REST)


BAD: list[tuple[dict[str, Any], grpc.StatusCode, str]] = [
    ({"steps": 0}, grpc.StatusCode.INVALID_ARGUMENT, "steps: expected 1 to"),
    ({"steps": 101}, grpc.StatusCode.INVALID_ARGUMENT, "at most 100, got 101"),
    ({"every": 7}, grpc.StatusCode.INVALID_ARGUMENT, "no multiple of 7"),
    ({"start_step": 2**31}, grpc.StatusCode.INVALID_ARGUMENT, "steps: expected 1 to"),
    ({"fields": {"h": REST[None]}}, grpc.StatusCode.INVALID_ARGUMENT, "starts from one state"),
    ({"fields": {}}, grpc.StatusCode.INVALID_ARGUMENT, "expected an array by name"),
    ({"tangent": REST[:1]}, grpc.StatusCode.INVALID_ARGUMENT, "expected shape"),
    ({"parameters": {"source": 1.0}}, grpc.StatusCode.INVALID_ARGUMENT, "no problem that evolves has"),
    ({"walls": "periodic"}, grpc.StatusCode.INVALID_ARGUMENT, "knows walls 'outflow' only"),
    ({"wrt": "log_hu"}, grpc.StatusCode.INVALID_ARGUMENT, "wrt: expected"),
    ({"error": pb.ERROR_REQUEST_BOUND}, grpc.StatusCode.INVALID_ARGUMENT, "error"),
    ({"method": pb.METHOD_ADJOINT}, grpc.StatusCode.UNIMPLEMENTED, "no adjoint of the reference solver"),
    ({"tolerance": pb.Tolerance(relative_energy=1e-3)}, grpc.StatusCode.FAILED_PRECONDITION, "leave it out"),
]


@pytest.mark.parametrize(("changes", "code", "why"), BAD)
def test_what_is_refused(
    water_channel: grpc.Channel, changes: dict[str, Any], code: grpc.StatusCode, why: str
) -> None:
    with pytest.raises(grpc.RpcError, match=why) as refused:
        ask(water_channel, wanted(**changes))
    assert refused.value.code() is code


@pytest.mark.parametrize(("name", "value"), [("steps", 3), ("every", 2), ("wrt", "permeability")])
def test_what_has_no_steps_cannot_be_asked_for_them(
    channel: grpc.Channel, permeability: NDArray[np.float32], name: str, value: Any
) -> None:
    field = tensor(permeability[0])
    asked = pb.SolveRequest(problem="darcy", fields={"permeability": field})
    message = pb.JvpRequest(request=asked, tangents={"permeability": field}, **{name: value})
    with pytest.raises(grpc.RpcError, match=name) as refused:
        ask(channel, message)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
