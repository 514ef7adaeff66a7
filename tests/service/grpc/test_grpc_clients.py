"""Both clients over both protocols against one service: the same answers, the same errors."""

from __future__ import annotations

import asyncio
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import trustme
from numpy.typing import NDArray

from service.access.tls import Tls, TlsSettings
from service.client import (
    Answer,
    AsyncClient,
    Client,
    Frame,
    Gradient,
    ServiceError,
    Tangent,
    Unreachable,
)
from service.client.retrying import PATIENCE
from service.pb import solver_pb2 as pb
from service.processes.supervisor import Addresses
from service.settings import Settings

WAYS = ["http", "grpc", "async-http", "async-grpc"]


@dataclass(frozen=True)
class Way:
    """One of the four ways to ask, all as if they were synchronous."""

    url: str
    asynchronous: bool
    timeout: float = 60.0

    def through(self, wire: Wire) -> Way:
        """The same, over a wire that breaks."""
        return Way(f"{self.url.partition('://')[0]}://{wire.host}", self.asynchronous)

    def ask(self, name: str, *arguments: Any, **options: Any) -> Any:
        if not self.asynchronous:
            with Client(self.url, timeout=self.timeout) as client:
                return getattr(client, name)(*arguments, **options)

        async def asked() -> Any:
            async with AsyncClient(self.url, timeout=self.timeout) as client:
                return await getattr(client, name)(*arguments, **options)

        return asyncio.run(asked())

    def frames(self, *arguments: Any, **options: Any) -> list[Frame]:
        if not self.asynchronous:
            with Client(self.url, timeout=self.timeout) as client:
                return list(client.rollout(*arguments, **options))

        async def asked() -> list[Frame]:
            async with AsyncClient(self.url, timeout=self.timeout) as client:
                return [frame async for frame in client.rollout(*arguments, **options)]

        return asyncio.run(asked())


def way_to(addresses: Addresses, name: str) -> Way:
    url = addresses.grpc if name.endswith("grpc") else addresses.http
    assert url is not None
    return Way(url, name.startswith("async"))


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, darcy_service: Addresses) -> Way:
    return way_to(darcy_service, request.param)


@pytest.fixture(params=WAYS)
def water_way(request: pytest.FixtureRequest, water_service: Addresses) -> Way:
    return way_to(water_service, request.param)


def test_answers_are_the_same(way: Way, darcy_service: Addresses, permeability: NDArray[np.float32]) -> None:
    reference = way_to(darcy_service, "http")
    for field in (permeability, permeability[0], permeability.astype(np.float64)):
        options = {"source": 2.0, "model": "darcy@2", "reproducible": True, "priority": "bulk"}
        got: Answer = way.ask("solve", "darcy", field, **options)
        same: Answer = reference.ask("solve", "darcy", field, **options)
        assert np.array_equal(got.pressure, same.pressure)
        assert got.pressure.dtype == field.dtype
        assert got.pressure.shape == field.shape
        assert (got.model, got.method, got.operator) == (same.model, same.method, same.operator)
        assert (got.in_distribution, got.certified, got.iterations) == (
            same.in_distribution,
            same.certified,
            same.iterations,
        )
        assert set(got.timing_ms) == set(same.timing_ms)
        errors = (got.error, same.error) if field.ndim == 2 else (got.error[1], same.error[1])
        assert errors[0].upper == pytest.approx(errors[1].upper, rel=1e-3)
        assert (errors[0].kind, errors[0].norm) == ("guaranteed", "energy")
        # whoever gets an answer may write into it
        got.pressure[...] = 0


def test_without_trust_nothing_is_said(way: Way, permeability: NDArray[np.float32]) -> None:
    got: Answer = way.ask("solve", "darcy", permeability[0], error="none")
    assert got.error is None
    assert got.in_distribution is None


def test_the_reference_solver(way: Way, permeability: NDArray[np.float32]) -> None:
    got: Answer = way.ask("solve", "darcy", permeability[0].astype(np.float64), method="solver")
    assert (got.model, got.method) == (None, "solver")
    assert got.error.upper < 1e-8


