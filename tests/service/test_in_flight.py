"""Requests under way at the same time, over real connections, with a worker that waits for the test."""

import asyncio
import gzip
import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import uvicorn
from numpy.typing import NDArray

from service.batcher import Batcher
from service.compute import advance_reference, solve_reference
from service.http import create_app
from service.serve import open_models
from service.settings import Settings
from service.solver import Queues, Solver
from service.worker import ThreadWorker

SOLVE = "/v1/problems/darcy/solve?error=none"
NPY = {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}


@dataclass
class Service:
    """A service whose surrogate is a gated worker, and a client of it."""

    worker: Any
    queue: Batcher
    client: httpx.AsyncClient

    def post(self, value: float, **options: Any) -> "asyncio.Task[httpx.Response]":
        """Ask for a field of this value."""
        stream = io.BytesIO()
        np.save(stream, np.full((32, 32), value, dtype=np.float32))
        request = self.client.post(SOLVE, content=stream.getvalue(), headers=NPY, params=options)
        return asyncio.get_running_loop().create_task(request)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let others run until the condition holds."""
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0)


@asynccontextmanager
async def running(
    settings: Settings, worker: Any, queue_bytes: int = 10**6, **limits: int
) -> AsyncIterator[Service]:
    settings = settings.model_copy(update={"limits": settings.limits.model_copy(update=limits)})
    models = open_models(settings)
    queues = [
        Batcher(each, max_batch=8, queue_bytes=queue_bytes, queue_seconds=100.0)
        for each in (worker, ThreadWorker(solve_reference), ThreadWorker(advance_reference))
    ]
    solver = Solver(models, Queues(*queues), settings.limits)
    app = create_app(solver, models, settings.limits)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    async with solver:
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0)
        port = server.servers[0].sockets[0].getsockname()[1]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield Service(worker, queues[0], client)
        server.should_exit = True
        await serving


def value_of(response: httpx.Response) -> float:
    assert response.status_code == 200, response.text
    pressure: NDArray[Any] = np.load(io.BytesIO(response.content))
    return float(pressure[0, 0])


def test_concurrent_requests_share_a_batch(settings: Settings, gated_worker: Any) -> None:
    async def story() -> None:
        async with running(settings, gated_worker()) as service:
            tasks = [service.post(1.0)]
            await service.worker.busy.wait()
            tasks += [service.post(float(value)) for value in range(2, 7)]
            await service.until(lambda: service.queue.waiting == 5)
            service.worker.gate.set()
            answers = [value_of(response) for response in await asyncio.gather(*tasks)]
            assert answers == [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]
            assert [batch.rows for batch in service.worker.batches] == [1, 5]

    asyncio.run(story())


def test_a_client_that_hangs_up_is_not_computed_and_disturbs_nobody(
    settings: Settings, gated_worker: Any
) -> None:
    async def story() -> None:
        async with running(settings, gated_worker()) as service:
            first = service.post(1.0)
            await service.worker.busy.wait()
            leaving, staying = service.post(2.0), service.post(3.0)
            await service.until(lambda: service.queue.waiting == 2)
            leaving.cancel()
            await service.until(lambda: service.queue.waiting == 1)
            service.worker.gate.set()
            assert (value_of(await first), value_of(await staying)) == (2.0, 6.0)
            assert [batch.rows for batch in service.worker.batches] == [1, 1]

    asyncio.run(story())


def test_a_deadline_leaves_the_queue(settings: Settings, gated_worker: Any) -> None:
    async def story() -> None:
        async with running(settings, gated_worker()) as service:
            first = service.post(1.0)
            await service.worker.busy.wait()
            late = await service.post(2.0, timeout_ms=30)
            assert (late.status_code, late.json()["type"]) == (504, "deadline-exceeded")
            assert service.queue.waiting == 0
            service.worker.gate.set()
            assert value_of(await first) == 2.0

    asyncio.run(story())


def test_a_full_queue_is_429_with_a_time_to_come_back(settings: Settings, gated_worker: Any) -> None:
    async def story() -> None:
        async with running(settings, gated_worker(), queue_bytes=5000) as service:
            first = service.post(1.0)
            await service.worker.busy.wait()
            refused = await service.post(2.0)
            assert (refused.status_code, refused.json()["type"]) == (429, "overloaded")
            assert int(refused.headers["Retry-After"]) >= 1
            service.worker.gate.set()
            assert value_of(await first) == 2.0
            assert value_of(await service.post(2.0)) == 4.0

    asyncio.run(story())


def test_a_broken_batch_is_500_without_its_trace_and_health_answers_meanwhile(
    settings: Settings, gated_worker: Any
) -> None:
    async def story() -> None:
        async with running(settings, gated_worker()) as service:
            broken = service.post(1.0, source=gated_worker.POISON)
            await service.worker.busy.wait()
            assert (await service.client.get("/healthz/ready")).status_code == 200
            service.worker.gate.set()
            response = await broken
            assert (response.status_code, response.json()["type"]) == (500, "internal")
            assert "poison" not in response.text
            assert response.json()["request_id"] == response.headers["X-Request-Id"]
            assert value_of(await service.post(2.0)) == 4.0

    asyncio.run(story())


BODY = 128 + 4 * 32 * 32


def test_bodies_under_way_are_bounded_until_their_answers_are_written(
    settings: Settings, gated_worker: Any
) -> None:
    async def story() -> None:
        async with running(settings, gated_worker(), inflight_bytes=2 * BODY) as service:
            two = [service.post(1.0), service.post(2.0)]
            await service.until(lambda: service.queue.waiting + len(service.worker.batches) == 2)
            refused = await service.post(3.0)
            assert (refused.status_code, refused.json()["type"]) == (429, "overloaded")
            assert int(refused.headers["Retry-After"]) >= 1
            service.worker.gate.set()
            assert [value_of(await task) for task in two] == [2.0, 4.0]
            assert value_of(await service.post(3.0)) == 6.0

    asyncio.run(story())


def test_json_counts_for_what_it_becomes_also_when_compressed(settings: Settings, gated_worker: Any) -> None:
    body = b'{"error": "none", "permeability": ' + str(np.ones((32, 32)).tolist()).encode() + b"}"
    packed = gzip.compress(body)
    assert 16 * len(packed) < 16 * len(body) // 4

    async def story() -> None:
        async with running(settings, gated_worker(), inflight_bytes=BODY + 8 * len(body)) as service:
            first = service.post(1.0)
            await service.worker.busy.wait()
            for content, encoding in ((body, "identity"), (packed, "gzip")):
                headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
                refused = await service.client.post(SOLVE.partition("?")[0], content=content, headers=headers)
                assert refused.status_code == 429, refused.text
            service.worker.gate.set()
            assert value_of(await first) == 2.0
            # alone, a request gets what the limits on one request let through
            alone = await service.client.post(SOLVE.partition("?")[0], content=packed, headers=headers)
            assert alone.status_code == 200, alone.text

    asyncio.run(story())


def test_json_has_a_limit_of_its_own_also_after_decompression(settings: Settings, gated_worker: Any) -> None:
    async def story() -> None:
        async with running(settings, gated_worker(), json_bytes=BODY - 1) as service:
            large = b" " * BODY
            for content, encoding in ((large, "identity"), (gzip.compress(large), "gzip")):
                headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
                refused = await service.client.post(SOLVE, content=content, headers=headers)
                assert (refused.status_code, refused.json()["type"]) == (413, "payload-too-large")
            service.worker.gate.set()
            assert value_of(await service.post(1.0)) == 2.0

    asyncio.run(story())
