"""The versions that are served, the queues of their workers, and the names under which clients ask for them.

Nothing here knows weights: a version is what its worker said of it. Who answers under which name changes in
one step, while requests run.
"""

from __future__ import annotations

import asyncio
import secrets
import weakref
from dataclasses import dataclass, field
from typing import Any, final

from model_store.reference import Reference
from service.batching.batcher import Batcher
from service.errors import LONGEST_QUOTE, InvalidField, UnknownModel, UnsupportedGrid, WorkerLost
from service.versions.routing import Route, Table, goes_to_canary, mentioned
from service.versions.served import ServedVersion

__all__ = ["Models", "Retired", "Served", "require_tested"]


@final
@dataclass(frozen=True, eq=False)
class Served:
    """A version and the queue of its workers.

    Whoever may still ask the queue for something keeps a reference to this object, not only to the queue: a
    version that was replaced is unloaded when nobody does any more.

    Attributes:
        shadow: the version that gets the same request, for comparison.
        hold: what all objects of one version share.
    """

    version: ServedVersion
    queue: Batcher
    shadow: Served | None = None
    hold: object = field(default=None, repr=False)


@final
class Retired:
    """A version that gets no new requests."""

    def __init__(self, queue: Batcher, hold: _Hold) -> None:
        """``hold``: the last reference to it that is not a request's is given away here."""
        self.queue = queue
        self._free = asyncio.Event()
        loop = asyncio.get_running_loop()
        # the last one to hold it may be a thread
        weakref.finalize(hold, _tell, loop, self._free).atexit = False

    async def released(self) -> None:
        """Wait until no request holds it."""
        await self._free.wait()


@final
class _Hold:
    """Lives as long as something may be asked of a version."""


@final
@dataclass(frozen=True)
class _Loaded:
    version: ServedVersion
    queue: Batcher
    hold: _Hold


@final
@dataclass(frozen=True)
class _Choice:
    route: Route
    main: Served
    canary: Served | None