def test_gradients_are_the_same(
    way: Way, darcy_service: Addresses, permeability: NDArray[np.float32]
) -> None:
    cotangent = np.linspace(-1, 1, permeability[0].size, dtype=np.float32).reshape(permeability[0].shape)
    reference = way_to(darcy_service, "http")
    for field, other in ((permeability[0], cotangent), (permeability, np.stack([cotangent] * 3))):
        arguments = ("vjp", "darcy", field, other)
        options = {"wrt": "log_permeability", "reproducible": True, "model": "darcy"}
        got: Gradient = way.ask(*arguments, **options)
        same: Gradient = reference.ask(*arguments, **options)
        assert np.allclose(got.gradient, same.gradient, rtol=1e-5, atol=1e-9)
        assert got.gradient.shape == field.shape
        assert (got.wrt, got.model, got.in_distribution) == (same.wrt, same.model, same.in_distribution)
    default: Gradient = way.ask("vjp", "darcy", permeability[0], cotangent)
    assert default.wrt == "permeability"
    assert np.array_equal(2 * np.asarray(default), 2 * default.gradient)


def test_errors_are_the_same(way: Way, permeability: NDArray[np.float32]) -> None:
    broken = permeability[0].copy()
    broken[3, 4] = np.nan
    with pytest.raises(ServiceError) as refused:
        way.ask("solve", "darcy", broken)
    problem = refused.value.problem
    assert (refused.value.status, refused.value.type) == (422, "invalid-field")
    assert (problem["field"], problem["rule"], problem["index"]) == ("permeability", "finite", [3, 4])
    assert problem["request_id"]
    for options, status, slug in (
        ({"model": "darcy@7"}, 404, "unknown-model"),
        ({"tolerance": 1e-300}, 409, "not-certifiable"),
        ({"sauce": 1.0}, 422, "invalid-field"),
    ):
        with pytest.raises(ServiceError) as refused:
            way.ask("solve", "darcy", permeability[0], **options)
        assert (refused.value.status, refused.value.type) == (status, slug)
    with pytest.raises(ServiceError) as unknown:
        way.ask("solve", "heat", permeability[0])
    assert (unknown.value.status, unknown.value.type) == (404, "unknown-problem")
    with pytest.raises(ServiceError) as large:
        way.ask("solve", "darcy", np.ones((9, 32, 32), np.float32))
    assert (large.value.status, large.value.type) == (413, "payload-too-large")


def test_models_and_problems(way: Way) -> None:
    (model,) = [each for each in way.ask("models") if each["name"] == "darcy"]
    assert (model["versions"], model["loaded"]) == ([1, 2], [1, 2])
    if way.url.startswith("grpc"):
        with pytest.raises(ServiceError, match="over HTTP"):
            way.ask("problems")
    else:
        assert "darcy" in [problem["name"] for problem in way.ask("problems")]


class Labelled:
    """As much of an ``xarray.DataArray`` as the client needs."""

    def __init__(self, values: NDArray[Any], dims: tuple[str, ...], coords: dict[str, Any]) -> None:
        self._values = values
        self.dims = dims
        self.coords = coords
        self.name = "permeability"
        self.attrs = {"units": "m^2"}

    def to_numpy(self) -> NDArray[Any]:
        return self._values

    def copy(self, data: NDArray[Any]) -> Labelled:
        return Labelled(data, self.dims, self.coords)


def test_labels_come_back(way: Way, permeability: NDArray[np.float32]) -> None:
    coords = {"y": np.arange(32), "x": np.arange(32)}
    field = Labelled(permeability[0], ("y", "x"), coords)
    got: Answer = way.ask("solve", "darcy", field)
    plain: Answer = way.ask("solve", "darcy", permeability[0])
    labelled: Any = got.pressure
    assert (labelled.dims, labelled.coords, labelled.name, labelled.attrs) == (
        ("y", "x"),
        coords,
        "pressure",
        {},
    )
    assert np.array_equal(labelled.to_numpy(), plain.pressure)
    gradient: Any = way.ask("vjp", "darcy", field, Labelled(permeability[1], ("y", "x"), coords)).gradient
    assert (gradient.name, gradient.dims) == ("permeability", ("y", "x"))


