"""Rollouts under way: what is computed while nobody reads, leaves, or is late, with a worker that waits."""

import asyncio
import io
import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest
from loop_worker import LoopWorker

from model_store import LoadedVersion
from service.batching.batcher import Batcher, BatchRules
from service.http.abortable import AbortableProtocol
from service.settings import Limits
from service.workers.worker import Batch, Bucket, Solutions, joined

ROLLOUT = "/v1/problems/shallow_water/rollout"
NPY = {"Content-Type": "application/x-npy", "Accept": "application/x-npy-stream"}
BLOCK = 4
WIDE = (512, 512)
POISON = 66.0


class SteppedWorker(LoopWorker):
    """Adds 1 to h a step; each batch waits for one of the permits that the test gives."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.buckets: list[Bucket] = []
        self.permits = asyncio.Semaphore(0)
        self.asked = 0

    async def run(self, parts: Sequence[Batch], *, pad_to: int | None = None) -> Solutions:  # noqa: ARG002
        batch = joined(parts)
        self.asked += 1
        await self.permits.acquire()
        self.rows.append(batch.rows)
        self.buckets.append(batch.bucket)
        if POISON in batch.fields["h"]:
            raise ArithmeticError("poisoned")
        steps = np.arange(1, BLOCK + 1, dtype=np.float32)[:, None, None]
        frames = {name: values[:, None] + 0 * steps for name, values in batch.fields.items()}
        frames["h"] = frames["h"] + steps
        frames["h"][frames["h"] > 1000] = np.nan
        return Solutions(frames, (0,) * batch.rows)

    def permit(self, batches: int) -> None:
        for _ in range(batches):
            self.permits.release()


@dataclass
class Service:
    worker: SteppedWorker
    queue: Batcher
    client: httpx.AsyncClient
    connections: list[AbortableProtocol]

    async def open(
        self, depth: float = 1.0, grid: tuple[int, int] = (16, 16), **options: Any
    ) -> httpx.Response:
        """Ask for a rollout of water of this depth; the response's body is not read."""
        request = self.client.build_request(
            "POST", ROLLOUT, content=body(depth, grid), headers=NPY, params={"steps": 12, **options}
        )
        return await self.client.send(request, stream=True)


def body(depth: float, grid: tuple[int, int] = (16, 16)) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.stack([np.full(grid, depth), *np.zeros((2, *grid))]).astype(np.float32))
    return stream.getvalue()


