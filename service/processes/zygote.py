"""Starts processes, and hears when they end; most are forked from a zygote, in milliseconds."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal, final

from service.processes.signals import DRAIN
from service.workers.lane import Lane, LaneClosed, lane_pair

__all__ = ["Child", "ForkFailed", "Kind", "Launched", "Zygote", "ZygoteLost", "launch_zygote", "spawn"]

log = logging.getLogger("mno.service")

# what a zygote can become; see ``forking.KINDS``
Kind = Literal["model", "steward"]

# a fork takes milliseconds: a zygote that has said nothing by then hangs [s]
FORK_SECONDS: Final = 30.0
# how a child ended is said by the zygote, which may hang; that it did, by the kernel [s]
STATUS_SECONDS: Final = 2.0


class ZygoteLost(Exception):
    """The zygote ended, and its children with it; start another."""


@final
class ForkFailed(OSError):
    """The zygote goes on, but cannot fork now, as when there is no memory or there are too many processes."""


@final
class Child:
    """A process that was started here.

    Attributes:
        control: this end of its control socket; :class:`service.workers.lane.Lane` speaks over it.
    """

    def __init__(self, pid: int, control: socket.socket, pidfd: int) -> None:
        """``pidfd`` is taken over: who may be anybody's child is not signalled by a number."""
        self.pid = pid
        self.control = control
        self.pidfd = pidfd
        self._exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def ended(self) -> bool:
        """Whether it is known to have ended."""
        return self._exit.done()

    async def wait(self) -> int:
        """Its exit status once it has ended; minus the number of the signal that ended it."""
        return await asyncio.shield(self._exit)

    def kill(self) -> None:
        """End it at once, if it has not ended."""
        self._signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to answer what it has, and to end."""
        self._signal(DRAIN)

    def _signal(self, number: int) -> None:
        if not self.ended:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)

    def when_ended(self, call: Callable[[], None]) -> None:
        """Call this once when the kernel says that it has ended, unless ``has_ended`` was called before."""
        loop = asyncio.get_running_loop()

        def ended() -> None:
            loop.remove_reader(self.pidfd)
            call()

        loop.add_reader(self.pidfd, ended)

    def has_ended(self, status: int) -> None:
        """Called by who started it."""
        if not self._exit.done():
            self._exit.set_result(status)
            asyncio.get_running_loop().remove_reader(self.pidfd)
            os.close(self.pidfd)


@final
@dataclass(frozen=True)
class Launched:
    """A process that runs, and that nobody watches yet."""

    process: subprocess.Popen[bytes]
    control: socket.socket

    def give_up(self) -> None:
        """End it: nobody needs it after all."""
        self.control.close()
        self.process.kill()
        self.process.wait()


def launch(module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Launched:
    """Start ``python -m module FD arguments``, FD being the number of its end of the control socket."""
    ours, theirs = lane_pair()
    # -P: the folder in which somebody happens to start a service holds none of its modules
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(theirs.fileno()), *arguments],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
        )
    return Launched(process, ours)


def launch_zygote() -> Launched:
    """Start what a :class:`Zygote` can take over: it need not wait until all is known."""
    # a fork takes along only the thread that forks: libraries must not start any on import
    return launch("service.processes.forking", environment={"OPENBLAS_NUM_THREADS": "1"})


async def spawn(module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Child:
    """Start ``python -m module FD arguments``, FD being the number of its end of the control socket."""
    return _watched(launch(module, *arguments, environment=environment))


def _watched(launched: Launched) -> Child:
    process = launched.process
    child = Child(process.pid, launched.control, os.pidfd_open(process.pid))
    child.when_ended(lambda: child.has_ended(process.wait()))
    return child


@final
class Zygote:
    """A process that has imported everything once, and forks; see ``forking``."""

    def __init__(self, launched: Launched | None = None) -> None:
        """``launched``: it runs already."""
        self._launched = launched
        self._process: Child | None = None
        self._lane: Lane | None = None
        self._ready: asyncio.Future[None] | None = None
        self._numbers = itertools.count()
        # children that are being forked, with our end of their control sockets
        self._forks: dict[int, tuple[asyncio.Future[Child], socket.socket]] = {}
        self._children: dict[int, Child] = {}

    @property
    def pid(self) -> int:
        """Of the zygote itself."""
        return self._started.pid

    async def start(self) -> None:
        """Start it; returns when it has imported everything.

        Raises:
            ZygoteLost: it does not start; its log says why.
        """
        self._process = _watched(self._launched or launch_zygote())
        self._ready = asyncio.get_running_loop().create_future()
        self._lane = Lane(self._process.control, self._hear, self._lost)
        await self._ready

    async def fork(self, kind: Kind, spec: Mapping[str, Any]) -> Child:
        """A child that runs ``main(control, spec)`` of the module of this kind; ``spec`` is a JSON object.

        Raises:
            ForkFailed: it cannot be forked now.
            ZygoteLost: the zygote ended.
        """
        if self._lane is None:
            raise ZygoteLost("the zygote was never started")
        ours, theirs = lane_pair()
        number = next(self._numbers)
        future: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        self._forks[number] = future, ours
        try:
            with theirs:
                self._lane.send({"fork": number, "kind": kind, "spec": spec}, [theirs.fileno()])
            async with asyncio.timeout(FORK_SECONDS):
                return await future
        except BaseException as error:
            # a child that nobody controls ends by itself
            ours.close()
            if isinstance(error, LaneClosed):
                raise ZygoteLost("the zygote has ended; start another") from None
            if isinstance(error, TimeoutError):
                # whatever it waits for, it would let everybody wait
                self.kill()
                raise ZygoteLost(
                    f"the zygote has not forked within {FORK_SECONDS:g} s; start another"
                ) from None
            raise
        finally:
            self._forks.pop(number, None)

    async def wait(self) -> int:
        """The exit status of the zygote itself; all its children have ended by then."""
        return await self._started.wait()

    async def close(self, seconds: float) -> None:
        """End it and its children, which first answer what they have; who has not ended then is killed."""
        if self._process is None or self._lane is None:
            return
        self._lane.finish()
        try:
            async with asyncio.timeout(seconds):
                await self._process.wait()
        except TimeoutError:
            log.warning("the zygote did not end within %g s and is killed", seconds)
            self.kill()
            await self._process.wait()

    def kill(self) -> None:
        """End it at once; the kernel takes its children along."""
        if self._process is not None:
            self._process.kill()

    @property
    def _started(self) -> Child:
        if self._process is None:
            raise ZygoteLost("the zygote was never started")
        return self._process

    def _hear(self, report: dict[str, Any], fds: list[int]) -> None:
        if "forked" in report:
            (pidfd,) = fds
            self._forked(report["forked"], report["pid"], pidfd)
        elif "failed" in report:
            future, _ = self._forks.pop(report["fork"], (None, None))
            if future is not None and not future.done():
                future.set_exception(ForkFailed(report["failed"]))
        elif "exited" in report:
            self._ended(report["exited"], report["status"])
        elif self._ready is not None and not self._ready.done():
            self._ready.set_result(None)

    def _forked(self, number: int, pid: int, pidfd: int) -> None:
        future, ours = self._forks.pop(number, (None, None))
        if future is None or ours is None or future.done():
            # somebody who left has closed the socket, and the child ends by itself
            os.close(pidfd)
            return
        child = self._children[pid] = Child(pid, ours, pidfd)
        child.when_ended(partial(self._ended_silently, child))
        future.set_result(child)

    def _ended(self, pid: int, status: int) -> None:
        child = self._children.pop(pid, None)
        if child is not None:
            child.has_ended(status)

    def _ended_silently(self, child: Child) -> None:
        """It has ended, and the zygote is to say how; one that says nothing holds nobody up."""
        asyncio.get_running_loop().call_later(STATUS_SECONDS, child.has_ended, -signal.SIGKILL)

    def _lost(self) -> None:
        lost = ZygoteLost("the zygote has ended; start another")
        waiting: list[asyncio.Future[Any]] = [future for future, _ in self._forks.values()]
        for future in [*waiting, *filter(None, [self._ready])]:
            if not future.done():
                future.set_exception(lost)
        # the kernel kills children whose zygote ended without them
        for child in self._children.values():
            child.has_ended(-signal.SIGKILL)
        self._children.clear()