def test_rollouts_are_the_same(water_way: Way, water_service: Addresses, water: NDArray[np.float32]) -> None:
    reference = way_to(water_service, "http")
    named = dict(zip(("h", "hu", "hv"), water, strict=True))
    options = {"steps": 9, "every": 2, "reproducible": True}
    for state in (named, water, {"h": water[0]}):
        got = water_way.frames("shallow_water", state, **options)
        same = reference.frames("shallow_water", state, **options)
        assert [frame.step for frame in got] == [2, 4, 6, 8]
        for frame, other in zip(got, same, strict=True):
            assert list(frame.fields) == ["h", "hu", "hv"]
            assert all(np.array_equal(frame.fields[name], other.fields[name]) for name in frame.fields)
            assert frame.invariants == pytest.approx(dict(other.invariants))
            assert (frame.time, frame.model, frame.error) == (other.time, other.model, other.error)
            assert frame.in_distribution == other.in_distribution
    labelled = {name: Labelled(field, ("y", "x"), {}) for name, field in named.items()}
    frame = water_way.frames("shallow_water", labelled, steps=1)[0]
    assert frame.fields["hu"].name == "hu"  # type: ignore[attr-defined]


def test_gradients_through_rollouts_are_the_same(
    water_way: Way, water_service: Addresses, water: NDArray[np.float32]
) -> None:
    reference = way_to(water_service, "http")
    named = dict(zip(("h", "hu", "hv"), water, strict=True))
    several = np.stack([water - 1, water[::-1]])
    options = {"start_step": 1, "wrt": "hu", "reproducible": True}
    for state, cotangent, steps in (
        (named, {"hv": several[:, 0], "h": several[:, 1]}, 2),
        (named, {"hv": water[0]}, 6),
        (water, several[:1], 2),
        (water.astype(np.float64), several[1], 2),
    ):
        options["steps"] = steps
        got: Gradient = water_way.ask("vjp", "shallow_water", state, cotangent, **options)
        same: Gradient = reference.ask("vjp", "shallow_water", state, cotangent, **options)
        assert np.array_equal(got.gradient, same.gradient)
        assert got.gradient.dtype == same.gradient.dtype
        assert np.abs(got.gradient).max() > 0
        assert (got.wrt, got.model, got.method) == ("hu", "shallow_water@1", "surrogate")
        assert (got.error, got.certified, got.operator) == (None, False, same.operator)
        assert got.in_distribution == same.in_distribution
    labelled = {name: Labelled(field, ("y", "x"), {}) for name, field in named.items()}
    gradient: Any = water_way.ask("vjp", "shallow_water", labelled, {"h": water[0]}, steps=2).gradient
    assert (gradient.name, gradient.dims) == ("h", ("y", "x"))


def test_tangents_through_rollouts_are_the_same(
    water_way: Way, water_service: Addresses, water: NDArray[np.float32]
) -> None:
    reference = way_to(water_service, "http")
    named = dict(zip(("h", "hu", "hv"), water, strict=True))
    several = np.stack([water - 1, water[::-1]])
    options: dict[str, Any] = {"start_step": 1, "reproducible": True}
    for state, tangent, said, shape in (
        (named, {"hv": several[:, 0], "h": several[:, 1]}, {"steps": 3, "every": 2}, (2, 1, 3)),
        (named, {"hv": water[0]}, {"steps": 6}, (3,)),
        (water, several[:1], {"steps": 3, "every": 1}, (1, 2, 3)),
        (water.astype(np.float64), several[1], {"steps": 2, "wrt": "log_h"}, (3,)),
    ):
        got: Tangent = water_way.ask("jvp", "shallow_water", state, tangent, **options, **said)
        same: Tangent = reference.ask("jvp", "shallow_water", state, tangent, **options, **said)
        assert np.array_equal(got.tangent, same.tangent)
        assert (got.tangent.dtype, got.steps) == (same.tangent.dtype, same.steps)
        assert got.tangent.shape == (*shape, 16, 24)
        assert (got.of, got.model, got.method) == ("h,hu,hv", "shallow_water@1", "surrogate")
        assert (got.error, got.certified, got.operator) == (None, False, same.operator)
        assert np.array_equal(got.fields["hv"], got.tangent[..., 2, :, :])
        assert np.abs(got.tangent).max() > 0
    darcy_like: Tangent = replace(got, steps=(), of="pressure")
    assert list(darcy_like.fields) == ["pressure"]


def test_refused_gradients_through_rollouts_are_errors(water_way: Way, water: NDArray[np.float32]) -> None:
    for options, status, slug in (
        ({"steps": 0}, 422, "invalid-field"),
        ({"steps": 101}, 422, "invalid-field"),
        ({"steps": 3, "walls": "periodic"}, 422, "invalid-field"),
        ({"steps": 3, "sauce": 1.0}, 422, "invalid-field"),
        ({"steps": 3, "method": "adjoint"}, 501, "not-available-yet"),
        ({"steps": 3, "tolerance": 1e-6}, 409, "not-certifiable"),
        ({"steps": 3, "model": "shallow_water@7"}, 404, "unknown-model"),
    ):
        with pytest.raises(ServiceError) as refused:
            water_way.ask("vjp", "shallow_water", water, water, **options)
        assert (refused.value.status, refused.value.type) == (status, slug)