async def until(condition: Callable[[], bool]) -> None:
    """Let others run until the condition holds."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


async def settle() -> None:
    """Let everybody do what can be done without the test."""
    for _ in range(200):
        await asyncio.sleep(0)


def told(data: bytes) -> list[dict[str, Any]]:
    """The JSON of every frame or failure, and ``{}`` for the record of length 0."""
    found = []
    stream = io.BytesIO(data)
    while head := stream.read(8):
        (length,) = struct.unpack("<Q", head)
        known = json.loads(stream.read(length)) if length else {}
        if "step" in known:
            (length,) = struct.unpack("<Q", stream.read(8))
            known["h"] = float(np.load(io.BytesIO(stream.read(length)))[0, 0, 0])
        found.append(known)
    return found


def depths(data: bytes) -> list[float]:
    *frames, end = told(data)
    assert end == {}, "the stream is not whole"
    return [frame["h"] for frame in frames]


@pytest.fixture
def tell(evolution_versions: tuple[LoadedVersion, ...], serve: Any, serve_with: Any) -> Callable[..., None]:
    """Runs a story with a service."""

    def run(story: Callable[[Service], Any], queue_bytes: int = 10**8, **limits: Any) -> None:
        async def told() -> None:
            worker = SteppedWorker()
            connections: list[AbortableProtocol] = []

            def connect(**options: Any) -> AbortableProtocol:
                connections.append(AbortableProtocol(**options))
                return connections[-1]

            chosen = Limits(**limits)
            rules = BatchRules(max_batch=8, queue_bytes=queue_bytes, queue_seconds=100.0)
            served = serve_with(worker, evolution_versions, chosen, rules)
            async with (
                serve(served, chosen, connect) as address,
                httpx.AsyncClient(base_url=address, timeout=30) as client,
            ):
                await story(Service(worker, served.surrogates, client, connections))

        asyncio.run(told())

    return run


def test_the_next_block_is_computed_when_this_one_is_taken(tell: Callable[..., None]) -> None:
    async def story(service: Service) -> None:
        service.worker.permit(1)
        response = await service.open()
        chunks = response.aiter_bytes()
        received = await anext(chunks)
        # the frames of the first block are small enough to be under way all, and the second is asked for
        await until(lambda: service.worker.asked == 2)
        service.worker.permit(2)
        received += b"".join([chunk async for chunk in chunks])
        assert depths(received) == [float(1 + n) for n in range(1, 13)]
        assert service.worker.rows == [1, 1, 1]

    tell(story)


def test_a_slow_reader_gets_no_more_than_half_a_block_ahead_of_it(tell: Callable[..., None]) -> None:
    block = BLOCK * 3 * 4 * WIDE[0] * WIDE[1]

    async def story(service: Service) -> None:
        service.worker.permit(100)
        response = await service.open(grid=WIDE, steps=5 * BLOCK)
        received = 0
        async for chunk in response.aiter_bytes():
            received += len(chunk)
            # sockets hold less than a block of 12 MB, and the next is asked for when half of one is taken
            assert service.worker.asked <= (received + block + block // 2) // block + 1
        assert service.worker.rows == [1] * 5

    tell(story)


def test_a_client_that_hangs_up_is_not_computed_any_further(tell: Callable[..., None]) -> None:
    async def story(service: Service) -> None:
        service.worker.permit(1)
        leaving = await service.open(1.0, steps=1000)
        await until(lambda: service.worker.asked == 2)
        staying = asyncio.create_task(service.open(5.0))
        await until(lambda: service.queue.waiting == 1)
        await leaving.aclose()
        await settle()
        # the block under way ends, and no other is asked for
        service.worker.permit(1)
        await until(lambda: service.worker.asked == 3)
        service.worker.permit(100)
        assert depths(await (await staying).aread()) == [float(5 + n) for n in range(1, 13)]
        await settle()
        assert service.worker.rows == [1] * 5
        assert service.queue.waiting == 0

    tell(story)


def test_a_client_that_hangs_up_before_the_first_block_leaves_the_queue(tell: Callable[..., None]) -> None:
    async def story(service: Service) -> None:
        service.worker.permit(1)
        first = await service.open(1.0)
        await until(lambda: service.worker.asked == 2)
        leaving = asyncio.create_task(service.open(2.0))
        await until(lambda: service.queue.waiting == 1)
        leaving.cancel()
        await until(lambda: service.queue.waiting == 0)
        service.worker.permit(100)
        await first.aread()
        assert service.worker.rows == [1, 1, 1]

    tell(story)


def test_rollouts_under_way_are_stepped_together(tell: Callable[..., None]) -> None:
    async def story(service: Service) -> None:
        service.worker.permit(1)
        first = await service.open(1.0)
        await until(lambda: service.worker.asked == 2)
        others = [asyncio.create_task(service.open(float(depth))) for depth in (10, 20, 30)]
        await until(lambda: service.queue.waiting == 3)
        service.worker.permit(100)
        found = [await response.aread() for response in [first, *[await task for task in others]]]
        for depth, data in zip((1, 10, 20, 30), found, strict=True):
            assert depths(data) == [float(depth + n) for n in range(1, 13)]
        assert sum(service.worker.rows) == 12
        assert max(service.worker.rows) >= 3

    tell(story)


def test_a_deadline_ends_the_stream_with_a_record_that_says_so(tell: Callable[..., None]) -> None:
    async def story(service: Service) -> None:
        service.worker.permit(4)
        await (await service.open()).aread()  # all threads are started
        response = await service.open(timeout_ms=2000)
        assert response.status_code == 200
        *frames, failure = told(await response.aread())
        assert [frame["step"] for frame in frames] == [1, 2, 3, 4]
        assert (failure["error"]["type"], failure["error"]["status"]) == ("deadline-exceeded", 504)
        assert failure["error"]["request_id"] == response.headers["X-Request-Id"]
        assert service.queue.waiting == 0
        late = await service.open(timeout_ms=30)
        assert late.status_code == 504
        service.worker.permit(100)

    tell(story)


def test_a_broken_block_ends_its_streams_without_its_trace(tell: Callable[..., None]) -> None:
    async def story(service: Service) -> None:
        service.worker.permit(100)
        response = await service.open(POISON - 2 * BLOCK)
        data = await response.aread()
        *frames, failure = told(data)
        assert len(frames) == 2 * BLOCK
        assert (failure["error"]["type"], failure["error"]["status"]) == ("internal", 500)
        assert b"poison" not in data
        refused = await service.open(POISON)
        assert refused.status_code == 500
        assert depths(await (await service.open(1.0)).aread())[-1] == 13.0

    tell(story)


def test_numbers_that_mean_nothing_are_not_sent(tell: Callable[..., None]) -> None:
    async def story(service: Service) -> None:
        service.worker.permit(100)
        response = await service.open(994.0)
        *frames, failure = told(await response.aread())
        assert [frame["step"] for frame in frames] == [1, 2, 3, 4, 5, 6]
        problem = failure["error"]
        assert (problem["type"], problem["field"], problem["rule"]) == ("invalid-field", "h", "diverged")
        assert "step 7" in problem["detail"]
        assert "method=solver" in problem["detail"]

    tell(story)


def test_a_full_queue_refuses_new_rollouts_and_lets_the_one_under_way_go_on(
    tell: Callable[..., None],
) -> None:
    async def story(service: Service) -> None:
        service.worker.permit(1)
        first = await service.open(1.0)
        await until(lambda: service.worker.asked == 2)
        refused = await service.open(3.0)
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1
        service.worker.permit(100)
        assert depths(await first.aread())[-1] == 13.0

    tell(story, queue_bytes=3 * 16 * 16 * 4)


def test_a_rollout_under_way_is_not_refused_by_a_queue_that_is_full_meanwhile(
    tell: Callable[..., None],
) -> None:
    async def story(service: Service) -> None:
        service.worker.permit(2)
        # more than the sockets hold: it asks for no more until it is read
        waiting = await service.open(grid=WIDE, steps=2 * BLOCK)
        await (await service.open(steps=BLOCK)).aread()
        filling = asyncio.create_task(service.open(1.0))
        await until(lambda: service.worker.asked == 3)
        reading = asyncio.create_task(waiting.aread())
        await until(lambda: service.queue.waiting == 1)
        service.worker.permit(100)
        assert len(depths(await reading)) == 2 * BLOCK
        assert depths(await (await filling).aread())[-1] == 13.0

    tell(story, queue_bytes=3 * 16 * 16 * 4)


def test_a_stream_holds_the_memory_of_its_frames_until_it_ends(tell: Callable[..., None]) -> None:
    held = len(body(1.0)) + (BLOCK + BLOCK // 2) * 3 * 16 * 16 * 4

    async def story(service: Service) -> None:
        service.worker.permit(1)
        first = await service.open(1.0)
        await until(lambda: service.worker.asked == 2)
        refused = await service.open(2.0)
        assert (refused.status_code, (json.loads(await refused.aread()))["type"]) == (429, "overloaded")
        service.worker.permit(100)
        await first.aread()
        again = await service.open(4.0)
        assert depths(await again.aread())[-1] == 16.0

    tell(story, inflight_bytes=held)


def test_who_reads_nothing_is_let_go(tell: Callable[..., None]) -> None:
    async def story(service: Service) -> None:
        service.worker.permit(1000)
        stalled = await service.open(grid=WIDE, steps=1000)
        while (response := await service.open(2.0)).status_code == 429:
            await response.aread()
        assert depths(await response.aread())[-1] == 14.0
        assert service.worker.asked < 100
        # the client is still there, and what was written to it unread
        connection = service.connections[0]
        await until(lambda: connection not in connection.connections)
        assert not stalled.is_closed
        with pytest.raises(httpx.TransportError):
            await stalled.aread()

    tell(story, stall_seconds=0.05, inflight_bytes=5 * 3 * 4 * WIDE[0] * WIDE[1] + 1000)


def test_the_warm_up_steps_every_model_on_every_grid(
    evolution_versions: tuple[LoadedVersion, ...], serve_with: Any
) -> None:
    async def story() -> None:
        worker = SteppedWorker()
        worker.permit(100)
        limits = Limits(grid_side=512)
        served = serve_with(worker, evolution_versions, limits, BatchRules(max_batch=8))
        async with served.solver as solver:
            await solver.warm_up()
        # but for the one that needs more frames than a rollout starts from
        assert [bucket.grid.shape for bucket in worker.buckets] == [(16, 24), (16, 16), (512, 512)]

    asyncio.run(story())
