"""Connects every front with every worker: whoever comes gets a lane to each of the others."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from service.errors import ServiceFault
from service.processes.control import Link, LinkLost
from service.workers.lane import lane_pair

__all__ = ["Plug", "Switchboard"]

# a front that does not know by then what names mean hangs [s]
ROUTE_SECONDS: Final = 5.0


@final
@dataclass(frozen=True)
class Plug:
    """A worker process, as the fronts get to know it.

    Attributes:
        link: to the process.
        lanes: a lane's name for the fronts -> what the process calls its end; None: it has one kind only.
        version: what it holds, a ServedVersion as JSON; None: reference solvers.
        costs: what it measured: grid, rows and seconds of batches.
    """

    link: Link
    lanes: Mapping[str, str | None]
    version: Mapping[str, Any] | None = None
    costs: Sequence[Sequence[float]] = ()


@final
@dataclass(frozen=True)
class _Front:
    link: Link
    arena: int
    end: Callable[[str], None]


@final
class Switchboard:
    """Who is there."""

    def __init__(self) -> None:
        self._fronts: dict[int, _Front] = {}
        self._workers: dict[str, Plug] = {}

    @property
    def fronts(self) -> tuple[Link, ...]:
        """Links to the fronts that are there."""
        return tuple(front.link for front in self._fronts.values())

    def add_front(
        self, number: int, link: Link, fds: Sequence[int], end: Callable[[str], None] = lambda _: None
    ) -> None:
        """Connect a front, whose arena is the only descriptor of ``fds``, with all workers.

        ``end`` is called with the reason when the front does not do what it should.
        """
        (arena,) = fds
        self.remove_front(number)
        self._fronts[number] = _Front(link, arena, end)
        for plug in self._workers.values():
            self._connect(number, plug)

    def remove_front(self, number: int) -> None:
        """Forget a front that is gone; its lanes ended with it."""
        if (front := self._fronts.pop(number, None)) is not None:
            os.close(front.arena)

    def add_worker(self, name: str, plug: Plug) -> None:
        """Connect a worker with all fronts."""
        self._workers[name] = plug
        for number in self._fronts:
            self._connect(number, plug)

    def remove_worker(self, name: str) -> None:
        """Connect no more fronts with a worker; the lanes that it has stay."""
        self._workers.pop(name, None)

    async def route(self, table: Mapping[str, Any], only: Link | None = None) -> None:
        """Let all fronts (or one) know what names mean, and return when they do; one that hangs is ended."""
        fronts = [front for front in self._fronts.values() if only in (None, front.link)]
        await asyncio.gather(*(_route(front, table) for front in fronts))

    def tell(self, message: Mapping[str, Any]) -> None:
        """Tell all fronts."""
        for front in self._fronts.values():
            front.link.tell(message)

    def _connect(self, number: int, plug: Plug) -> None:
        front = self._fronts[number]
        for lane, called in plug.lanes.items():
            ours, theirs = lane_pair()
            with ours, theirs:
                to = {} if called is None else {"to": called}
                plug.link.tell({"lane": f"front {number}", **to}, [theirs.fileno(), front.arena])
                version = {} if plug.version is None else {"version": plug.version, "costs": plug.costs}
                front.link.tell({"lane": lane, **version}, [ours.fileno()])


async def _route(front: _Front, table: Mapping[str, Any]) -> None:
    try:
        async with asyncio.timeout(ROUTE_SECONDS):
            await front.link.ask("route", table)
    except TimeoutError:
        front.end(f"did not take the names within {ROUTE_SECONDS:g} s")
    except LinkLost:
        # the next one in its place is told when it comes
        pass
    except ServiceFault as error:
        front.end(f"did not take the names: {error}")
