"""Servers of gRPC on free ports: of the surrogates, of those that drift, and in the loop of a test."""

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import grpc
import pytest
import torch
from service_thread import running_service

from model_store import LoadedVersion, open_catalog
from service.access.gate import Guard
from service.access.security import ANYBODY, Security
from service.access.tls import Tls
from service.batching.batcher import Batcher, BatchRules
from service.grpc.server import GrpcServer, create_grpc_server
from service.oip.inference import Inference
from service.oip.statistics import Statistics
from service.processes.supervisor import Addresses
from service.settings import Limits, Settings
from service.solver import Queues, Solver
from service.versions.local import LocalRepository, load_models, local_models
from service.versions.models import Models
from service.versions.repository import Repository
from service.versions.routing import Route
from service.workers.compute import Surrogates
from service.workers.reference import advance_reference, bound_errors, solve_reference
from service.workers.worker import ThreadWorker, Worker

LIMITS = Limits(body_bytes=2**20, batch=8, grid_side=64, rollout_steps=100)
RULES = BatchRules(max_batch=8, queue_seconds=100.0)


@dataclass
class Parts:
    """What a server is put together from."""

    models: Models
    solver: Solver
    repository: Repository
    limits: Limits = LIMITS
    guard: Guard = field(default_factory=lambda: Guard(Security(None, ANYBODY, local=True)))
    draining: Callable[[], bool] = lambda: False

    def server(self) -> GrpcServer:
        inference = Inference(self.solver, self.models, self.limits, Statistics())
        return create_grpc_server(
            self.solver, inference, self.repository, self.limits, self.guard, self.draining
        )


def solver_of(models: Models, limits: Limits = LIMITS) -> Solver:
    others = (solve_reference, advance_reference, bound_errors)
    return Solver(models, Queues(*(Batcher(ThreadWorker(each), RULES) for each in others)), limits)


def parts_of_store(settings: Settings) -> Parts:
    """The versions of a store, each with a thread."""

    def queue_of(version: LoadedVersion) -> Batcher:
        worker = ThreadWorker(Surrogates([version], torch.device("cpu")), lambda: torch.set_num_threads(1))
        return Batcher(worker, RULES)

    catalog = open_catalog(settings.store)
    models = load_models(catalog, settings.models, queue_of)
    return Parts(models, solver_of(models), LocalRepository(catalog, models, queue_of))


def parts_of_worker(
    worker: Worker,
    versions: tuple[LoadedVersion, ...],
    names: dict[str, Route],
    limits: Limits = LIMITS,
) -> Parts:
    """Versions that one worker computes."""
    surrogates = Batcher(worker, RULES)
    models = local_models(versions, names, lambda _: surrogates)
    repository = LocalRepository(open_catalog(None), models, lambda _: surrogates)
    return Parts(models, solver_of(models, limits), repository, limits)


@asynccontextmanager
async def serving_grpc(parts: Parts, tls: Tls | None = None) -> AsyncIterator[tuple[GrpcServer, str]]:
    """A server in the present event loop, and its address."""
    async with parts.solver:
        server = parts.server()
        port = await server.start("127.0.0.1:0", tls)
        try:
            yield server, f"127.0.0.1:{port}"
        finally:
            await server.drain(10.0)


@contextmanager
def in_a_thread(make: Callable[[], Parts], tls: Tls | None = None) -> Iterator[str]:
    """A server with an event loop of its own."""
    ready: queue.Queue[tuple[str, Callable[[], object]] | None] = queue.Queue()

    async def answer() -> None:
        over = asyncio.Event()
        async with serving_grpc(make(), tls) as (_, address):
            loop = asyncio.get_running_loop()
            ready.put((address, lambda: loop.call_soon_threadsafe(over.set)))
            await over.wait()

    def run() -> None:
        try:
            asyncio.run(answer())
        finally:
            ready.put(None)

    thread = threading.Thread(target=run)
    thread.start()
    began = ready.get(timeout=60)
    assert began is not None, "the server did not start"
    address, stop = began
    try:
        yield address
    finally:
        stop()
        thread.join(timeout=30)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def grpc_address(settings: Settings) -> Iterator[str]:
    """``darcy@1`` and ``darcy@2``; each test also shows that it survived the others."""
    with in_a_thread(lambda: parts_of_store(settings)) as address:
        yield address


@pytest.fixture(scope="session")
def water_address(evolution_versions: tuple[LoadedVersion, ...]) -> Iterator[str]:
    """``shallow_water@1``, which drifts by a cell a frame."""
    names = {
        name: Route(name="shallow_water", main=1)
        for name in ("shallow_water", "shallow_water@1", "shallow_water@production")
    }

    def make() -> Parts:
        return parts_of_worker(
            ThreadWorker(Surrogates(evolution_versions, torch.device("cpu"))), evolution_versions, names
        )

    with in_a_thread(make) as address:
        yield address


@pytest.fixture
def channel(grpc_address: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(grpc_address) as channel:
        yield channel


@pytest.fixture
def water_channel(water_address: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(water_address) as channel:
        yield channel


@pytest.fixture
def serve_grpc() -> Callable[..., AbstractAsyncContextManager[tuple[GrpcServer, str]]]:
    return serving_grpc


@pytest.fixture
def thread_of() -> Callable[..., AbstractAsyncContextManager[str]]:
    return in_a_thread  # type: ignore[return-value]


@pytest.fixture
def parts_of() -> Callable[..., Parts]:
    return parts_of_worker


@pytest.fixture
def store_parts() -> Callable[[Settings], Parts]:
    return parts_of_store


@pytest.fixture(scope="session")
def darcy_service(settings: Settings) -> Iterator[Addresses]:
    """``darcy@1`` and ``darcy@2``."""
    with running_service(settings) as (addresses, _):
        yield addresses


@pytest.fixture(scope="session")
def water_service(water_store: str) -> Iterator[Addresses]:
    """``shallow_water@1``, which has learnt nothing."""
    settings = Settings(store=water_store, models=("shallow_water",), threads=1, device="cpu")
    with running_service(settings) as (addresses, _):
        yield addresses
