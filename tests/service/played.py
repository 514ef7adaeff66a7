"""Processes that a test plays: what they would say is said by the test."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from service.processes.control import Link
from service.processes.supervised import Events
from service.processes.zygote import Child
from service.workers.lane import lane_pair


async def nothing(what: str, _: Mapping[str, Any]) -> Any:
    raise ValueError(what)


class Actor:
    """Plays one process after another."""

    def __init__(self) -> None:
        self.children: list[tuple[Child, Link]] = []
        self.told: list[Mapping[str, Any]] = []
        self.launched = asyncio.Event()
        self.seen: list[str] = []
        # what it says when it is asked
        self.answer: Callable[[str, Mapping[str, Any]], Awaitable[Any]] = nothing

    async def launch(self) -> Child:
        ours, theirs = lane_pair()
        # a descriptor that never says that anything has ended
        child = Child(len(self.children) + 1, ours, os.eventfd(0))
        # the signal of a test is nobody's: the actor dies of it
        child.kill = lambda: self.end(-9, child)  # type: ignore[method-assign]
        link = Link(theirs, self._hear, self._asked, lambda: None)
        self.children.append((child, link))
        self.launched.set()
        return child

    async def _asked(self, what: str, arguments: Mapping[str, Any]) -> Any:
        self.seen.append("asked")
        return await self.answer(what, arguments)

    def _hear(self, message: Mapping[str, Any], fds: Sequence[int]) -> None:
        self.told.append(message)
        for fd in fds:
            os.close(fd)
        if "drain" in message:
            self.end(0)

    def end(self, status: int, child: Child | None = None) -> None:
        present, link = self.children[-1]
        if child in (None, present):
            link.close()
            present.has_ended(status)

    def say(self, message: Mapping[str, Any]) -> None:
        self.children[-1][1].tell(message)

    def close(self) -> None:
        """Leave nothing behind."""
        for child, link in self.children:
            link.close()
            child.control.close()
            if not child.ended:
                os.close(child.pidfd)

    async def heard(self, count: int) -> None:
        """Wait for so many messages: one that is never read turns into an error of the socket."""
        while len(self.told) < count:
            await asyncio.sleep(0)

    async def next(self) -> None:
        await self.launched.wait()
        self.launched.clear()

    @property
    def events(self) -> Events:
        return Events(
            lambda link: link.tell({"begin": True}),
            lambda *_: self.seen.append("ready"),
            lambda message: self.seen.append(next(iter(message))),
            nothing,
            lambda: self.seen.append("died"),
            lambda: self.seen.append("settled"),
        )
