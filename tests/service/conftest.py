"""Tiny surrogates, servers on free ports, and a worker that waits for the test."""

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from numpy.typing import DTypeLike, NDArray
from service_thread import running_service
from small_models import SMALL, small_card
from torch import Tensor

from model_store import Card, Catalog, LoadedVersion, Reference, open_store
from operators import EvolutionOperator, EvolutionSurrogate, Surrogate, surrogate_from_config
from operators.shallow_water_mno import ShallowWaterMnoConfig
from service.batching.batcher import Batcher, BatchRules
from service.http.abortable import AbortableProtocol
from service.http.routes import create_app
from service.settings import Limits, Settings
from service.solver import Queues, Solver
from service.versions.local import LocalRepository, local_models
from service.versions.models import Models
from service.versions.routing import Route
from service.workers.compute import Surrogates
from service.workers.reference import advance_reference, bound_errors, solve_reference
from service.workers.worker import Batch, Solutions, ThreadWorker, Worker, joined

GRIDS = ((32, 32), (32, 48))


@pytest.fixture(scope="session")
def surrogate() -> Surrogate:
    torch.manual_seed(0)
    return surrogate_from_config(SMALL).eval()


@pytest.fixture(scope="session")
def store_url(tmp_path_factory: pytest.TempPathFactory, surrogate: Surrogate) -> str:
    """A store with ``darcy@1`` and ``darcy@2``; production is the first."""
    url = f"file:{tmp_path_factory.mktemp('service') / 'store'}"
    store = open_store(url)
    card = small_card(grids=GRIDS)
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
        grpc_port=0,
        processes="none",
        threads=1,
        device="cpu",
        limits=Limits(body_bytes=2**20, batch=8, grid_side=64),
    )


@pytest.fixture(scope="session")
def address(settings: Settings) -> Iterator[str]:
    """A real server in a thread, shared by the session: each test also shows that it survived the others."""
    with running_service(settings) as (addresses, _):
        yield addresses.http


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

    async def run(self, parts: Sequence[Batch], *, pad_to: int | None = None) -> Solutions:  # noqa: ARG002
        batch = joined(parts)
        self.batches.append(batch)
        self.busy.set()
        await self.gate.wait()
        if self.POISON in batch.fields["source"]:
            raise ArithmeticError("poisoned")
        return Solutions({"pressure": 2 * batch.fields["permeability"]}, (0,) * batch.rows)

    @property
    def available(self) -> bool:
        return True

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        return np.empty(shape, dtype)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def gated_worker() -> type[GatedWorker]:
    return GatedWorker


class Drift(EvolutionOperator):
    """Moves everything by a cell along x a frame; what a block adds to hu shows where the block began."""

    history = 1
    frames = 4
    fields = 3

    def forward(
        self,
        history: Tensor,
        extent: tuple[float, float],  # noqa: ARG002
        chosen: Sequence[int] | None = None,
    ) -> Tensor:
        block = torch.stack([history[:, -1].roll(n, dims=-1) for n in range(1, self.frames + 1)], dim=1)
        block = block + 0.25 * torch.arange(1, self.frames + 1)[:, None, None, None] ** 2 * torch.tensor(
            [0.0, 1.0, 0.0]
        ).reshape(3, 1, 1)
        return block if chosen is None else block[:, list(chosen)]


@pytest.fixture(scope="session")
def drift() -> EvolutionSurrogate:
    return EvolutionSurrogate(Drift(), channels=3).eval()


WATER_CONFIG = ShallowWaterMnoConfig(
    channels=8, inner_channels=8, states=2, rank=1, blocks=1, context=4, hidden=4, frames=4
)


@pytest.fixture(scope="session")
def water_card() -> Card:
    """Of a model of shallow water on three grids."""
    return small_card(
        WATER_CONFIG,
        "shallow_water",
        grids=((16, 24), (16, 16), (512, 512)),
        training_hull={"depth_min_min": 0.5, "depth_max_max": 3.0},
        calibration={"perturbation_l2_q90.frame_10": 0.2, "perturbation_l2_q90.frame_20": 0.4},
    )


