"""Streams of requests, of both services: each request is one like any other, and none is in another's way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import grpc
import grpc.aio
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from model_store import open_catalog
from service.access.gate import Guard
from service.access.rate import RateLimits, RateSettings
from service.access.security import ANYBODY, Security, SecuritySettings, open_security
from service.access.tokens import TokenRecord, edit_tokens, new_token
from service.grpc.server import GrpcServer
from service.pb import inference_pb2, solver_pb2
from service.settings import Limits, Settings
from service.telemetry.metrics import Metrics
from service.versions.routing import Route

UNARY = "/mno.v1.Solver/Solve"
NAMES = {"darcy": Route(name="darcy", main=1)}
SIDE = 32
LIMITS = Limits(body_bytes=2**20, batch=256, grid_side=64)


@dataclass(frozen=True)
class Answer:
    """What both services say."""

    id: str
    fault: str
    retry_after: int
    total: float


class Dialect(Protocol):
    """A service's words for the same."""

    path: str

    @staticmethod
    def request(name: str, rows: int = 1) -> bytes: ...

    @staticmethod
    def answer(message: bytes) -> Answer: ...


def field(rows: int) -> Any:
    return np.ones((rows, SIDE, SIDE), np.float32)


class Solving:
    path = "/mno.v1.Solver/SolveStream"

    @staticmethod
    def request(name: str, rows: int = 1) -> bytes:
        values = field(rows)
        tensor = solver_pb2.Tensor(dtype="float32", shape=values.shape, data=values.tobytes())
        wanted = solver_pb2.SolveRequest(id=name, problem="darcy", fields={"permeability": tensor})
        wanted.error = solver_pb2.ERROR_REQUEST_NONE
        return wanted.SerializeToString()

    @staticmethod
    def answer(message: bytes) -> Answer:
        got = solver_pb2.SolveResponse.FromString(message)
        return Answer(got.id, got.fault.type, got.fault.retry_after, got.timing.total_ms / 1000)


class Inferring:
    path = "/inference.GRPCInferenceService/ModelStreamInfer"

    @staticmethod
    def request(name: str, rows: int = 1, timeout: float = 0.0) -> bytes:
        values = field(rows)
        wanted = inference_pb2.ModelInferRequest(id=name, model_name="darcy")
        wanted.inputs.add(name="permeability", datatype="FP32", shape=values.shape)
        wanted.outputs.add(name="pressure")
        wanted.raw_input_contents.append(values.tobytes())
        if timeout:
            wanted.parameters["timeout"].int64_param = int(1e6 * timeout)
        return wanted.SerializeToString()

    @staticmethod
    def answer(message: bytes) -> Answer:
        got = inference_pb2.ModelStreamInferResponse.FromString(message)
        said = got.infer_response.parameters
        assert bool(got.error_message) == ("mno-fault" in said)
        fault = said["mno-fault"].string_param if got.error_message else ""
        return Answer(got.infer_response.id, fault, said["retry-after"].int64_param, 0.0)


@dataclass
class Stream:
    """A stream of one client."""

    call: Any
    dialect: type[Dialect]

    async def send(self, *names: str, rows: int = 1) -> None:
        for name in names:
            await self.call.write(self.dialect.request(name, rows))

    async def read(self) -> Answer:
        async with asyncio.timeout(30):
            message = await self.call.read()
        assert message is not grpc.aio.EOF
        return self.dialect.answer(message)

    async def ask(self, name: str) -> Answer:
        await self.send(name)
        return await self.read()

    async def end(self) -> grpc.StatusCode:
        """How it ends, for whoever has nothing more to say."""
        await self.call.done_writing()
        async with asyncio.timeout(30):
            assert await self.call.read() is grpc.aio.EOF
        code: grpc.StatusCode = await self.call.code()
        return code

    async def broken(self) -> grpc.aio.AioRpcError:
        """Why it ends, once all answers are read."""
        with pytest.raises(grpc.aio.AioRpcError) as broken:
            await self._read_all()
        return broken.value

    async def _read_all(self) -> None:
        async with asyncio.timeout(30):
            while await self.call.read() is not grpc.aio.EOF:
                pass


