"""Connects every front with every worker: whoever comes gets a lane to each of the others."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from service.control import Link
from service.lane import lane_pair

__all__ = ["Plug", "Switchboard"]


@final
@dataclass(frozen=True)
class Plug:
    """A worker process, as the fronts get to know it.

    Attributes:
        link: to the process.
        lanes: a lane's name for the fronts -> what the process calls its end; None: it has one kind only.
        version: what it holds, a ServedVersion as JSON; None: reference solvers.
    """

    link: Link
    lanes: Mapping[str, str | None]
    version: Mapping[str, Any] | None = None


@final
@dataclass(frozen=True)
class _Front:
    link: Link
    arena: int


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

    def add_front(self, number: int, link: Link, fds: Sequence[int]) -> None:
        """Connect a front, whose arena is the only descriptor of ``fds``, with all workers."""
        (arena,) = fds
        self.remove_front(number)
        self._fronts[number] = _Front(link, arena)
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
                version = {} if plug.version is None else {"version": plug.version}
                front.link.tell({"lane": lane, **version}, [ours.fileno()])
