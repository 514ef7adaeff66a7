"""Rollouts of a service in processes: many share batches, and a slow reader holds nobody up."""

import asyncio
import io
import json
import re
from collections.abc import AsyncIterator, Iterator

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from server_process import Server, running

from problems import EVOLUTION_PROBLEMS, Grid
from service.client import Client

ROLLOUT = "/v1/problems/shallow_water/rollout"
NPY, FRAMES = "application/x-npy", "application/x-npy-stream"
SIDE, MANY = 64, 200


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    imported = json.dumps({"drift": {"function": "served_models:drift", "arguments": {"frames": 4}}})
    with running(MNO_IMPORTED=imported, MNO_MODELS="darcy") as server:
        yield server


def water(seed: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    h = 1 + rng.random((SIDE, SIDE))
    return np.stack([h, *(rng.standard_normal((2, SIDE, SIDE)) / 10)]).astype(np.float32)


async def frames(
    client: httpx.AsyncClient, state: NDArray[np.float32], steps: int
) -> AsyncIterator[NDArray[np.float32]]:
    """The fields (channel, y, x) of every frame, as they come."""
    body = io.BytesIO()
    np.save(body, state)
    query = {"model": "drift", "steps": steps, "fields": "h,hu,hv"}
    headers = {"Content-Type": NPY, "Accept": FRAMES}
    async with client.stream(
        "POST", ROLLOUT, content=body.getvalue(), params=query, headers=headers
    ) as response:
        assert response.status_code == 200, await response.aread()
        held, records = b"", 0
        async for chunk in response.aiter_raw():
            held += chunk
            while len(held) >= 8 and len(held) >= 8 + (size := int.from_bytes(held[:8], "little")):
                record, held = held[8 : 8 + size], held[8 + size :]
                records += 1
                # records come in pairs: what is known about the frame, and its fields
                if records % 2 == 0:
                    yield np.load(io.BytesIO(record))


async def metric(client: httpx.AsyncClient, name: str, **labels: str) -> float:
    """Sum of a metric over all its label sets that have ``labels``."""
    total = 0.0
    for line in (await client.get("/metrics")).text.splitlines():
        found = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
        if found and all(f'{key}="{value}"' in (found[1] or "") for key, value in labels.items()):
            total += float(found[2])
    return total


@pytest.mark.slow
def test_many_rollouts_share_batches(server: Server) -> None:
    async def run() -> float:
        limits = httpx.Limits(max_connections=MANY + 1)
        async with httpx.AsyncClient(base_url=server.address, timeout=300, limits=limits) as client:

            async def one(seed: int) -> int:
                state, count = water(seed), 0
                async for frame in frames(client, state, 20):
                    count += 1
                    np.testing.assert_array_equal(frame, np.roll(state, count, axis=-1))
                return count

            assert await asyncio.gather(*map(one, range(MANY))) == [20] * MANY
            rows = await metric(client, "mno_batch_rows_sum", model="drift")
            batches = await metric(client, "mno_batch_rows_count", model="drift")
            return rows / batches

    mean = asyncio.run(run())
    print(f"\n{MANY} rollouts at once: {mean:.1f} rows a batch")
    assert mean > 4


@pytest.mark.slow
def test_a_slow_reader_is_not_run_ahead_of_and_holds_nobody_up(server: Server) -> None:
    async def run() -> tuple[float, int]:
        async with httpx.AsyncClient(base_url=server.address, timeout=300) as client:
            before = await metric(client, "mno_rollout_frames_total", problem="shallow_water")
            state = water(0)
            slow = frames(client, state, 1000)
            np.testing.assert_array_equal(await anext(slow), np.roll(state, 1, axis=-1))
            # it reads no more; meanwhile others run from start to end
            for seed in range(4):
                assert len([frame async for frame in frames(client, water(seed), 100)]) == 100
            after = await metric(client, "mno_rollout_frames_total", problem="shallow_water")
            count = 1
            async for frame in slow:
                count += 1
                np.testing.assert_array_equal(frame, np.roll(state, count, axis=-1))
            return after - before - 4 * 100, count

    ahead, count = asyncio.run(run())
    print(f"\n{ahead:.0f} frames of 48 KiB were computed ahead of a reader that stopped")
    # what the sockets of both sides hold, and a block
    assert ahead < 200
    assert count == 1000


@pytest.mark.slow
def test_steps_are_compared_in_the_solver_s_own_process(server: Server) -> None:
    state, problem = water(3), EVOLUTION_PROBLEMS["shallow_water"]
    grid = Grid((SIDE, SIDE), problem.grid.extent, problem.grid.origin)
    with Client(server.address) as client:
        found = list(client.rollout("shallow_water", state, model="drift", steps=10, defects="all"))
    before = dict(zip(("h", "hu", "hv"), state.astype(np.float64), strict=True))
    for frame in found:
        stepped = next(problem.frames(before, grid, "hllc-muscl-v1", "periodic", frame.step - 1))
        after = {name: values.astype(np.float64) for name, values in frame.fields.items()}
        squares = [np.mean((after[name] - stepped[name]) ** 2) for name in stepped]
        assert frame.defect == pytest.approx(np.sqrt(np.mean(squares)))
        assert frame.exponential_bound is None
        before = after
    assert [frame.step for frame in found] == list(range(1, 11))
