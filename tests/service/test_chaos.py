"""Ten thousand requests while everything changes: versions are swapped, workers killed, clients leave."""

import asyncio
import io
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from server_process import Server, running

from model_store import Card, FieldRecord, Store, open_store
from operators import surrogate_from_config
from operators.axial_mno import AxialMnoConfig

REQUESTS, CLIENTS, SWAPS, KILLS = 10_000, 64, 20, 5
CONFIG = AxialMnoConfig(channels=8, inner_channels=8, states=2, rank=1, blocks=1)
NPY = "application/x-npy"
EXTENT = (1.0, 1.0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """``darcy@1`` and ``darcy@2``, which answer differently; production is the first."""
    store = open_store(f"file:{tmp_path_factory.mktemp('chaos') / 'store'}")
    card = Card(
        problem="darcy",
        scheme="tpfa-harmonic-v1",
        operator=CONFIG,
        grids=((32, 32),),
        inputs=(FieldRecord(name="permeability", unit="m^2"),),
        outputs=(FieldRecord(name="pressure", unit="Pa"),),
        training_hull={"contrast_min": 1.0, "contrast_max": 10.0},
        dataset={"sha256": "0" * 64},
        run="",
        metrics={},
        code_version="0",
        created=datetime(2026, 1, 1, tzinfo=UTC),
    )
    for seed in (1, 2):
        torch.manual_seed(seed)
        store.publish("darcy", surrogate_from_config(CONFIG).state_dict(), card)
    store.set_alias("darcy", "production", 1, expected=None)
    return store


@pytest.fixture(scope="module")
def server(store: Store) -> Iterator[Server]:
    with running("--store", store.url, "--models", "darcy", MNO_ALIAS_POLL_SECONDS="600") as server:
        yield server


@dataclass
class Tally:
    """What became of the requests."""

    kinds: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.kinds.total()


@dataclass(frozen=True)
class Question:
    """A field, and what each version answers to a source of 1."""

    body: bytes
    answers: dict[str, NDArray[np.float32]]


def questions(store: Store) -> list[Question]:
    rng = np.random.default_rng(0)
    fields = np.exp(rng.standard_normal((16, 32, 32))).astype(np.float32)
    answers: dict[str, NDArray[np.float32]] = {}
    for number in (1, 2):
        surrogate = store.load("darcy", number).surrogate
        with torch.inference_mode():
            given = torch.from_numpy(fields)[:, None]
            answers[f"darcy@{number}"] = surrogate(given, torch.ones(len(fields)), EXTENT).numpy()[:, 0]
    # an answer of one version must not be taken for one of the other
    assert not np.allclose(answers["darcy@1"], answers["darcy@2"], rtol=1e-2)
    return [
        Question(npy(values), {name: rows[row] for name, rows in answers.items()})
        for row, values in enumerate(fields)
    ]


def npy(values: NDArray[np.float32]) -> bytes:
    body = io.BytesIO()
    np.save(body, values)
    return body.getvalue()


async def one_request(
    client: httpx.AsyncClient, question: Question, source: float, tally: Tally, patience: float | None
) -> None:
    """Ask once; what comes back is counted. ``patience``: leave after so many seconds."""
    query = {"error": "none", "source": source}
    headers = {"Content-Type": NPY, "Accept": NPY}
    asking = client.post("/v1/problems/darcy/solve", content=question.body, params=query, headers=headers)
    try:
        async with asyncio.timeout(patience):
            response = await asking
    except TimeoutError:
        tally.kinds["left"] += 1
        return
    if response.status_code in (429, 503):
        tally.kinds["retryable"] += 1
        if "retry-after" not in response.headers:
            tally.wrong.append(f"{response.status_code} without Retry-After")
        return
    tally.kinds[str(response.status_code)] += 1
    if response.status_code != 200:
        tally.wrong.append(response.text)
        return
    version = response.headers["mno-model"]
    expected = source * question.answers[version]
    found = np.load(io.BytesIO(response.content))
    if not np.allclose(found, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max()):
        tally.wrong.append(f"{version} answered what it does not answer to this field and source {source}")


async def one_client(server: Server, pool: list[Question], number: int, count: int, tally: Tally) -> None:
    rng = random.Random(number)
    async with httpx.AsyncClient(base_url=server.address, timeout=120) as client:
        for _ in range(count):
            # a third of the clients leave at random
            patience = rng.uniform(0.0, 0.1) if number % 3 == 0 else None
            await one_request(client, rng.choice(pool), float(rng.randint(1, 1000)), tally, patience)


async def swap(server: Server, store: Store, tally: Tally) -> int:
    """Move the alias to and fro while requests go on; returns how often it was served."""
    async with httpx.AsyncClient(base_url=server.address, timeout=120) as client:
        for turn in range(SWAPS):
            await reached(tally, (turn + 1) * REQUESTS // (SWAPS + 2))
            old, new = (1, 2) if turn % 2 == 0 else (2, 1)
            await asyncio.to_thread(store.set_alias, "darcy", "production", new, expected=old)
            response = await client.post("/v2/repository/models/darcy/load")
            assert response.status_code == 200, response.text
            answer = await client.get("/v1/models/darcy")
            assert new in answer.json()["loaded"]
    return SWAPS


async def kill(server: Server, tally: Tally) -> int:
    """Kill a worker, whichever it is, while requests go on."""
    rng = random.Random(1)
    for turn in range(KILLS):
        await reached(tally, (2 * turn + 1) * REQUESTS // (2 * KILLS + 1))
        while not (workers := server.workers()):
            await asyncio.sleep(0.01)
        os.kill(rng.choice(workers), signal.SIGKILL)
    return KILLS


async def reached(tally: Tally, count: int) -> None:
    while tally.total < count:
        await asyncio.sleep(0.01)


async def load(server: Server, pool: list[Question], requests: int, tally: Tally) -> None:
    share = requests // CLIENTS
    counts = [share + (number < requests % CLIENTS) for number in range(CLIENTS)]
    await asyncio.gather(*(one_client(server, pool, n, count, tally) for n, count in enumerate(counts)))


async def settled(server: Server) -> None:
    """Wait until no request is under way and one version is left."""
    async with httpx.AsyncClient(base_url=server.address, timeout=60) as client:
        while True:
            text = (await client.get("/metrics")).text
            served = [line for line in text.splitlines() if line.startswith("mno_version_served{")]
            if sum(float(line.split()[-1]) for line in served) == 1:
                return
            await asyncio.sleep(0.05)


@pytest.mark.slow
def test_every_request_has_one_right_answer_or_one_error_that_can_be_retried(
    server: Server, store: Store
) -> None:
    pool = questions(store)

    async def quiet_load() -> None:
        await load(server, pool, 2000, Tally())
        await settled(server)

    async def run() -> Tally:
        tally = Tally()
        swaps, kills, _ = await asyncio.gather(
            swap(server, store, tally), kill(server, tally), load(server, pool, REQUESTS, tally)
        )
        assert (swaps, kills) == (SWAPS, KILLS)
        await settled(server)
        return tally

    asyncio.run(quiet_load())
    memory, files, processes = server.memory(), server.open_files(), len(server.tree())
    tally = asyncio.run(run())
    # the same load again, so that both measurements follow the same kind of work
    asyncio.run(quiet_load())
    assert tally.wrong == []
    assert tally.total == REQUESTS
    assert tally.kinds["200"] > REQUESTS / 2
    assert tally.kinds["left"] > 0
    print(f"\n{dict(tally.kinds)}; memory {memory} -> {server.memory()} kB; files {files}")
    assert len(server.tree()) == processes
    assert server.open_files() == files
    assert server.memory() <= 1.05 * memory
    assert server.stop() == 0