def test_a_refused_rollout_is_an_error(water_way: Way, water: NDArray[np.float32]) -> None:
    with pytest.raises(ServiceError) as refused:
        water_way.frames("shallow_water", -water, steps=3)
    assert (refused.value.status, refused.value.type) == (422, "invalid-field")
    with pytest.raises(ServiceError) as unknown:
        water_way.frames("shallow_water", water, steps=3, model="heat")
    assert (unknown.value.status, unknown.value.type) == (404, "unknown-model")


def test_a_rollout_that_is_dropped_is_closed(water_service: Addresses, water: NDArray[np.float32]) -> None:
    assert water_service.grpc is not None
    with Client(water_service.grpc) as client:
        rollout = client.rollout("shallow_water", water, steps=100)
        assert next(rollout).step == 1
        rollout.close()
        assert len(list(client.rollout("shallow_water", water, steps=3))) == 3

    async def story() -> None:
        async with AsyncClient(str(water_service.grpc)) as client:
            frames = client.rollout("shallow_water", water, steps=100)
            assert (await anext(frames)).step == 1
            await frames.aclose()
            assert len([frame async for frame in client.rollout("shallow_water", water, steps=3)]) == 3

    asyncio.run(story())


# --- a service that dies and comes back


class Wire:
    """Carries bytes between clients and a service, and breaks as a front does that dies.

    Each connection in turn carries so many bytes to its client and breaks; with 0 it breaks once something
    was asked. Those after them hold.
    """

    def __init__(self, url: str, allowances: list[int]) -> None:
        self._service = url.partition("://")[2].rsplit(":", 1)
        self._allowances = allowances
        self._ends: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept)]
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0

    def __enter__(self) -> Wire:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        _shut(self._listener, *self._ends)
        for thread in self._threads:
            thread.join(timeout=30)
            assert not thread.is_alive()
        for end in (self._listener, *self._ends):
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._ends.append(client)
            self._carry(client, self._allowances.pop(0) if self._allowances else math.inf)

    def _carry(self, client: socket.socket, allowance: float) -> None:
        if not allowance:
            self._start(_hang_up, client)
            return
        service = socket.create_connection((self._service[0], int(self._service[1])))
        self._ends.append(service)
        self._start(_carry, client, service, math.inf)
        self._start(_carry, service, client, allowance)

    def _start(self, run: Callable[..., None], *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=run, args=arguments))
        self._threads[-1].start()


def _hang_up(client: socket.socket) -> None:
    with suppress(OSError):
        client.recv(1)
    _shut(client)


def _carry(source: socket.socket, target: socket.socket, left: float) -> None:
    # the other side may be quicker
    with suppress(OSError):
        while left > 0 and (data := source.recv(2**16)):
            target.sendall(data[: int(min(left, len(data)))])
            left -= len(data)
    _shut(source, target)


def _shut(*ends: socket.socket) -> None:
    for end in ends:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def test_a_question_survives_a_service_that_dies(way: Way, permeability: NDArray[np.float32]) -> None:
    expected: Answer = way.ask("solve", "darcy", permeability, reproducible=True)
    # before the answer, and in the middle of it
    with Wire(way.url, [0, 0, 500, 0]) as wire:
        got: Answer = way.through(wire).ask("solve", "darcy", permeability, reproducible=True)
    assert np.array_equal(got.pressure, expected.pressure)
    assert wire.connections == 5
    with Wire(way.url, [0, 0, 0]) as wire:
        assert way.through(wire).ask("models") == way.ask("models")