@dataclass
class Service:
    worker: Any
    queue: Any
    server: GrpcServer
    metrics: Metrics
    channel: grpc.aio.Channel

    def open(self, dialect: type[Dialect], metadata: Any = None, **options: Any) -> Stream:
        return Stream(self.channel.stream_stream(dialect.path)(metadata=metadata, **options), dialect)

    async def solve(self) -> grpc.StatusCode:
        """How a call of its own ends."""
        try:
            await self.channel.unary_unary(UNARY)(Solving.request("alone"), timeout=30)
        except grpc.aio.AioRpcError as error:
            code: grpc.StatusCode = error.code()
            return code
        return grpc.StatusCode.OK

    @property
    def accepted(self) -> int:
        """Fields that wait, are computed, or were."""
        computed: int = sum(batch.rows for batch in self.worker.batches)
        waiting: int = self.queue.waiting
        return computed + waiting

    async def be_busy(self) -> None:
        """Give everybody time to do what can be done without the test."""
        stub = health_pb2_grpc.HealthStub(self.channel)
        for _ in range(50):
            await stub.Check(health_pb2.HealthCheckRequest())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0)


Story = Callable[[Service], Awaitable[None]]
Tell = Callable[..., None]


@pytest.fixture
def tell(settings: Settings, gated_worker: Any, serve_grpc: Any, parts_of: Any) -> Tell:
    """Runs a story with a service whose worker waits for the test."""
    assert settings.store is not None
    version = open_catalog(settings.store).load("darcy", 1)

    async def run(story: Story, guard: Guard | None, limits: Limits) -> None:
        worker = gated_worker()
        parts = parts_of(worker, (version,), NAMES, limits)
        parts = parts if guard is None else replace(parts, guard=guard)
        queue = parts.models.named("darcy").queue
        async with serve_grpc(parts) as (server, address), grpc.aio.insecure_channel(address) as channel:
            await story(Service(worker, queue, server, parts.guard.metrics, channel))

    def tell(story: Story, guard: Guard | None = None, **limits: Any) -> None:
        asyncio.run(run(story, guard, LIMITS.model_copy(update=limits)))

    return tell


def limited(**rate: Any) -> Guard:
    """Everybody together is let in that often."""
    return Guard(Security(None, ANYBODY, local=True), RateLimits(RateSettings(**rate, anonymous=True)))


dialects = pytest.mark.parametrize("dialect", [Solving, Inferring])


# --- time


def test_a_request_takes_as_long_as_it_takes(tell: Tell) -> None:
    async def story(service: Service) -> None:
        service.worker.gate.set()
        stream, began = service.open(Solving), time.perf_counter()
        # one after the other: all of them together take no longer than the client waits
        answers = [await stream.ask(str(number)) for number in range(20)]
        assert 0 < sum(answer.total for answer in answers) <= time.perf_counter() - began

    tell(story)


def test_statistics_count_from_when_a_request_came(tell: Tell) -> None:
    async def story(service: Service) -> None:
        service.worker.gate.set()
        stream, began = service.open(Inferring), time.perf_counter()
        for number in range(20):
            await stream.ask(str(number))
        waited = time.perf_counter() - began
        method = service.channel.unary_unary(
            "/inference.GRPCInferenceService/ModelStatistics",
            None,
            inference_pb2.ModelStatisticsResponse.FromString,
        )
        (known,) = (await method(b"")).model_stats
        assert known.inference_stats.success.count == 20
        assert 0 < known.inference_stats.success.ns / 1e9 <= waited

    tell(story)


def test_a_stream_lasts_longer_than_the_time_of_a_request(tell: Tell) -> None:
    timeout = 0.5

    async def story(service: Service) -> None:
        service.worker.gate.set()
        stream, began = service.open(Inferring), time.perf_counter()
        while time.perf_counter() - began <= timeout:
            await stream.ask("early")
        # one of them is quick enough, also where many other things are done on this machine
        async with asyncio.timeout(30):
            while True:
                await stream.call.write(Inferring.request("late", timeout=timeout))
                if not (await stream.read()).fault:
                    return

    tell(story)


# --- limits of a client


@dialects
def test_each_request_counts_for_the_rate(tell: Tell, dialect: type[Dialect]) -> None:
    async def story(service: Service) -> None:
        service.worker.gate.set()
        stream = service.open(dialect)
        answers = [await stream.ask(str(number)) for number in range(5)]
        assert [answer.fault for answer in answers] == ["", "", "", "overloaded", "overloaded"]
        assert [answer.id for answer in answers] == list("01234")
        assert all(1 <= answer.retry_after <= 100 for answer in answers[3:])
        assert await service.solve() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await stream.end() is grpc.StatusCode.OK
        assert service.accepted == 3
        # those of the stream as much as the call
        page = service.metrics.render()[0].decode()
        (counted,) = (line for line in page.splitlines() if line.startswith("mno_refused_total{"))
        assert 'reason="overloaded"' in counted
        assert float(counted.split()[-1]) == 3

    tell(story, limited(requests_per_second=0.01, burst=3))