@final
class Models:
    """What is served. Changed by the event loop only; lookups touch no file."""

    def __init__(self) -> None:
        self._loaded: dict[Reference, _Loaded] = {}
        self._numbered: dict[str, Served] = {}
        self._table: Table = {}
        self._choices: dict[str, _Choice] = {}

    @property
    def versions(self) -> tuple[ServedVersion, ...]:
        """Each loaded version once."""
        return tuple(loaded.version for loaded in self._loaded.values())

    @property
    def queues(self) -> tuple[Batcher, ...]:
        """The queues of the loaded versions."""
        return tuple(loaded.queue for loaded in self._loaded.values())

    @property
    def table(self) -> Table:
        """What the names mean now, beside those with a number."""
        return self._table

    def add(self, version: ServedVersion, queue: Batcher) -> None:
        """Serve a version under its number, and under the names that mean it."""
        self._loaded[version.reference] = _Loaded(version, queue, _Hold())
        self._numbered[str(version)] = self._served(version.reference)
        # whoever starts while a worker is down gets to know the names first
        self.route(self._table)

    def remove(self, reference: Reference) -> Retired:
        """Serve a version no more; requests that have found it go on."""
        loaded = self._loaded.pop(reference)
        del self._numbered[str(reference)]
        self.route(self._table)
        return Retired(loaded.queue, loaded.hold)

    def route(self, table: Table) -> None:
        """Let the names mean what ``table`` says, all of them at once; what is not here yet has to wait."""
        choices = {}
        for name, route in table.items():
            main = Reference(route.name, route.main)
            if main in self._loaded:
                canary = None if route.canary is None else Reference(route.name, route.canary)
                shadow = None if route.shadow is None else Reference(route.name, route.shadow)
                choices[name] = _Choice(
                    route,
                    self._served(main, shadow),
                    self._served(canary, shadow) if canary in self._loaded and canary is not None else None,
                )
        self._table, self._choices = table, choices

    def _served(self, reference: Reference, shadow: Reference | None = None) -> Served:
        loaded = self._loaded[reference]
        other = self._served(shadow) if shadow in self._loaded and shadow != reference and shadow else None
        return Served(loaded.version, loaded.queue, other, loaded.hold)

    def find(self, problem: str, wanted: str | None, key: str = "", *, solver: bool = True) -> Served:
        """The version that a request means; without a name, the problem's own, or else its first.

        Args:
            problem: what it has to solve.
            wanted: ``darcy``, ``darcy@production`` or ``darcy@3``; None: what the problem's own name means.
            key: where a canary has a share, requests with the same key go the same way; empty: by chance.
            solver: the reference solver is a way out.

        Raises:
            UnknownModel: nothing of that name is loaded.
            WorkerLost: its worker is not here yet.
            InvalidField: it solves another problem.
        """
        found = self._default(problem, key, solver) if wanted is None else self._named(wanted, key)
        if found.version.problem != problem:
            message = (
                f"{wanted} solves {found.version.problem}, not {problem}; choose another model or endpoint"
            )
            raise InvalidField("model", "problem", message)
        return found

    def named(self, wanted: str, key: str = "") -> Served:
        """The version that a name means, whatever it solves.

        Raises:
            UnknownModel: nothing of that name is loaded.
            WorkerLost: its worker is not here yet.
        """
        return self._named(wanted, key)

    def _named(self, wanted: str, key: str) -> Served:
        choice = self._choices.get(wanted)
        if choice is not None:
            canary = choice.canary
            if canary is None:
                return choice.main
            return canary if goes_to_canary(choice.route, key or secrets.token_hex(8)) else choice.main
        if wanted in self._numbered:
            return self._numbered[wanted]
        if wanted in self._table or wanted in map(str, mentioned(self._table)):
            raise _not_here(wanted)
        loaded = sorted({*self._choices, *self._numbered}) or "none at all"
        raise UnknownModel(f"{wanted[:LONGEST_QUOTE]!r} is not loaded; expected one of {loaded}")

    def _default(self, problem: str, key: str, solver: bool) -> Served:
        own = self._choices.get(problem)
        if own is None and problem in self._table:
            # nobody else answers in its place
            raise _not_here(problem)
        if own is not None and own.main.version.problem == problem:
            return self._named(problem, key)
        for name, choice in self._choices.items():
            if choice.main.version.problem == problem:
                return self._named(name, key)
        for served in self._numbered.values():
            if served.version.problem == problem:
                return served
        if self._table.keys() - self._choices.keys():
            raise _not_here(f"a model for {problem}")
        way_out = "publish one, or ask for method=solver" if solver else "publish one"
        raise UnknownModel(f"no model for {problem} is loaded; {way_out}")

    def identify(self, problem: str, wanted: str | None, *, solver: bool) -> dict[str, Any] | None:
        """The version that answers, or whose operator the reference solver takes, with its files' hashes."""
        if solver and wanted is None:
            return None
        version = self.find(problem, wanted).version
        # stores have equal names for different versions
        return {"name": str(version), "scheme": version.scheme, "sha256": dict(version.digests)}

    def of_problem(self, problem: str) -> list[str]:
        """Loaded versions that solve ``problem``."""
        return [str(version) for version in self.versions if version.problem == problem]

    def grids(self, problem: str) -> list[tuple[int, int]]:
        """Grids (ny, nx) on which some loaded surrogate of ``problem`` answers."""
        return sorted({grid for v in self.versions if v.problem == problem for grid in v.grids})


def require_tested(version: ServedVersion, field: str, grid: tuple[int, int], *, solver: bool = True) -> None:
    """Refuse a grid (ny, nx) that the version was not tested on.

    Args:
        version: is to answer.
        field: the one that has the grid.
        grid: of the field.
        solver: the reference solver is a way out.

    Raises:
        UnsupportedGrid: it was not.
    """
    if grid not in version.grids:
        supported = ", ".join(f"{ny}x{nx}" for ny, nx in version.grids)
        got = "x".join(map(str, grid))
        way_out = "or ask for method=solver" if solver else "or choose another model"
        message = f"{version} was tested on grids {supported}, got {got}; {way_out}"
        raise UnsupportedGrid(field, "grid", message)


def _not_here(wanted: str) -> WorkerLost:
    return WorkerLost(f"the worker of {wanted} is being started; send the request again")


def _tell(loop: asyncio.AbstractEventLoop, free: asyncio.Event) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(free.set)
