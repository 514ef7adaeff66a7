"""The models of a service of one process: loaded here, computed in threads."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any, final

import numpy as np

import model_store
from model_store import Catalog, LoadedVersion, Reference, StoreError, StoreUnreachable
from problems import PROBLEMS
from service.batching.batcher import Batcher
from service.errors import LoadFailed, ServiceFault, UnknownModel, WorkerLost
from service.settings import InvalidSettings
from service.versions import stores
from service.versions.loading import load_version, served_version
from service.versions.models import Models, Retired
from service.versions.places import without_places
from service.versions.repository import ModelEntry, Readiness, Repository
from service.versions.routing import Route, Table, mentioned
from service.versions.served import ServedVersion
from service.versions.stores import AWAY
from service.workers.sample import plain_bucket, sample
from service.workers.worker import Batch

__all__ = ["LocalRepository", "MakeQueue", "load_models", "local_models"]

log = logging.getLogger("mno.service")

# a queue, not started, in front of a worker that has the version
MakeQueue = Callable[[LoadedVersion], Batcher]


def local_models(versions: Iterable[LoadedVersion], table: Table, make_queue: MakeQueue) -> Models:
    """Serve versions that are loaded in this process, under the names of ``table`` and their numbers."""
    models = Models()
    for version in versions:
        # where the weights lie is known once there is a worker
        queue = make_queue(version)
        models.add(served_version(version), queue)
    models.route(table)
    return models


def load_models(catalog: Catalog, wanted: Iterable[str], make_queue: MakeQueue) -> Models:
    """Load versions, verified.

    Args:
        catalog: where to look.
        wanted: ``darcy`` (the version it means, and all that its aliases mean) or ``darcy@3``; empty: all.
        make_queue: what puts a queue in front of a version.

    Raises:
        InvalidSettings: a model that does not exist, does not load, or solves no known problem.
    """
    try:
        table = stores.table_of(catalog, tuple(wanted) or tuple(catalog.models()))
        loaded = [load_version(catalog, reference) for reference in mentioned(table)]
    except StoreError as error:
        raise InvalidSettings(f"a model cannot be loaded: {error}") from error
    return local_models(loaded, table, make_queue)


@final
class LocalRepository(Repository):
    """The stores as this process reads them."""

    def __init__(
        self,
        catalog: Catalog,
        models: Models,
        make_queue: MakeQueue,
        retire_seconds: float = 600.0,
        gone: Callable[[Reference], None] = lambda _: None,
    ) -> None:
        """Nothing is read yet.

        Args:
            catalog: the stores.
            models: what is served.
            make_queue: what puts a queue in front of a version.
            retire_seconds: how long a version that was replaced finishes its rollouts.
            gone: called with a version that is not served any more, when all its requests are answered.
        """
        self._catalog = catalog
        self._models = models
        self._make_queue = make_queue
        self._retire_seconds = retire_seconds
        self._gone = gone
        # two that load the same model at once would load it twice
        self._changing = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()

    async def index(self) -> tuple[ModelEntry, ...]:
        """See ``Repository``."""
        try:
            entries = await asyncio.to_thread(stores.index, self._catalog)
        except StoreUnreachable as error:
            raise WorkerLost(AWAY) from error
        ready = {version.reference for version in self._models.versions}
        return tuple(entry.with_states(ready, {}) for entry in entries)

    async def describe(self, name: str) -> dict[str, Any]:
        """See ``Repository``."""
        try:
            entry, cards = await asyncio.to_thread(stores.describe, self._catalog, name)
        except model_store.UnknownModel as error:
            raise UnknownModel(str(error)) from error
        except StoreUnreachable as error:
            raise WorkerLost(AWAY) from error
        ready = {version.reference for version in self._models.versions}
        return entry.with_states(ready, {}).summary() | {"cards": cards}

    async def load(self, name: str) -> None:
        """See ``Repository``."""
        async with self._changing:
            await self._load(name)

    async def _load(self, name: str) -> None:
        try:
            table = await asyncio.to_thread(stores.table_of, self._catalog, (name,))
            present = {version.reference for version in self._models.versions}
            missing = [reference for reference in mentioned(table) if reference not in present]
            loaded = [await asyncio.to_thread(load_version, self._catalog, each) for each in missing]
        except model_store.UnknownModel as error:
            raise UnknownModel(str(error)) from error
        except (StoreError, InvalidSettings) as error:
            raise LoadFailed(without_places(str(error))) from error
        warm: list[tuple[ServedVersion, Batcher]] = []
        try:
            for version in loaded:
                served, queue = await self._warm(version)
                warm.append((served, queue))
        except BaseException:
            # those before the one that failed have workers by now
            for _, queue in warm:
                await queue.close()
            raise
        for served, queue in warm:
            self._models.add(served, queue)
        self._route({**self._models.table, **table})

    async def _warm(self, version: LoadedVersion) -> tuple[ServedVersion, Batcher]:
        """A version, and its queue, which no request has to warm up."""
        queue = self._make_queue(version)
        served = served_version(version)
        try:
            await _try_out(served, queue)
        except ServiceFault as error:
            await queue.close()
            said = without_places(str(error.__cause__ or error))
            raise LoadFailed(f"{served} cannot be warmed up: {said}") from error
        except BaseException:
            await queue.close()
            raise
        return served, queue

    async def unload(self, name: str) -> None:
        """See ``Repository``."""
        async with self._changing:
            before = self._models.table
            table = {wanted: route for wanted, route in before.items() if name not in (wanted, route.name)}
            if len(table) == len(before):
                raise UnknownModel(f"{name} is not served; nothing to unload")
            self._route(table)

    async def readiness(self) -> Readiness:
        """See ``Repository``."""
        return Readiness(ready=True, problems=tuple(map(without_places, self._catalog.stale)))

    async def pages(self, accept: str) -> tuple[bytes, ...]:  # noqa: ARG002
        """See ``Repository``."""
        return ()

    def _route(self, table: dict[str, Route]) -> None:
        self._models.route(table)
        needed = mentioned(table)
        for version in self._models.versions:
            if version.reference not in needed:
                retired = self._models.remove(version.reference)
                retiring = asyncio.get_running_loop().create_task(self._retire(version.reference, retired))
                self._retiring.add(retiring)
                retiring.add_done_callback(self._retiring.discard)

    async def _retire(self, reference: Reference, retired: Retired) -> None:
        try:
            async with asyncio.timeout(self._retire_seconds):
                await retired.released()
                await retired.queue.drain()
        except TimeoutError:
            log.warning("a version that was replaced still has rollouts under way; they end now")
        finally:
            await retired.queue.close()
            # it may be served again by now
            if reference not in {version.reference for version in self._models.versions}:
                self._gone(reference)


async def _try_out(version: ServedVersion, queue: Batcher) -> None:
    # one that starts from several frames cannot be asked by a request
    for grid in version.grids if version.history <= 1 else ():
        inputs = sample(PROBLEMS[version.problem], grid, "float32")
        outcome = await queue.submit(Batch(plain_bucket(version, grid), inputs))
        for name, values in outcome.solutions.fields.items():
            if not np.isfinite(values).all():
                raise LoadFailed(f"it gives a {name} that is not finite for constant inputs on {grid}")
