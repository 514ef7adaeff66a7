"""Rollouts over gRPC: what is computed while nobody reads, leaves, or is late, with a worker that waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from loop_worker import LoopWorker
from numpy.typing import NDArray

from model_store import LoadedVersion
from service.grpc.server import GrpcServer
from service.pb import inference_pb2
from service.pb import solver_pb2 as pb
from service.settings import Limits
from service.versions.routing import Route
from service.workers.worker import Batch, Solutions, joined

ROLLOUT = "/mno.v1.Solver/Rollout"
INFER = "/inference.GRPCInferenceService/ModelStreamInfer"
BLOCK = 4
SMALL, WIDE = (16, 16), (512, 512)
POISON = 66.0
LIMITS = Limits(body_bytes=2**21, grid_side=512, rollout_steps=100)
NAMES = {"shallow_water": Route(name="shallow_water", main=1)}

Story = Callable[["Service"], Awaitable[None]]


class SteppedWorker(LoopWorker):
    """Adds 1 to h a step; each batch waits for one of the permits that the test gives."""

    def __init__(self) -> None:
        self.permits = asyncio.Semaphore(0)
        self.rows: list[int] = []
        self.asked = 0

    async def run(self, parts: Sequence[Batch], *, pad_to: int | None = None) -> Solutions:
        assert pad_to is None
        batch = joined(parts)
        self.asked += 1
        await self.permits.acquire()
        self.rows.append(batch.rows)
        if POISON in batch.fields["h"]:
            raise ArithmeticError("poisoned")
        steps = np.arange(1, BLOCK + 1, dtype=np.float32)[:, None, None]
        frames = {name: values[:, None] + 0 * steps for name, values in batch.fields.items()}
        frames["h"] = frames["h"] + steps
        return Solutions(frames, (0,) * batch.rows)

    def permit(self, batches: int) -> None:
        for _ in range(batches):
            self.permits.release()


@dataclass
class Service:
    worker: SteppedWorker
    server: GrpcServer
    channel: grpc.aio.Channel

    def open(self, depth: float = 1.0, grid: tuple[int, int] = SMALL, **options: Any) -> Any:
        """Ask for a rollout of water of this depth; nothing is read."""
        timeout = options.pop("timeout", None)
        state = {"h": tensor(np.full(grid, depth, np.float32))}
        wanted = pb.RolloutRequest(problem="shallow_water", state=state, **({"steps": 12} | options))
        method = self.channel.unary_stream(ROLLOUT, pb.RolloutRequest.SerializeToString, pb.Frame.FromString)
        return method(wanted, timeout=timeout)

    async def be_busy(self) -> None:
        """Give everybody time to do what can be done without the test."""
        stub = health_pb2_grpc.HealthStub(self.channel)
        for _ in range(50):
            await stub.Check(health_pb2.HealthCheckRequest())


def tensor(array: NDArray[Any]) -> pb.Tensor:
    return pb.Tensor(dtype=array.dtype.name, shape=array.shape, data=array.tobytes())


def question(name: str, steps: int) -> bytes:
    """The same as one of many requests of a stream."""
    wanted = inference_pb2.ModelInferRequest(id=name, model_name="shallow_water")
    wanted.inputs.add(name="h", datatype="FP32", shape=SMALL)
    wanted.raw_input_contents.append(np.ones(SMALL, np.float32).tobytes())
    wanted.parameters["steps"].int64_param = steps
    return wanted.SerializeToString()


def depth(frame: pb.Frame) -> float:
    return float(np.frombuffer(frame.fields["h"].data, np.float32)[0])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


@pytest.fixture
def tell(
    evolution_versions: tuple[LoadedVersion, ...], serve_grpc: Any, parts_of: Any
) -> Callable[..., None]:
    """Runs a story with a service."""

    async def run(story: Story, limits: Limits) -> None:
        worker = SteppedWorker()
        parts = parts_of(worker, evolution_versions, NAMES, limits)
        async with serve_grpc(parts) as (server, address), grpc.aio.insecure_channel(address) as channel:
            await story(Service(worker, server, channel))

    return lambda story, **limits: asyncio.run(run(story, LIMITS.model_copy(update=limits)))


def test_frames_come_with_what_is_known_about_them(tell: Callable[[Story], None]) -> None:
    async def story(service: Service) -> None:
        service.worker.permit(10)
        call = service.open(every=3, start_step=0)
        frames = [frame async for frame in call]
        assert [frame.step for frame in frames] == [3, 6, 9, 12]
        assert [depth(frame) for frame in frames] == [4.0, 7.0, 10.0, 13.0]
        assert [frame.time for frame in frames] == pytest.approx([0.03, 0.06, 0.09, 0.12])
        assert frames[0].model == "shallow_water@1"
        assert {"mass_defect", "depth_min"} <= set(frames[0].invariants)
        assert frames[0].error.kind == "calibrated"
        assert 0 < frames[0].error.coverage < 1
        # nobody has bounded it, and 0 would be a bound
        assert not any(frames[0].error.HasField(name) for name in ("l2_upper", "max_upper", "l2_lower"))
        known = dict(await call.initial_metadata())
        assert known["mno-fields"] == "h,hu,hv"
        assert (known["mno-block"], known["mno-frames"], known["mno-walls"]) == ("4", "4", "outflow")
        assert dict(await call.trailing_metadata())["mno-step"] == "12"

    tell(story)


def test_a_client_that_does_not_read_holds_the_server_to_a_few_frames(tell: Callable[[Story], None]) -> None:
    async def story(service: Service) -> None:
        service.worker.permit(1000)
        call = service.open(grid=WIDE, steps=100)
        assert (await call.read()).step == 1
        await service.be_busy()
        # what the client has not read is on its way: windows and buffers hold a frame or two of 3 MiB
        assert service.worker.asked <= 3
        assert [(await call.read()).step for _ in range(99)] == list(range(2, 101))
        assert service.worker.asked == 25

    tell(story)


def test_a_client_that_never_reads_is_given_up(
    evolution_versions: tuple[LoadedVersion, ...], serve_grpc: Any, parts_of: Any
) -> None:
    async def story() -> None:
        worker = SteppedWorker()
        worker.permit(1000)
        limits = LIMITS.model_copy(update={"stall_seconds": 0.1})
        parts = parts_of(worker, evolution_versions, NAMES, limits)
        async with serve_grpc(parts) as (server, address), grpc.aio.insecure_channel(address) as channel:
            service = Service(worker, server, channel)
            call = service.open(grid=WIDE, steps=100)
            assert (await call.read()).step == 1
            await until(lambda: 'status="DEADLINE_EXCEEDED"' in parts.guard.metrics.render()[0].decode())
            # the others are answered, and nothing more is computed for this one
            assert len([frame async for frame in service.open()]) == 12
            assert worker.asked <= 3 + 3
            call.cancel()

    asyncio.run(story())


def test_a_slow_reader_does_not_slow_others(tell: Callable[[Story], None]) -> None:
    async def story(service: Service) -> None:
        service.worker.permit(1000)
        slow = service.open(grid=WIDE, steps=100)
        await slow.read()
        for _ in range(3):
            assert len([frame async for frame in service.open()]) == 12
        slow.cancel()

    tell(story)


def test_nothing_is_computed_for_a_client_that_left(tell: Callable[[Story], None]) -> None:
    async def story(service: Service) -> None:
        service.worker.permit(1)
        call = service.open(steps=100)
        assert (await call.read()).step == 1
        await until(lambda: service.worker.asked == 2)
        call.cancel()
        waiting = service.open(depth=7.0, steps=100)
        await service.be_busy()
        service.worker.permit(100)
        # the one that stayed is answered
        assert depth(await waiting.read()) == 8.0
        waiting.cancel()
        await service.be_busy()
        assert service.worker.asked <= 4

    tell(story)


def test_a_deadline_ends_a_rollout(tell: Callable[[Story], None]) -> None:
    async def story(service: Service) -> None:
        service.worker.permit(1)
        call = service.open(steps=100, timeout=0.5)
        with pytest.raises(grpc.aio.AioRpcError) as late:
            async for _ in call:
                pass
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await service.be_busy()
        assert service.worker.asked == 2

    tell(story)


def test_a_rollout_goes_on_from_a_frame(tell: Callable[[Story], None]) -> None:
    async def story(service: Service) -> None:
        service.worker.permit(100)
        method = service.channel.unary_stream(
            ROLLOUT, pb.RolloutRequest.SerializeToString, pb.Frame.FromString
        )
        whole = [frame async for frame in service.open()]
        wanted = pb.RolloutRequest(problem="shallow_water", steps=12, start_step=8)
        for name, field in whole[7].fields.items():
            wanted.state[name].CopyFrom(field)
        rest = [frame async for frame in method(wanted)]
        assert [frame.step for frame in rest] == [9, 10, 11, 12]
        for frame, same in zip(rest, whole[8:], strict=True):
            assert frame.fields["h"] == same.fields["h"]

    tell(story)


def test_a_failure_within_the_stream_says_where_to_go_on(tell: Callable[[Story], None]) -> None:
    async def story(service: Service) -> None:
        service.worker.permit(100)
        call = service.open(depth=POISON - 4)
        assert [(await call.read()).step for _ in range(4)] == [1, 2, 3, 4]
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await call.read()
        assert failure.value.code() is grpc.StatusCode.INTERNAL
        assert "poisoned" not in str(failure.value.details())
        assert dict(failure.value.trailing_metadata())["mno-step"] == "4"

    tell(story)


def test_a_rollout_within_a_stream_holds_its_block_s_memory(tell: Callable[..., None]) -> None:
    held = len(question("0", 8)) + BLOCK * 3 * SMALL[0] * SMALL[1] * 4

    async def story(service: Service) -> None:
        service.worker.permit(1)
        stream = service.channel.stream_stream(INFER, None, inference_pb2.ModelStreamInferResponse.FromString)
        call = stream()
        await call.write(question("0", 8))
        await until(lambda: service.worker.asked == 2)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await service.open(timeout=20).read()
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        # a request of the same stream waits for its turn
        await call.write(question("1", 8))
        await call.done_writing()
        service.worker.permit(100)
        answers = [answer async for answer in call]
        assert [answer.infer_response.id for answer in answers] == ["0"] * 8 + ["1"] * 8
        assert not any(answer.error_message for answer in answers)
        async with asyncio.timeout(20):
            # the end of a call is sent before it is counted
            while len([frame async for frame in service.open()]) != 12:
                pass

    tell(story, inflight_bytes=held)


def test_rollouts_of_a_stream_share_the_memory_with_each_other(tell: Callable[..., None]) -> None:
    # a block, and half of the one before
    held = (BLOCK + BLOCK // 2) * 3 * SMALL[0] * SMALL[1] * 4

    async def story(service: Service) -> None:
        stream = service.channel.stream_stream(INFER, None, inference_pb2.ModelStreamInferResponse.FromString)
        call = stream()
        for name in "01":
            await call.write(question(name, 8))
        await call.done_writing()
        await until(lambda: service.worker.asked > 0)
        await service.be_busy()
        service.worker.permit(100)
        answers = [answer async for answer in call]
        (refused,) = [answer for answer in answers if answer.error_message]
        said = refused.infer_response.parameters
        assert said["mno-fault"].string_param == "overloaded"
        assert said["retry-after"].int64_param == 1
        (other,) = {"0", "1"} - {refused.infer_response.id}
        assert [answer.infer_response.id for answer in answers if not answer.error_message] == [other] * 8

    tell(story, inflight_bytes=held + held // 2)


def test_draining_ends_a_rollout_that_takes_too_long_and_says_where_to_go_on(
    tell: Callable[[Story], None],
) -> None:
    async def story(service: Service) -> None:
        service.worker.permit(1)
        call = service.open(steps=100)
        assert [(await call.read()).step for _ in range(4)] == [1, 2, 3, 4]
        await service.server.drain(0.0)
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await call.read()
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        assert dict(ended.value.trailing_metadata())["mno-step"] == "4"

    tell(story)


def test_draining_answers_what_was_accepted(tell: Callable[[Story], None]) -> None:
    async def story(service: Service) -> None:
        call = service.open()
        await until(lambda: service.worker.asked == 1)
        draining = asyncio.create_task(service.server.drain(30.0))
        await asyncio.sleep(0)
        service.worker.permit(100)
        assert len([frame async for frame in call]) == 12
        await draining

    tell(story)


BROKEN = {
    "no-steps": ({"steps": 0}, "steps"),
    "too-many": ({"steps": 2**32 - 1}, "steps"),
    "beyond": ({"steps": 101}, "steps"),
    "start-after-the-end": ({"start_step": 12}, "steps"),
    "walls": ({"walls": "paper"}, "walls"),
    "parameters": ({"parameters": {"source": 1.0}}, "source"),
    "certified": ({"error": pb.ERROR_REQUEST_CERTIFIED}, "error"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_named(tell: Callable[[Story], None], name: str) -> None:
    async def story(service: Service) -> None:
        options, field = BROKEN[name]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await service.open(**options).read()
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        fault = pb.Fault.FromString(dict(refused.value.trailing_metadata())["mno-fault-bin"])
        assert fault.field == field

    tell(story)


def test_a_batch_of_states_is_refused(tell: Callable[[Story], None]) -> None:
    async def story(service: Service) -> None:
        with pytest.raises(grpc.aio.AioRpcError, match="one state") as refused:
            await service.open(grid=(2, 16, 16)).read()  # type: ignore[arg-type]
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    tell(story)
