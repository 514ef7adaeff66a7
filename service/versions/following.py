"""Follows the aliases of the stores while requests run: load and warm, switch, drain, end.

What is wanted is asked of the steward. A version that is wanted and not there gets a worker; as soon as that
is warm, all names that mean it are switched at once in every front; a version that no name means any more is
drained. A version that does not load changes nothing but what the service says of itself.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, final

from model_store.reference import Reference
from service.access.audit import Audit
from service.errors import LoadFailed, UnknownModel
from service.processes.control import Link, LinkLost
from service.processes.supervised import Events, Kept, StartFailed
from service.processes.switchboard import Plug, Switchboard
from service.processes.zygote import Child
from service.settings import Settings
from service.telemetry.metrics import Metrics, WorkerMetrics
from service.versions.places import without_places
from service.versions.routing import Route, Table, available, mentioned
from service.versions.served import ServedVersion

__all__ = ["Versions"]

log = logging.getLogger("mno.service")

# a version that did not load is tried again, less and less often [s]
FIRST_RETRY: Final = 30.0
LONGEST_RETRY: Final = 600.0
# a worker that nobody asks anything any more ends at once [s]
END_SECONDS: Final = 10.0

Ask = Callable[[str, Mapping[str, Any]], Awaitable[Any]]
Launch = Callable[[Reference], Awaitable[Child]]


@final
@dataclass(frozen=True)
class _Failure:
    text: str
    tries: int
    next_try: float

    @classmethod
    def after(cls, last: _Failure | None, text: str) -> _Failure:
        tries = 1 if last is None else last.tries + 1
        pause = min(LONGEST_RETRY, FIRST_RETRY * 2 ** (tries - 1))
        return cls(text, tries, time.monotonic() + pause)


@final
@dataclass(eq=False)
class _Holder:
    """The worker of a version.

    Attributes:
        name: of its lane; a version that is loaded again gets another one.
        served: what it said of itself; None: not yet.
        retired: it finishes what it has, and gets nothing new.
    """

    name: str
    kept: Kept
    served: ServedVersion | None = None
    retired: bool = False


@final
@dataclass
class _Wish:
    """Which models somebody wants, beside or instead of those of the settings.

    Attributes:
        loaded: by the repository's API.
        unloaded: likewise.
    """

    loaded: dict[str, None] = field(default_factory=dict)
    unloaded: dict[str, None] = field(default_factory=dict)


@final
class Versions:
    """What is served, and by which workers."""

    def __init__(
        self,
        settings: Settings,
        ask_steward: Ask,
        launch: Launch,
        board: Switchboard,
        metrics: Metrics,
        audit: Audit | None = None,
    ) -> None:
        self._settings = settings
        self._ask_steward = ask_steward
        self._launch = launch
        self._board = board
        self._metrics = metrics
        self._audit = audit or Audit()
        self._wish = _Wish()
        self._wanted: Table = {}
        self._wanted_since = time.monotonic()
        self._table: Table = {}
        self._holders: dict[Reference, _Holder] = {}
        self._loading: dict[Reference, asyncio.Task[None]] = {}
        self._retiring: dict[asyncio.Task[None], _Holder] = {}
        self._failures: dict[Reference, _Failure] = {}
        self._unreadable: dict[str, str] = {}
        self._stale: tuple[str, ...] = ()
        # which store each model came from
        self._stores_of: dict[str, str] = {}
        self._generations = itertools.count(1)
        self._switching = asyncio.Lock()
        self._settling: set[asyncio.Task[None]] = set()
        self._changed: Callable[[], None] = lambda: None

    @property
    def table(self) -> Table:
        """What the names mean now."""
        return self._table

    @property
    def served(self) -> tuple[ServedVersion, ...]:
        """The versions that are loaded, each once."""
        return tuple(holder.served for holder in self._holders.values() if holder.served is not None)

    @property
    def troubles(self) -> tuple[str, ...]:
        """What is wrong, in words for everybody."""
        return tuple(map(self._for_clients, (*self._stale, *self._troubles())))

    def _troubles(self) -> tuple[str, ...]:
        unreadable = [f"{name} cannot be read: {why}" for name, why in self._unreadable.items()]
        failed = [
            f"{reference} does not load: {self._failures[reference].text}"
            for reference in mentioned(self._wanted)
            if reference in self._failures
        ]
        dying = [trouble for holder in self._holders.values() if (trouble := holder.kept.trouble)]
        return (*unreadable, *failed, *dying)

    def _for_clients(self, text: str) -> str:
        return without_places(text, self._settings.store)

    @property
    def reasons(self) -> dict[Reference, str]:
        """Why versions are not served."""
        failed = {each: self._for_clients(failure.text) for each, failure in self._failures.items()}
        return failed | dict.fromkeys(self._loading, "is being loaded")

    def when_changed(self, call: Callable[[], None]) -> None:
        """Call this whenever something that others may want to know is different."""
        self._changed = call

    async def start(self) -> None:
        """Load everything that is wanted.

        Raises:
            LoadFailed: something does not load.
        """
        await self.follow()
        await self._loaded()
        if troubles := self._troubles():
            raise LoadFailed("; ".join(troubles))

    async def follow(self, *, retry: bool = False) -> None:
        """Look what is wanted now, and begin to load what is not there; ``retry``: also what failed before.

        Raises:
            LinkLost: the steward is gone, and another will come.
        """
        settings, wish = self._settings, self._wish
        names = [*(name for name in settings.models if name not in wish.unloaded), *wish.loaded]
        arguments = {
            "wanted": names,
            "others": not settings.models,
            "without": [*wish.unloaded, *settings.imported],
            "stores_of": self._stores_of,
        }
        answer = await self._ask_steward("table", arguments)
        self._stores_of |= answer["stores_of"]
        self._notice(tuple(answer["stale"]))
        self._want({name: Route(**route) for name, route in answer["table"].items()}, answer["broken"])
        for reference in mentioned(self._wanted):
            if reference not in self._holders and self._may_try(reference, retry=retry):
                self._begin(reference)
        # whoever asked may leave in the middle of it
        settling = asyncio.get_running_loop().create_task(self._settle())
        self._settling.add(settling)
        settling.add_done_callback(self._settling.discard)
        await asyncio.shield(settling)

    def _notice(self, stale: tuple[str, ...]) -> None:
        """Why what the stores say may be old news."""
        if bool(stale) != bool(self._stale):
            log.error("; ".join(stale)) if stale else log.info("all stores answer again")
        self._stale = stale
        if self._settings.store is not None:
            self._metrics.store(reachable=not stale)

    def _want(self, found: dict[str, Route], unreadable: dict[str, str]) -> None:
        # what cannot be read means what it meant
        models = {name.partition("@")[0] for name in unreadable}
        kept = {name: route for name, route in self._wanted.items() if route.name in models}
        wanted = {**kept, **found, **self._imported()}
        if wanted != self._wanted:
            self._wanted_since = time.monotonic()
        for name, why in unreadable.items():
            if self._unreadable.get(name) != why:
                log.error("%s cannot be read and means what it meant: %s", name, why)
        self._wanted, self._unreadable = wanted, unreadable

    def _imported(self) -> dict[str, Route]:
        names = [name for name in self._settings.imported if name not in self._wish.unloaded]
        return {name: Route(name=name, main=1) for name in names}

    def _may_try(self, reference: Reference, *, retry: bool) -> bool:
        failure = self._failures.get(reference)
        return failure is None or retry or time.monotonic() >= failure.next_try

    def _begin(self, reference: Reference) -> None:
        holder = self._holder(reference)
        self._holders[reference] = holder
        task = asyncio.get_running_loop().create_task(self._load(reference, holder))
        self._loading[reference] = task
        self._changed()

    def _holder(self, reference: Reference) -> _Holder:
        name = f"{reference}#{next(self._generations)}"
        # where it computes is known when it is ready
        recorder: WorkerMetrics | None = None

        def ready(link: Link, message: Mapping[str, Any], _: Sequence[int]) -> None:
            nonlocal recorder
            served = ServedVersion.model_validate(message["ready"])
            if served.reference != reference:
                # only an imported model can be wrong about itself; whoever loads it says so
                log.error("%s says that it is %s", reference, served)
                return
            if holder.retired:
                return
            if holder.served is not None and holder.served.digests != served.digests:
                # another store answers in the place of the one that is gone
                raise StartFailed(f"{reference} has other files than when it was loaded")
            holder.served = served
            device = message.get("device", self._settings.device)
            recorder = self._metrics.worker(reference.name, str(reference.version), device)
            recorder.ready(True)
            self._board.add_worker(name, Plug(link, {name: None}, message["ready"], message.get("costs", ())))
            self._changed()

        def died() -> None:
            self._board.remove_worker(name)
            if recorder is not None:
                recorder.ready(False)
            if holder.retired:
                self._abandon(holder)
            elif recorder is not None:
                recorder.restarted()
            self._changed()

        def told(message: Mapping[str, Any]) -> None:
            if "memory" in message and recorder is not None:
                recorder.memory(**message["memory"])

        events = Events(lambda _: None, ready, told, _asks_nothing, died, lambda: self._changed())
        kept = Kept(str(reference), lambda: self._launch(reference), events, self._settings.load_seconds)
        holder = _Holder(name, kept)
        return holder

    async def _load(self, reference: Reference, holder: _Holder) -> None:
        began, loaded = time.monotonic(), False
        try:
            await holder.kept.start()
            if holder.served is None:
                await holder.kept.stop({"drain": True}, END_SECONDS)
                raise StartFailed(f"expected {reference} from its function, got another version")
        except StartFailed as error:
            log.error("%s does not load: %s", reference, error)
            self._failures[reference] = _Failure.after(self._failures.get(reference), str(error))
            self._metrics.loaded(reference.name, "failed", time.monotonic() - began)
            self._audit.note("load", str(reference), outcome="failed", reason=str(error))
        else:
            loaded = True
            log.info("%s is loaded and warm", reference)
            self._failures.pop(reference, None)
            self._metrics.loaded(reference.name, "ok", time.monotonic() - began)
            self._audit.note("load", str(reference))
        finally:
            del self._loading[reference]
            if not loaded:
                del self._holders[reference]
                holder.kept.kill()
        await self._settle()

    async def _settle(self) -> None:
        """Let the names mean what is wanted, as far as it is loaded, and end what no name means any more."""
        async with self._switching:
            ready = {reference for reference, holder in self._holders.items() if holder.served is not None}
            table = available(self._wanted, self._table, ready)
            if table != self._table:
                await self._switch(table)
            needed = {**mentioned(self._table), **mentioned(self._wanted)}
            for reference in [each for each in ready if each not in needed and each not in self._loading]:
                self._retire(reference, self._holders.pop(reference))
        self._changed()

    async def _switch(self, table: Table) -> None:
        before, self._table = self._table, table
        message = {name: route.model_dump() for name, route in table.items()}
        await self._board.route(message)
        moved = {route.name for name, route in table.items() if name in before and before[name] != route}
        for model in moved:
            log.info("%s is answered by %s", model, [str(each) for each in mentioned(table)])
            self._metrics.swapped(model, time.monotonic() - self._wanted_since)
        changes = {name: f"{before[name]} -> {route}" for name, route in table.items() if name in before}
        for change in dict.fromkeys(changes[name] for name in changes if before[name] != table[name]):
            names = [name for name in changes if changes[name] == change]
            self._audit.note("alias", f"{', '.join(names)}: {change}")
        self._metrics.serve((each.name, str(each.version)) for each in mentioned(table))
        self._metrics.follow(_shares(table))

    def _retire(self, reference: Reference, holder: _Holder) -> None:
        holder.retired = True

        async def retire() -> None:
            questions = (front.ask("retire", {"lane": holder.name}) for front in self._board.fronts)
            self._board.remove_worker(holder.name)
            answers = asyncio.gather(*questions, return_exceptions=True)
            if holder.kept.link is None:
                # its process died a moment ago: nobody starts it again to answer those who wait for it
                await asyncio.sleep(0)
                self._abandon(holder)
            try:
                async with asyncio.timeout(self._settings.retire_seconds):
                    await answers
            except TimeoutError:
                log.warning("%s still has rollouts under way; they end now", reference)
                self._abandon(holder)
            await holder.kept.stop({"drain": True}, END_SECONDS)
            self._audit.note("unload", str(reference))
            if reference not in self._holders:
                self._metrics.forget(reference.name, str(reference.version))

        task = asyncio.get_running_loop().create_task(retire())
        self._retiring[task] = holder
        task.add_done_callback(self._retiring.pop)

    def _abandon(self, holder: _Holder) -> None:
        """Start a retired worker no more; whoever still waits for it is told to come again."""
        holder.kept.kill()
        self._board.tell({"abandon": holder.name})

    async def _loaded(self) -> None:
        while self._loading:
            await asyncio.wait(list(self._loading.values()))

    async def load(self, name: str) -> None:
        """See ``Repository.load``."""
        model = name.partition("@")[0]
        # a version of a model that is unloaded as a whole would be, too
        for each in (name, model):
            self._wish.unloaded.pop(each, None)
        if name not in self._settings.imported and name not in self._settings.models:
            self._wish.loaded[name] = None
        await self.follow(retry=True)
        if name in self._unreadable:
            if any(route.name == model for route in self._wanted.values()):
                raise LoadFailed(self._for_clients(self._unreadable[name]))
            self._wish.loaded.pop(name, None)
            raise UnknownModel(self._for_clients(self._unreadable.pop(name)))
        routes = [route for wanted, route in self._wanted.items() if wanted == name or route.name == model]
        needed = [reference for route in routes for reference in route.versions]
        if not needed:
            raise LoadFailed(f"{name} means no version that could be loaded")
        # others may wait for the same, and go on when this one leaves
        if loading := [self._loading[each] for each in needed if each in self._loading]:
            await asyncio.wait(loading)
        if failed := [f"{each}: {self._failures[each].text}" for each in needed if each in self._failures]:
            raise LoadFailed(self._for_clients("; ".join(failed)))

    async def unload(self, name: str) -> None:
        """See ``Repository.unload``."""
        models = {route.name for route in self._wanted.values()}
        named = {*self._settings.models, *self._wish.loaded} & self._wanted.keys()
        model = name.partition("@")[0]
        if name not in models | named:
            also = f"; {model} goes with all its names" if model in models else ""
            raise UnknownModel(f"{name} is no model that is served by itself: nothing to unload{also}")
        self._wish.loaded.pop(name, None)
        self._wish.unloaded[name] = None
        self._stores_of.pop(name, None)
        await self.follow()

    def end_hung(self, lane: str) -> None:
        """End the process of a lane that does not answer; another is started, where it is still wanted."""
        for holder in [*self._holders.values(), *self._retiring.values()]:
            if holder.name == lane:
                holder.kept.renew("did not answer a batch in time")

    def ask_memory(self) -> None:
        """Let the workers say what they hold; it is on the next page of metrics."""
        for holder in self._holders.values():
            if holder.kept.link is not None:
                holder.kept.link.tell({"memory": True})

    async def close(self, seconds: float) -> None:
        """End all workers, when no front asks them anything any more."""
        holders = [*self._holders.values(), *self._retiring.values()]
        tasks = [*self._loading.values(), *self._retiring]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(holder.kept.stop({"drain": True}, seconds) for holder in holders))

    def kill(self) -> None:
        """End all workers at once."""
        for holder in [*self._holders.values(), *self._retiring.values()]:
            holder.kept.kill()


async def _asks_nothing(what: str, _: Mapping[str, Any]) -> Any:
    raise LinkLost(f"a worker asks nothing, got {what}")


def _shares(table: Table) -> dict[tuple[str, str], dict[str, float]]:
    """What share of each alias' requests each version gets."""
    shares = {}
    for name, route in table.items():
        _, _, alias = name.partition("@")
        share = {str(route.main): 1.0 - route.weight}
        if route.canary is not None:
            share[str(route.canary)] = route.weight
        shares[route.name, alias] = share
    return shares