def test_a_rollout_survives_a_service_that_dies(water_way: Way, water: NDArray[np.float32]) -> None:
    options = {"steps": 60, "reproducible": True}
    expected = water_way.frames("shallow_water", water, **options)
    size = sum(field.nbytes for field in expected[0].fields.values())
    # in the middle of the sixth frame, for some attempts, and again later
    with Wire(water_way.url, [5 * size + size // 2, 0, 0, 0, 20 * size, 0]) as wire:
        got = water_way.through(wire).frames("shallow_water", water, **options)
    assert wire.connections == 7
    assert [frame.step for frame in got] == list(range(1, 61))
    for frame, other in zip(got, expected, strict=True):
        assert all(np.array_equal(frame.fields[name], other.fields[name]) for name in frame.fields)


BLOCK = 4
Play = Callable[[int, bytes, grpc.ServicerContext], Any]


@contextmanager
def playing(unary: Play | None = None, frames: Play | None = None) -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers as it is told, by the number of the call; the bodies it got."""
    seen: list[bytes] = []

    class Handlers(grpc.GenericRpcHandler):
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
            def once(body: bytes, context: grpc.ServicerContext) -> bytes:
                seen.append(body)
                assert unary is not None
                return bytes(unary(len(seen), body, context).SerializeToString())

            def many(body: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
                seen.append(body)
                assert frames is not None
                for frame in frames(len(seen), body, context):
                    yield frame.SerializeToString()

            if "Rollout" in str(handler_call_details.method):
                return grpc.unary_stream_rpc_method_handler(many)
            return grpc.unary_unary_rpc_method_handler(once)

    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((Handlers(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"grpc://127.0.0.1:{port}", seen
    finally:
        server.stop(None).wait()


def answered() -> pb.SolveResponse:
    answer = pb.SolveResponse(model="darcy@3", method=pb.METHOD_SURROGATE, certified=[False], iterations=[0])
    answer.fields["pressure"].CopyFrom(pb.Tensor(dtype="float32", shape=[1, 1], data=bytes(4)))
    return answer


def refuse(context: grpc.ServicerContext, code: grpc.StatusCode, slug: str, after: str | None = "0") -> None:
    fault = pb.Fault(type=slug, message="no")
    trailing: list[tuple[str, str | bytes]] = [
        ("mno-fault", slug),
        ("mno-fault-bin", fault.SerializeToString()),
    ]
    context.set_trailing_metadata([*trailing, *([("retry-after", after)] if after else [])])
    context.abort(code, "no")


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def asynchronous(request: pytest.FixtureRequest) -> bool:
    found: bool = request.param
    return found


@pytest.mark.parametrize(
    ("code", "slug"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "overloaded"),
        (grpc.StatusCode.UNAVAILABLE, "worker-lost"),
        (grpc.StatusCode.UNAVAILABLE, "not-ready"),
    ],
)
def test_it_comes_back_when_the_service_asks_for_it(
    asynchronous: bool, code: grpc.StatusCode, slug: str
) -> None:
    def play(number: int, _: bytes, context: grpc.ServicerContext) -> Any:
        if number <= 2:
            refuse(context, code, slug)
        return answered()

    with playing(play) as (url, seen):
        assert Way(url, asynchronous).ask("solve", "darcy", [[1.0]]).model == "darcy@3"
    assert len(seen) == 3


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL, grpc.StatusCode.DEADLINE_EXCEEDED]
)
def test_other_refusals_are_final(asynchronous: bool, code: grpc.StatusCode) -> None:
    with (
        playing(lambda _, __, context: refuse(context, code, "some-fault")) as (url, seen),
        pytest.raises(ServiceError, match="some-fault"),
    ):
        Way(url, asynchronous).ask("solve", "darcy", [[1.0]])
    assert len(seen) == 1


def test_it_gives_up_after_its_retries() -> None:
    def play(_: int, __: bytes, context: grpc.ServicerContext) -> Any:
        refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "overloaded")

    with (
        playing(play) as (url, seen),
        Client(url, retries=1) as client,
        pytest.raises(ServiceError, match="overloaded"),
    ):
        client.solve("darcy", [[1.0]])
    assert len(seen) == 2


def test_a_service_that_is_not_there(asynchronous: bool) -> None:
    with playing() as (url, _):
        pass

    async def asked() -> None:
        async with AsyncClient(url, retries=0) as client:
            await client.solve("darcy", [[1.0]])

    def ask() -> None:
        with Client(url, retries=0) as client:
            client.solve("darcy", [[1.0]])

    with pytest.raises(Unreachable):
        asyncio.run(asked()) if asynchronous else ask()


STATE = np.array([[[2.0, 3.0]], [[0.5, 0.0]]], dtype=np.float32)


def stepping(breaks: list[int]) -> Play:
    """Doubles the first field a step; the n-th stream breaks after so many frames."""

    def play(number: int, body: bytes, context: grpc.ServicerContext) -> Iterator[pb.Frame]:
        request = pb.RolloutRequest.FromString(body)
        context.send_initial_metadata(
            [("mno-block", str(BLOCK)), ("mno-fields", "h,hu"), ("mno-model", "water@3")]
        )
        sent = 0
        for step in range(request.start_step + 1, request.steps + 1):
            if step % request.every:
                continue
            if number <= len(breaks) and sent == breaks[number - 1]:
                context.abort(grpc.StatusCode.UNAVAILABLE, "the wire broke")
            sent += 1
            yield frame_of(request, step)

    return play


def frame_of(request: pb.RolloutRequest, step: int) -> pb.Frame:
    frame = pb.Frame(step=step, time=step / 100, model="water@3", in_distribution=request.start_step == 0)
    since = step - request.start_step
    for name, factor in (("h", 2.0**since), ("hu", 1.0)):
        given = request.state[name]
        values = np.frombuffer(given.data, np.float32) * np.float32(factor)
        frame.fields[name].CopyFrom(pb.Tensor(dtype="float32", shape=given.shape, data=values.tobytes()))
    frame.invariants["mass_defect"] = 0.99**since - 1
    if request.defects:
        frame.defect, frame.exponential_bound = step / 4, since
    return frame


def test_a_bound_is_from_the_first_state_or_left_out(asynchronous: bool) -> None:
    state = {"h": STATE[0], "hu": STATE[1]}
    with playing(frames=stepping([5, 3])) as (url, seen):
        frames = Way(url, asynchronous).frames("shallow_water", state, steps=10, defects=7)
    assert [frame.defect for frame in frames] == [step / 4 for step in range(1, 11)]
    # those of the second connection are from the state that it went on from
    assert [frame.exponential_bound for frame in frames] == [1, 2, 3, 4, 5, *[None] * 5]
    assert [pb.RolloutRequest.FromString(body).defects for body in seen] == [7] * 3


@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_broken_stream_goes_on_as_if_it_had_not_broken(asynchronous: bool, every: int) -> None:
    state = {"h": STATE[0], "hu": STATE[1]}
    with playing(frames=stepping([5, 3])) as (url, seen):
        frames = Way(url, asynchronous).frames("shallow_water", state, steps=24, every=every)
    assert [frame.step for frame in frames] == list(range(every, 25, every))
    for frame in frames:
        assert np.array_equal(frame.fields["h"], STATE[0] * 2.0**frame.step)
        assert frame.invariants["mass_defect"] == pytest.approx(0.99**frame.step - 1)
        assert frame.in_distribution
    requests = [pb.RolloutRequest.FromString(body) for body in seen]
    assert len(requests) == 3
    assert all(request.start_step % BLOCK == 0 for request in requests)
    # an alias may have moved: the version that began goes on
    assert [request.model for request in requests] == ["", "water@3", "water@3"]


def test_a_stream_that_breaks_without_any_frame_is_given_up(asynchronous: bool) -> None:
    state = {"h": STATE[0], "hu": STATE[1]}
    with (
        playing(frames=stepping([2, *[0] * 20])) as (url, seen),
        pytest.raises(Unreachable, match="frames up to step 2"),
    ):
        Way(url, asynchronous, timeout=0.5).frames("shallow_water", state, steps=9)
    assert 3 <= len(seen) < 20


def leaving(after: str, calls: list[float], breaks: int) -> Play:
    """Tells its rollouts, after two frames each, that it stops, and when to come back."""

    def play(number: int, body: bytes, context: grpc.ServicerContext) -> Iterator[pb.Frame]:
        calls.append(time.monotonic())
        for frame in stepping([])(number, body, context):
            yield frame
            if number <= breaks and frame.step >= 2:
                context.set_trailing_metadata([("mno-fault", "not-ready"), ("retry-after", after)])
                context.abort(grpc.StatusCode.UNAVAILABLE, "the service is stopping")

    return play


def test_a_rollout_comes_back_when_the_service_asks_for_it(asynchronous: bool) -> None:
    calls: list[float] = []
    # longer than a client waits that is told nothing
    with playing(frames=leaving("0.7", calls, 1)) as (url, _):
        frames = Way(url, asynchronous).frames("shallow_water", STATE, steps=5)
    assert [frame.step for frame in frames] == [1, 2, 3, 4, 5]
    assert len(calls) == 2
    assert calls[1] - calls[0] >= 0.7


def test_a_rollout_that_is_refused_again_and_again_is_given_up(asynchronous: bool) -> None:
    calls: list[float] = []
    with (
        playing(frames=leaving("0", calls, 9)) as (url, _),
        pytest.raises(ServiceError, match="frames up to step 2") as refused,
    ):
        Way(url, asynchronous).frames("shallow_water", STATE, steps=5)
    assert (refused.value.status, refused.value.type) == (503, "not-ready")
    assert len(calls) == 3


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "grpc://127.0.0.1:9"])
@pytest.mark.parametrize("every", [0, -1])
def test_an_interval_of_frames_below_one_is_refused(asynchronous: bool, url: str, every: int) -> None:
    with pytest.raises(ValueError, match="every: expected 1 or more"):
        Way(url, asynchronous).frames("shallow_water", STATE, every=every)


def test_a_failure_in_the_stream_is_an_error_and_is_not_tried_again(asynchronous: bool) -> None:
    def play(number: int, body: bytes, context: grpc.ServicerContext) -> Iterator[pb.Frame]:
        yield from list(stepping([])(number, body, context))[:2]
        refuse(context, grpc.StatusCode.DEADLINE_EXCEEDED, "deadline-exceeded")

    with playing(frames=play) as (url, seen), pytest.raises(ServiceError) as failure:
        Way(url, asynchronous).frames("shallow_water", {"h": STATE[0], "hu": STATE[1]}, steps=9)
    assert (failure.value.status, failure.value.type) == (504, "deadline-exceeded")
    assert len(seen) == 1


def test_a_message_that_the_library_refuses_is_too_large(
    darcy_service: Addresses, asynchronous: bool
) -> None:
    way = way_to(darcy_service, "async-grpc" if asynchronous else "grpc")
    with pytest.raises(ServiceError) as refused:
        way.ask("solve", "darcy", np.ones((3, 512, 512), np.float32))
    assert (refused.value.status, refused.value.type) == (413, "payload-too-large")


# --- addresses


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://127.0.0.1", "grpc://", "grpc:127.0.0.1:1"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(ValueError, match="grpcs://"):
            kind(url)


def test_certificates_need_tls() -> None:
    with pytest.raises(ValueError, match="https:// and grpcs://"):
        Client("grpc://127.0.0.1:1", ca="ca.pem")


def test_an_unknown_option_is_refused_before_anything_is_sent() -> None:
    with Client("grpc://127.0.0.1:1") as client, pytest.raises(ValueError, match="expected auto"):
        client.solve("darcy", [[1.0]], method="magic")


def test_both_clients_speak_mutual_tls(
    tmp_path: Path, settings: Settings, store_parts: Any, thread_of: Any, permeability: NDArray[np.float32]
) -> None:
    authority = trustme.CA()
    server, own = authority.issue_cert("127.0.0.1"), authority.issue_cert("client")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name, certificate in (("server", server), ("client", own)):
        certificate.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
        (tmp_path / f"{name}.pem").write_bytes(chain)
    files = {
        "cert": tmp_path / "server.pem",
        "key": tmp_path / "server.key",
        "client_ca": tmp_path / "ca.pem",
    }
    with thread_of(lambda: store_parts(settings), Tls.of(TlsSettings(**files))) as address:
        options: dict[str, Any] = {
            "ca": tmp_path / "ca.pem",
            "cert": (tmp_path / "client.pem", tmp_path / "client.key"),
        }
        with Client(f"grpcs://{address}", **options) as client:
            assert client.solve("darcy", permeability).model == "darcy@1"

        async def story() -> str | None:
            async with AsyncClient(f"grpcs://{address}", **options) as client:
                return (await client.solve("darcy", permeability)).model

        assert asyncio.run(story()) == "darcy@1"
        with (
            Client(f"grpcs://{address}", ca=tmp_path / "ca.pem", retries=0) as stranger,
            pytest.raises(Unreachable),
        ):
            stranger.solve("darcy", permeability)
        # whoever is not trusted will not be in a moment
        began = time.monotonic()
        for scheme, error in (("grpcs", Unreachable), ("https", httpx.ConnectError)):
            with (
                Client(f"{scheme}://{address}") as wary,
                pytest.raises(error, match="CERTIFICATE_VERIFY_FAILED"),
            ):
                wary.solve("darcy", permeability)
        assert time.monotonic() - began < PATIENCE
