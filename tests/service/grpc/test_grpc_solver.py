"""`mno.v1.Solver` with the client of gRPC's own library."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from service.pb import solver_pb2 as pb

SOLVER = "/mno.v1.Solver/"


def tensor(array: NDArray[Any]) -> pb.Tensor:
    return pb.Tensor(dtype=array.dtype.name, shape=array.shape, data=array.tobytes())


def array(message: pb.Tensor) -> NDArray[Any]:
    return np.frombuffer(message.data, message.dtype).reshape(tuple(message.shape))


def request(field: NDArray[Any], **options: Any) -> pb.SolveRequest:
    return pb.SolveRequest(problem="darcy", fields={"permeability": tensor(field)}, **options)


def call(channel: grpc.Channel, name: str, wanted: Any, kind: Any, **options: Any) -> Any:
    method = channel.unary_unary(SOLVER + name, lambda m: m.SerializeToString(), kind.FromString)
    return method(wanted, timeout=60, **options)


def solve(channel: grpc.Channel, wanted: Any, **options: Any) -> pb.SolveResponse:
    found: pb.SolveResponse = call(channel, "Solve", wanted, pb.SolveResponse, **options)
    return found


def refusal(channel: grpc.Channel, wanted: Any, **options: Any) -> tuple[grpc.RpcError, pb.Fault]:
    with pytest.raises(grpc.RpcError) as refused:
        solve(channel, wanted, **options)
    trailing = dict(refused.value.trailing_metadata())
    fault = pb.Fault.FromString(trailing["mno-fault-bin"])
    assert fault.type == trailing["mno-fault"]
    assert fault.message == refused.value.details()
    return refused.value, fault


def test_answers_repeat(channel: grpc.Channel, permeability: NDArray[np.float32]) -> None:
    got = solve(channel, request(permeability, error=pb.ERROR_REQUEST_NONE))
    again = solve(channel, request(permeability, error=pb.ERROR_REQUEST_NONE))
    assert got.fields["pressure"].data == again.fields["pressure"].data
    assert array(got.fields["pressure"]).shape == permeability.shape
    assert got.model == "darcy@1"
    assert got.method == pb.METHOD_SURROGATE
    assert not got.errors


def test_an_answer_has_what_is_known_about_it(
    channel: grpc.Channel, permeability: NDArray[np.float32]
) -> None:
    got = solve(channel, request(permeability, model="darcy@2", parameters={"source": 2.0}))
    assert (got.model, got.operator) == ("darcy@2", "tpfa-harmonic-v1")
    assert [error.kind for error in got.errors] == ["guaranteed"] * 3
    assert all(0 <= error.lower <= error.upper for error in got.errors)
    assert list(got.in_distribution) == [True] * 3
    assert list(got.certified) == [False] * 3
    assert got.timing.total_ms > 0
    assert got.batch_size >= 3
    once = solve(channel, request(permeability, model="darcy@2"))
    doubled = 2 * array(once.fields["pressure"])
    assert np.allclose(array(got.fields["pressure"]), doubled, rtol=1e-4, atol=1e-6)


def test_the_reference_solver_answers_in_float64(
    channel: grpc.Channel, permeability: NDArray[np.float32]
) -> None:
    got = solve(channel, request(permeability[0].astype(np.float64), method=pb.METHOD_SOLVER))
    assert got.fields["pressure"].dtype == "float64"
    assert list(got.fields["pressure"].shape) == [32, 32]
    assert (got.model, got.method) == ("", pb.METHOD_SOLVER)
    assert got.errors[0].upper < 1e-8
    assert got.iterations[0] > 0


def broken(**changes: Any) -> pb.SolveRequest:
    field = np.ones((32, 32), np.float32)
    made = request(field)
    for name, value in changes.items():
        if name in ("dtype", "data"):
            setattr(made.fields["permeability"], name, value)
        elif name == "shape":
            del made.fields["permeability"].shape[:]
            made.fields["permeability"].shape.extend(value)
        else:
            setattr(made, name, value)
    return made


BROKEN = {
    "no-dtype": (broken(dtype=""), "dtype", "permeability"),
    "integers": (broken(dtype="int32"), "dtype", "permeability"),
    "negative": (broken(shape=[-32, 32]), "shape", "permeability"),
    "two-negative": (broken(shape=[-32, -32]), "shape", "permeability"),
    "zero": (broken(shape=[0, 32], data=b""), "shape", "permeability"),
    "overflow": (broken(shape=[2**32, 2**32, 2**32]), "shape", "permeability"),
    "wraps-to-0": (broken(shape=[2**62, 4]), "shape", "permeability"),
    "too-few-bytes": (broken(data=bytes(4095)), "bytes", "permeability"),
    "too-many-bytes": (broken(data=bytes(4097)), "bytes", "permeability"),
    "no-axes": (broken(shape=[]), "rank", "permeability"),
    "one-axis": (broken(shape=[1024]), "rank", "permeability"),
    "many-axes": (broken(shape=[1] * 10_000), "rank", "permeability"),
    "nan": (broken(data=np.full(1024, np.nan, np.float32).tobytes()), "finite", "permeability"),
    "not-positive": (broken(data=bytes(4096)), "exclusive_minimum", "permeability"),
    "other-grid": (request(np.ones((31, 32), np.float32)), "grid", "permeability"),
    "no-fields": (pb.SolveRequest(problem="darcy"), "missing", "fields"),
    "two-fields": (
        pb.SolveRequest(
            problem="darcy",
            fields={
                "permeability": tensor(np.ones((32, 32), np.float32)),
                "x": tensor(np.ones(1, np.float32)),
            },
        ),
        "unknown",
        "x",
    ),
    "parameter": (request(np.ones((32, 32), np.float32), parameters={"sauce": 1.0}), "unknown", "sauce"),
    "output-dtype": (broken(method=0), "unknown", "dtype"),
    "method": (broken(method=77), "unknown", "method"),
    "priority": (broken(priority=9), "unknown", "priority"),
    "adjoint": (broken(method=pb.METHOD_ADJOINT), "unknown", "method"),
    "rounded": (
        request(np.ones((32, 32), np.float32), tolerance=pb.Tolerance(relative_energy=1e-6), dtype="float32"),
        "tolerance",
        "dtype",
    ),
    "tolerance": (
        request(np.ones((32, 32), np.float32), tolerance=pb.Tolerance(relative_energy=2.0)),
        "range",
        "tolerance",
    ),
}
BROKEN["output-dtype"][0].dtype = "float16"


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_named(channel: grpc.Channel, name: str) -> None:
    wanted, rule, field = BROKEN[name]
    error, fault = refusal(channel, wanted)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (fault.type, fault.field) == ("invalid-field", field)
    assert fault.rule == rule


def test_faults_have_their_status(channel: grpc.Channel) -> None:
    field = np.ones((32, 32), np.float32)
    big = np.ones((9, 32, 32), np.float32)
    expected = {
        grpc.StatusCode.NOT_FOUND: [
            (pb.SolveRequest(problem="heat", fields={"a": tensor(field)}), "unknown-problem"),
            (request(field, model="darcy@7"), "unknown-model"),
        ],
        grpc.StatusCode.INVALID_ARGUMENT: [(request(big), "payload-too-large")],
        grpc.StatusCode.FAILED_PRECONDITION: [
            (request(field, tolerance=pb.Tolerance(relative_energy=1e-300)), "not-certifiable")
        ],
    }
    for status, cases in expected.items():
        for wanted, slug in cases:
            error, fault = refusal(channel, wanted)
            assert (error.code(), fault.type) == (status, slug)


def test_the_request_id_comes_back(channel: grpc.Channel, permeability: NDArray[np.float32]) -> None:
    method = channel.unary_unary(
        SOLVER + "Solve", lambda m: m.SerializeToString(), pb.SolveResponse.FromString
    )
    wanted = request(permeability)
    for given, kept in (("abc.1", True), ("a b\x7f", False), ("x" * 200, False)):
        _, done = method.with_call(
            wanted, metadata=[("x-request-id", given)] if kept or len(given) > 20 else []
        )
        trailing = dict(done.trailing_metadata())
        assert (trailing["x-request-id"] == given) is kept


def test_messages_may_be_compressed(channel: grpc.Channel, permeability: NDArray[np.float32]) -> None:
    plain = solve(channel, request(permeability))
    for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate):
        packed = solve(channel, request(permeability), compression=compression)
        assert packed.fields["pressure"].data == plain.fields["pressure"].data


def test_a_bomb_stays_small(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError, match="larger than max") as refused:
        solve(channel, request(np.ones((3, 512, 512), np.float32)), compression=grpc.Compression.Gzip)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_bytes_that_are_no_message_are_refused(channel: grpc.Channel) -> None:
    method = channel.unary_unary(SOLVER + "Solve")
    with pytest.raises(grpc.RpcError, match="SolveRequest") as refused:
        method(b"\xff" * 99, timeout=60)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_message_beyond_the_limit_is_refused_before_it_has_come(channel: grpc.Channel) -> None:
    method = channel.unary_unary(SOLVER + "Solve")
    with pytest.raises(grpc.RpcError, match="larger than max") as refused:
        method(bytes(2**20 + 2**16 + 1), timeout=60)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_what_is_not_served_is_unimplemented(channel: grpc.Channel) -> None:
    method_of_nothing = channel.unary_unary("/mno.v1.Solver/Divine")
    with pytest.raises(grpc.RpcError, match="not found") as unknown:
        method_of_nothing(b"", timeout=60)
    assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_stream_answers_each_request_by_its_id(
    channel: grpc.Channel, permeability: NDArray[np.float32]
) -> None:
    method = channel.stream_stream(
        SOLVER + "SolveStream", lambda m: m.SerializeToString(), pb.SolveResponse.FromString
    )
    poison = request(-permeability, id="poison")

    def requests() -> Iterator[pb.SolveRequest]:
        for number in range(100):
            yield poison if number == 50 else request(permeability[number % 3], id=str(number))

    answers = {answer.id: answer for answer in method(requests(), timeout=120)}
    assert set(answers) == {"poison", *(str(n) for n in range(100) if n != 50)}
    fault = answers.pop("poison").fault
    assert (fault.type, fault.field, list(fault.index)) == ("invalid-field", "permeability", [0, 0, 0])
    alone = [array(solve(channel, request(each)).fields["pressure"]) for each in permeability]
    for name, answer in answers.items():
        assert not answer.HasField("fault")
        assert np.allclose(array(answer.fields["pressure"]), alone[int(name) % 3], rtol=1e-5, atol=1e-7)


def test_a_gradient_agrees_with_a_difference(
    channel: grpc.Channel, permeability: NDArray[np.float32]
) -> None:
    field = permeability[0].astype(np.float64)
    cotangent = np.linspace(-1, 1, field.size).reshape(field.shape)
    direction = np.cos(np.arange(field.size)).reshape(field.shape) * field

    def product(at: NDArray[np.float64]) -> float:
        got = solve(channel, request(at, error=pb.ERROR_REQUEST_NONE))
        return float((array(got.fields["pressure"]) * cotangent).sum())

    wanted = pb.VjpRequest(
        request=request(field, method=pb.METHOD_SURROGATE),
        cotangents={"pressure": tensor(cotangent)},
        wrt="permeability",
    )
    got = call(channel, "VectorJacobianProduct", wanted, pb.VjpResponse)
    gradient = array(got.gradient)
    assert gradient.shape == field.shape
    assert gradient.dtype == np.float64
    assert (got.solution.model, got.solution.method) == ("darcy@1", pb.METHOD_SURROGATE)
    assert (list(got.solution.certified), list(got.errors)) == ([False], [])
    step = 1e-2
    difference = (product(field + step * direction) - product(field - step * direction)) / (2 * step)
    assert (gradient * direction).sum() == pytest.approx(difference, rel=2e-2)


def test_a_gradient_says_for_which_request_it_is(
    channel: grpc.Channel, permeability: NDArray[np.float32]
) -> None:
    wanted = pb.VjpRequest(
        request=request(permeability, id="mine", error=pb.ERROR_REQUEST_NONE),
        cotangents={"pressure": tensor(np.ones_like(permeability))},
    )
    assert call(channel, "VectorJacobianProduct", wanted, pb.VjpResponse).solution.id == "mine"


def test_several_directions_of_a_batch_are_certified(
    channel: grpc.Channel, permeability: NDArray[np.float32]
) -> None:
    rng = np.random.default_rng(5)
    cotangents, tangents = rng.standard_normal((2, 2, *permeability.shape))
    asked = request(permeability.astype(np.float64), tolerance=pb.Tolerance(relative_energy=1e-9))
    wanted = pb.VjpRequest(request=asked, cotangents={"pressure": tensor(cotangents)})
    got = call(channel, "VectorJacobianProduct", wanted, pb.VjpResponse)
    gradients = array(got.gradient)
    assert gradients.shape == cotangents.shape
    assert (len(got.errors), got.solution.method) == (6, pb.METHOD_ADJOINT)
    forward = pb.JvpRequest(request=asked, tangents={"permeability": tensor(tangents)})
    pushed = call(channel, "JacobianVectorProduct", forward, pb.JvpResponse)
    moved = array(pushed.tangents["pressure"])
    assert (moved.shape, len(pushed.errors)) == (tangents.shape, 6)
    assert max(pushed.errors) < 1e-6
    products = (gradients * tangents).sum(axis=(-2, -1)), (cotangents * moved).sum(axis=(-2, -1))
    np.testing.assert_allclose(*products, rtol=1e-6, atol=1e-8)
    both = {name: tensor(tangents) for name in ("permeability", "log_permeability")}
    with pytest.raises(grpc.RpcError, match="expected one") as refused:
        call(channel, "JacobianVectorProduct", pb.JvpRequest(request=asked, tangents=both), pb.JvpResponse)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_quantities_are_those_of_each_field(channel: grpc.Channel, permeability: NDArray[np.float32]) -> None:
    asked = request(permeability, id="mine", parameters={"source": 2.0})
    wanted = pb.QuantitiesRequest(request=asked, quantities=["mean", "outflow"])
    got = call(channel, "Quantities", wanted, pb.QuantitiesResponse)
    assert got.solution.id == "mine"
    mean, outflow = got.quantities
    assert [mean.quantity, mean.unit, outflow.quantity, outflow.unit] == ["mean", "Pa", "outflow", "m^2/s"]
    # all that is produced flows out
    for value, half_width in zip(outflow.values, outflow.half_widths, strict=True):
        assert abs(value - 2.0) <= half_width + 1e-12
    assert (len(mean.values), len(mean.half_widths)) == (3, 3)


@pytest.mark.parametrize(
    ("options", "field", "rule"),
    [
        ({"tolerance": pb.Tolerance(relative_energy=-1e-3)}, "tolerance", "range"),
        ({"tolerance": pb.Tolerance(discretization=True)}, "tolerance", "range"),
        ({"error": pb.ERROR_REQUEST_BOUND}, "error", "unknown"),
        ({"error": pb.ERROR_REQUEST_CERTIFIED}, "error", "unknown"),
    ],
)
def test_what_a_gradient_cannot_have_is_refused(
    channel: grpc.Channel, permeability: NDArray[np.float32], options: dict[str, Any], field: str, rule: str
) -> None:
    wanted = pb.VjpRequest(
        request=request(permeability, **options),
        cotangents={"pressure": tensor(np.ones_like(permeability))},
    )
    with pytest.raises(grpc.RpcError, match=field) as refused:
        call(channel, "VectorJacobianProduct", wanted, pb.VjpResponse)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    fault = pb.Fault.FromString(dict(refused.value.trailing_metadata())["mno-fault-bin"])
    assert (fault.field, fault.rule) == (field, rule)


def test_a_gradient_needs_a_cotangent(channel: grpc.Channel, permeability: NDArray[np.float32]) -> None:
    with pytest.raises(grpc.RpcError, match="cotangents") as refused:
        call(channel, "VectorJacobianProduct", pb.VjpRequest(request=request(permeability)), pb.VjpResponse)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    fault = pb.Fault.FromString(dict(refused.value.trailing_metadata())["mno-fault-bin"])
    assert base64.b64encode(fault.SerializeToString())
