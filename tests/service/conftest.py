"""A tiny published surrogate, a server on a free port, and a worker that waits for the test."""

import asyncio
import queue
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model_store import Card, FieldRecord, open_store
from operators import Surrogate, surrogate_from_config
from operators.axial_mno import AxialMnoConfig
from service.serve import Service
from service.settings import Settings
from service.worker import Batch, Solutions, Worker, joined

CONFIG = AxialMnoConfig(channels=8, inner_channels=8, states=2, rank=1, blocks=1)
GRIDS = ((32, 32), (32, 48))


@pytest.fixture(scope="session")
def surrogate() -> Surrogate:
    torch.manual_seed(0)
    return surrogate_from_config(CONFIG).eval()


@pytest.fixture(scope="session")
def store_url(tmp_path_factory: pytest.TempPathFactory, surrogate: Surrogate) -> str:
    """A store with ``darcy@1`` and ``darcy@2``; production is the first."""
    url = f"file:{tmp_path_factory.mktemp('service') / 'store'}"
    store = open_store(url)
    card = Card(
        problem="darcy",
        scheme="tpfa-harmonic-v1",
        operator=CONFIG,
        grids=GRIDS,
        inputs=(FieldRecord(name="permeability", unit="m^2"),),
        outputs=(FieldRecord(name="pressure", unit="Pa"),),
        training_hull={"contrast_min": 1.0, "contrast_max": 10.0},
        dataset={"sha256": "0" * 64},
        run="",
        metrics={},
        code_version="0",
        created=datetime(2026, 1, 1, tzinfo=UTC),
    )
    for _ in range(2):
        store.publish("darcy", surrogate.state_dict(), card)
    store.set_alias("darcy", "production", 1, expected=None)
    return url


@pytest.fixture(scope="session")
def settings(store_url: str) -> Settings:
    # one thread, so that a forward pass in a test gives the same bits as one in the service
    return Settings(
        store=store_url,
        models=("darcy", "darcy@2"),
        http_port=0,
        threads=1,
        device="cpu",
        limits={"body_bytes": 2**20, "batch": 8, "grid_side": 64},
    )


@pytest.fixture(scope="session")
def address(settings: Settings) -> Iterator[str]:
    """A real server in a thread, shared by the session: each test also shows that it survived the others."""
    ready: queue.Queue[str] = queue.Queue()
    service = Service(settings)

    def run() -> None:
        try:
            service.run(lambda address, _: ready.put(address))
        finally:
            ready.put("")

    thread = threading.Thread(target=run)
    thread.start()
    address = ready.get()
    assert address, "the service did not start"
    yield address
    service.stop()
    thread.join(timeout=30)
    assert not thread.is_alive()


@pytest.fixture
def http(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def permeability() -> NDArray[np.float32]:
    """Smooth fields [3, 32, 32] of contrast below 10."""
    y, x = np.meshgrid(np.linspace(0, 1, 32), np.linspace(0, 1, 32), indexing="ij")
    waves = [np.sin(5 * x + 3 * y), np.cos(7 * y), np.sin(4 * x) * np.cos(9 * y)]
    return np.stack([np.exp(wave) for wave in waves]).astype(np.float32)


class GatedWorker(Worker):
    """Doubles the permeability, once the gate is open; ``poison`` among the sources breaks the batch."""

    POISON = -666.0

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.gate = asyncio.Event()
        self.busy = asyncio.Event()
        self.closed = False

    async def run(self, parts: Sequence[Batch]) -> Solutions:
        batch = joined(parts)
        self.batches.append(batch)
        self.busy.set()
        await self.gate.wait()
        if self.POISON in batch.fields["source"]:
            raise ArithmeticError("poisoned")
        return Solutions({"pressure": 2 * batch.fields["permeability"]}, (0,) * batch.rows)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def gated_worker() -> type[GatedWorker]:
    return GatedWorker