@dialects
def test_requests_of_a_stream_at_once_are_bounded(tell: Tell, dialect: type[Dialect]) -> None:
    async def story(service: Service) -> None:
        stream = service.open(dialect)
        await stream.send("0", "1", "2", "3")
        refused = [await stream.read() for _ in range(2)]
        assert [answer.fault for answer in refused] == ["overloaded"] * 2
        assert [answer.retry_after for answer in refused] == [1, 1]
        assert await service.solve() is grpc.StatusCode.RESOURCE_EXHAUSTED
        service.worker.gate.set()
        answered = [await stream.read() for _ in range(2)]
        assert {answer.id for answer in refused + answered} == set("0123")
        assert [answer.fault for answer in answered] == ["", ""]
        # and again, as each of them makes room
        for number in range(5):
            assert not (await stream.ask(str(number))).fault

    tell(story, limited(concurrent=2))


@dialects
def test_an_idle_stream_counts_as_one(tell: Tell, dialect: type[Dialect]) -> None:
    async def story(service: Service) -> None:
        service.worker.gate.set()
        stream = service.open(dialect)
        for number in range(3):
            assert not (await stream.ask(str(number))).fault
            assert await service.solve() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await stream.end() is grpc.StatusCode.OK
        async with asyncio.timeout(30):
            # the end of a call is sent before it is counted
            while await service.solve() is not grpc.StatusCode.OK:
                pass

    tell(story, limited(concurrent=1))