@pytest.fixture(scope="session")
def water_store(tmp_path_factory: pytest.TempPathFactory, water_card: Card) -> str:
    """A store with ``shallow_water@1``, a real operator that has learnt nothing."""
    torch.manual_seed(0)
    url = f"file:{tmp_path_factory.mktemp('water') / 'store'}"
    card = water_card.model_copy(update={"grids": ((16, 24), (16, 16))})
    open_store(url).publish("shallow_water", surrogate_from_config(WATER_CONFIG).state_dict(), card)
    return url


@pytest.fixture(scope="session")
def evolution_versions(drift: EvolutionSurrogate, water_card: Card) -> tuple[LoadedVersion, ...]:
    """``shallow_water@1``, which drifts, and ``short@1``, which starts from three frames."""
    three = EvolutionSurrogate(Drift(), channels=3)
    three.operator.history = 3
    return tuple(
        LoadedVersion(Reference(name, 1), water_card, surrogate)
        for name, surrogate in (("shallow_water", drift), ("short", three))
    )


EVOLUTION_NAMES = {
    "shallow_water": Route(name="shallow_water", main=1),
    "shallow_water@production": Route(name="shallow_water", main=1),
    "short": Route(name="short", main=1),
}


@dataclass(frozen=True)
class Served:
    """What a test looks into: the queue of the surrogates, and who answers."""

    surrogates: Batcher
    models: Models
    solver: Solver


def served_by(
    worker: Worker,
    versions: Sequence[LoadedVersion],
    limits: Limits,
    rules: BatchRules,
    names: dict[str, Route] = EVOLUTION_NAMES,
) -> Served:
    """A solver in this process: one worker has all the versions, and threads compute the rest."""
    surrogates = Batcher(worker, rules)
    models = local_models(versions, names, lambda _: surrogates)
    others = (solve_reference, advance_reference, bound_errors)
    queues = Queues(*(Batcher(ThreadWorker(each), rules) for each in others))
    return Served(surrogates, models, Solver(models, queues, limits))


@asynccontextmanager
async def serving(
    served: Served, limits: Limits, protocol: Callable[..., AbortableProtocol] = AbortableProtocol
) -> AsyncIterator[str]:
    """A server in the present event loop: its address."""
    repository = LocalRepository(Catalog([]), served.models, lambda _: served.surrogates)
    app = create_app(served.solver, served.models, repository, limits)
    server = uvicorn.Server(uvicorn.Config(app, http=protocol, port=0, log_level="warning", lifespan="off"))
    async with served.solver:
        running = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        server.should_exit = True
        await running


@pytest.fixture(scope="session")
def serve() -> Callable[..., AbstractAsyncContextManager[str]]:
    return serving


@pytest.fixture(scope="session")
def serve_with() -> Callable[..., Served]:
    return served_by


@pytest.fixture(scope="session")
def rollout_address(evolution_versions: tuple[LoadedVersion, ...]) -> Iterator[str]:
    """A real server in a thread, on the surrogates that drift."""
    ready: queue.Queue[tuple[str, Callable[[], object]]] = queue.Queue()

    async def answer() -> None:
        worker = ThreadWorker(Surrogates(evolution_versions, torch.device("cpu")))
        limits = Limits(body_bytes=2**20, grid_side=64, rollout_steps=100)
        served = served_by(worker, evolution_versions, limits, BatchRules(max_batch=8, queue_seconds=100.0))
        over = asyncio.Event()
        async with serving(served, limits) as address:
            loop = asyncio.get_running_loop()
            ready.put((address, lambda: loop.call_soon_threadsafe(over.set)))
            await over.wait()

    thread = threading.Thread(target=lambda: asyncio.run(answer()))
    thread.start()
    address, stop = ready.get(timeout=60)
    yield address
    stop()
    thread.join(timeout=30)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def water() -> NDArray[np.float32]:
    """A state (h, hu, hv) [3, 16, 24] without any symmetry; its numbers have few binary digits."""
    rng = np.random.default_rng(5)
    h = 1 + rng.integers(0, 64, (16, 24)) / 64
    return np.stack([h, *(rng.integers(-16, 16, (2, 16, 24)) / 64)]).astype(np.float32)
