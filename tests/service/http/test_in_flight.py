"""Requests under way at the same time, over real connections, with a worker that waits for the test."""

import asyncio
import gzip
import io
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from model_store import open_catalog
from service.batching.batcher import Batcher, BatchRules
from service.settings import Settings
from service.versions.routing import Route

SOLVE = "/v1/problems/darcy/solve?error=none"
INFER = "/v2/models/darcy/infer"
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


Running = Callable[..., AbstractAsyncContextManager[Service]]


@pytest.fixture
def running(settings: Settings, serve: Any, serve_with: Any) -> Running:
    """Serves ``darcy@1`` with a worker that waits for the test."""
    assert settings.store is not None
    version = open_catalog(settings.store).load("darcy", 1)

    @asynccontextmanager
    async def run(worker: Any, queue_bytes: int = 10**6, **limits: int) -> AsyncIterator[Service]:
        chosen = settings.limits.model_copy(update=limits)
        rules = BatchRules(max_batch=8, queue_bytes=queue_bytes, queue_seconds=100.0)
        served = serve_with(worker, [version], chosen, rules, {"darcy": Route(name="darcy", main=1)})
        async with (
            serve(served, chosen) as address,
            httpx.AsyncClient(base_url=address, timeout=30) as client,
        ):
            yield Service(worker, served.surrogates, client)

    return run


def value_of(response: httpx.Response) -> float:
    assert response.status_code == 200, response.text
    pressure: NDArray[Any] = np.load(io.BytesIO(response.content))
    return float(pressure[0, 0])


def test_concurrent_requests_share_a_batch(running: Running, gated_worker: Any) -> None:
    async def story() -> None:
        async with running(gated_worker()) as service:
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
    running: Running, gated_worker: Any
) -> None:
    async def story() -> None:
        async with running(gated_worker()) as service:
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


def test_a_deadline_leaves_the_queue(running: Running, gated_worker: Any) -> None:
    async def story() -> None:
        async with running(gated_worker()) as service:
            first = service.post(1.0)
            await service.worker.busy.wait()
            late = await service.post(2.0, timeout_ms=30)
            assert (late.status_code, late.json()["type"]) == (504, "deadline-exceeded")
            assert service.queue.waiting == 0
            service.worker.gate.set()
            assert value_of(await first) == 2.0

    asyncio.run(story())


def test_a_full_queue_is_429_with_a_time_to_come_back(running: Running, gated_worker: Any) -> None:
    async def story() -> None:
        async with running(gated_worker(), queue_bytes=5000) as service:
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
    running: Running, gated_worker: Any
) -> None:
    async def story() -> None:
        async with running(gated_worker()) as service:
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
    running: Running, gated_worker: Any
) -> None:
    async def story() -> None:
        async with running(gated_worker(), inflight_bytes=2 * BODY) as service:
            two = [service.post(1.0), service.post(2.0)]
            await service.until(lambda: service.queue.waiting + len(service.worker.batches) == 2)
            refused = await service.post(3.0)
            assert (refused.status_code, refused.json()["type"]) == (429, "overloaded")
            assert int(refused.headers["Retry-After"]) >= 1
            service.worker.gate.set()
            assert [value_of(await task) for task in two] == [2.0, 4.0]
            assert value_of(await service.post(3.0)) == 6.0

    asyncio.run(story())


def test_json_counts_for_what_it_becomes_also_when_compressed(running: Running, gated_worker: Any) -> None:
    body = b'{"error": "none", "permeability": ' + str(np.ones((32, 32)).tolist()).encode() + b"}"
    packed = gzip.compress(body)
    assert 16 * len(packed) < 16 * len(body) // 4

    async def story() -> None:
        async with running(gated_worker(), inflight_bytes=BODY + 8 * len(body)) as service:
            first = service.post(1.0)
            await service.worker.busy.wait()
            for content, encoding in ((body, "identity"), (packed, "gzip")):
                headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
                refused = await service.client.post(SOLVE.partition("?")[0], content=content, headers=headers)
                assert refused.status_code == 429, refused.text
            refused = await service.client.post(INFER, content=body)
            assert refused.status_code == 429, refused.text
            service.worker.gate.set()
            assert value_of(await first) == 2.0
            # alone, a request gets what the limits on one request let through
            alone = await service.client.post(SOLVE.partition("?")[0], content=packed, headers=headers)
            assert alone.status_code == 200, alone.text

    asyncio.run(story())


def test_json_has_a_limit_of_its_own_also_after_decompression(running: Running, gated_worker: Any) -> None:
    async def story() -> None:
        async with running(gated_worker(), json_bytes=BODY - 1) as service:
            large = b" " * BODY
            for content, encoding in ((large, "identity"), (gzip.compress(large), "gzip")):
                headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
                refused = await service.client.post(SOLVE, content=content, headers=headers)
                assert (refused.status_code, refused.json()["type"]) == (413, "payload-too-large")
            # what clients of Triton send is JSON, of whatever type they say it is
            for named in ({}, {"Content-Type": "application/octet-stream"}):
                refused = await service.client.post(INFER, content=large, headers=named)
                assert refused.status_code == 413
            service.worker.gate.set()
            assert value_of(await service.post(1.0)) == 2.0

    asyncio.run(story())