def test_a_token_that_is_revoked_asks_for_nothing_more(tell: Tell, tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    token, digest = new_token()
    with edit_tokens(path) as records:
        records.append(TokenRecord(name="alice", hash=digest, scopes=("solve",)))
    security = open_security(SecuritySettings(tokens=path), "127.0.0.1", mutual_tls=False)

    async def story(service: Service) -> None:
        service.worker.gate.set()
        stream = service.open(Solving, [("authorization", f"Bearer {token}")])
        assert not (await stream.ask("before")).fault
        with edit_tokens(path) as records:
            records.clear()
        security.reload()
        assert (await stream.ask("after")).fault == "unauthenticated"

    tell(story, Guard(security))


# --- memory


@dialects
def test_a_stream_alone_reads_no_further_than_there_is_room(tell: Tell, dialect: type[Dialect]) -> None:
    size = len(dialect.request("00"))

    async def story(service: Service) -> None:
        stream = service.open(dialect)
        await stream.send(*(f"{number:02}" for number in range(30)))
        await until(lambda: service.accepted > 0)
        await service.be_busy()
        # half of the room is for those who have nothing under way
        assert service.accepted == 2
        alone = asyncio.create_task(service.solve())
        await until(lambda: service.accepted == 3)
        service.worker.gate.set()
        answers = [await stream.read() for _ in range(30)]
        assert sorted(answer.id for answer in answers) == [f"{number:02}" for number in range(30)]
        assert not any(answer.fault for answer in answers)
        assert await stream.end() is grpc.StatusCode.OK
        assert await alone is grpc.StatusCode.OK

    tell(story, inflight_bytes=4 * size + 99)


@dialects
def test_streams_share_the_room_and_all_are_answered(tell: Tell, dialect: type[Dialect]) -> None:
    size = len(dialect.request("00"))

    async def story(service: Service) -> None:
        streams = [service.open(dialect) for _ in range(8)]
        names = [f"{number:02}" for number in range(20)]
        for stream in streams:
            await stream.send(*names)
        await until(lambda: service.accepted > 0)
        await service.be_busy()
        assert service.accepted <= 3
        service.worker.gate.set()
        for stream in streams:
            assert sorted([(await stream.read()).id for _ in names]) == names
            assert await stream.end() is grpc.StatusCode.OK

    tell(story, inflight_bytes=3 * size + 99)


@dialects
def test_a_message_beyond_the_room_is_let_in_alone(tell: Tell, dialect: type[Dialect]) -> None:
    async def story(service: Service) -> None:
        service.worker.gate.set()
        stream = service.open(dialect)
        await stream.send("0", "1", "2", rows=8)
        assert sorted([(await stream.read()).id for _ in range(3)]) == list("012")

    tell(story, inflight_bytes=1)


def test_who_waits_for_room_and_leaves_leaves_no_trace(tell: Tell) -> None:
    size = len(Solving.request("00"))

    async def story(service: Service) -> None:
        staying, leaving = service.open(Solving), service.open(Solving)
        await staying.send("00")
        await until(lambda: service.accepted == 1)
        await leaving.send("01", "02")
        await service.be_busy()
        assert service.accepted == 1
        leaving.call.cancel()
        await service.be_busy()
        service.worker.gate.set()
        assert (await staying.read()).id == "00"
        for _ in range(3):
            assert not (await staying.ask("00")).fault
        assert await staying.end() is grpc.StatusCode.OK
        # nothing is held any more: what fits into an empty budget only is let in
        async with asyncio.timeout(30):
            while await service.solve() is not grpc.StatusCode.OK:
                pass

    tell(story, inflight_bytes=size + size // 2)


# --- how a stream ends


@dialects
def test_who_reads_nothing_is_told_so(tell: Tell, dialect: type[Dialect]) -> None:
    async def story(service: Service) -> None:
        service.worker.gate.set()
        stream = service.open(dialect)
        writing = asyncio.create_task(stream.send(*map(str, range(64)), rows=240))
        await until(lambda: 'status="DEADLINE_EXCEEDED"' in service.metrics.render()[0].decode())
        writing.cancel()
        broken = await stream.broken()
        assert broken.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "was not read" in str(broken.details())
        # nobody else had to do with it
        assert await service.solve() is grpc.StatusCode.OK

    tell(story, stall_seconds=0.2)


@dialects
def test_the_deadline_of_the_call_ends_a_stream(tell: Tell, dialect: type[Dialect]) -> None:
    async def story(service: Service) -> None:
        stream = service.open(dialect, timeout=0.5)
        await stream.send("0", "1")
        assert (await stream.broken()).code() is grpc.StatusCode.DEADLINE_EXCEEDED

    tell(story)


# --- stopping


@dialects
def test_an_idle_stream_ends_when_the_service_stops(tell: Tell, dialect: type[Dialect]) -> None:
    async def story(service: Service) -> None:
        service.worker.gate.set()
        stream = service.open(dialect)
        assert not (await stream.ask("0")).fault
        async with asyncio.timeout(60):
            await service.server.drain(3600.0)
        broken = await stream.broken()
        assert broken.code() is grpc.StatusCode.UNAVAILABLE
        assert dict(broken.trailing_metadata() or ())["mno-fault"] == "not-ready"

    tell(story)


@dialects
def test_what_was_read_is_answered_before_a_stream_ends(tell: Tell, dialect: type[Dialect]) -> None:
    async def story(service: Service) -> None:
        stream = service.open(dialect)
        await stream.send(*"01234")
        await until(lambda: service.accepted == 5)
        draining = asyncio.create_task(service.server.drain(3600.0))
        await asyncio.sleep(0)
        await stream.send(*"56789")
        service.worker.gate.set()
        assert sorted([(await stream.read()).id for _ in range(5)]) == list("01234")
        broken = await stream.broken()
        assert service.accepted == 5
        assert broken.code() is grpc.StatusCode.UNAVAILABLE
        assert dict(broken.trailing_metadata() or ())["mno-fault"] == "not-ready"
        async with asyncio.timeout(60):
            await draining

    tell(story)


def test_reflection_and_health_do_not_hold_up_the_stop(tell: Tell) -> None:
    async def story(service: Service) -> None:
        reflecting = reflection_pb2_grpc.ServerReflectionStub(service.channel).ServerReflectionInfo()
        await reflecting.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        assert (await reflecting.read()).list_services_response.service
        watching = health_pb2_grpc.HealthStub(service.channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        async with asyncio.timeout(60):
            await service.server.drain(3600.0)
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as broken:
            await reflecting.read()
        assert broken.value.code() is grpc.StatusCode.UNAVAILABLE

    tell(story)


def test_reflection_holds_nothing_that_is_answered(tell: Tell) -> None:
    async def story(service: Service) -> None:
        service.worker.gate.set()
        reflecting = reflection_pb2_grpc.ServerReflectionStub(service.channel).ServerReflectionInfo()
        for _ in range(3):
            await reflecting.write(reflection_pb2.ServerReflectionRequest(list_services="x" * 9000))
            await reflecting.read()
        assert await service.solve() is grpc.StatusCode.OK
        await reflecting.done_writing()

    tell(story, inflight_bytes=10_000)
