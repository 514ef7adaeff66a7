"""The zygote that ought to live: started, asked to fork, and replaced when it ends or hangs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any, final

from service.processes.control import LinkLost
from service.processes.zygote import Child, Kind, Launched, Zygote, ZygoteLost

__all__ = ["KeptZygote"]

log = logging.getLogger("mno.service")


@final
class KeptZygote:
    """The zygote, whichever one that is now."""

    def __init__(
        self, launched: Launched | None, restarted: Callable[[], None], start_seconds: float
    ) -> None:
        """Nothing is started yet.

        Args:
            launched: it runs already.
            restarted: called when it is started again.
            start_seconds: one that is not ready by then hangs [s].
        """
        self._launched = launched
        self._restarted = restarted
        self._start_seconds = start_seconds
        self._present: Zygote | None = None
        self._starting: asyncio.Task[Zygote] | None = None

    def start(self) -> None:
        """Begin to start it; what is forked waits for it."""
        self._starting = asyncio.get_running_loop().create_task(self._started(), name="zygote")

    async def fork(self, kind: Kind, spec: Mapping[str, Any]) -> Child:
        """A child of it; where it has ended or hangs, of the next one.

        Raises:
            LinkLost: that ended, too.
            ForkFailed: it goes on, but cannot fork now.
        """
        with contextlib.suppress(LinkLost):
            return await self._fork(kind, spec)
        return await self._fork(kind, spec)

    async def _fork(self, kind: Kind, spec: Mapping[str, Any]) -> Child:
        if self._starting is None:
            self.start()
        assert self._starting is not None
        present = self._starting
        try:
            zygote = await asyncio.shield(present)
        except (ZygoteLost, OSError) as error:
            self._forget(present)
            raise LinkLost(f"the zygote does not start: {error}") from error
        try:
            return await zygote.fork(kind, spec)
        except ZygoteLost as error:
            self._forget(present)
            raise LinkLost(f"the zygote is lost: {error}") from error

    def _forget(self, present: asyncio.Task[Zygote]) -> None:
        # of several who notice, one starts the next
        if self._starting is present:
            log.error("the zygote is gone; another is started")
            self._starting = None
            self._restarted()

    def kill(self) -> None:
        """End it at once; the kernel takes its children along."""
        if self._present is not None:
            self._present.kill()

    async def close(self, seconds: float) -> None:
        """End it, and its children with it; who has not ended after so many seconds is killed."""
        if self._starting is None:
            return
        if not self._starting.done():
            # it has no children yet: whoever wants one waits for it
            self.kill()
        with contextlib.suppress(ZygoteLost, OSError):
            await (await self._starting).close(seconds)

    async def _started(self) -> Zygote:
        launched, self._launched = self._launched, None
        zygote = self._present = Zygote(launched)
        try:
            async with asyncio.timeout(self._start_seconds):
                await zygote.start()
        except (TimeoutError, ZygoteLost) as error:
            zygote.kill()
            await zygote.wait()
            late = f"it was not ready within {self._start_seconds:g} s"
            raise ZygoteLost(late if isinstance(error, TimeoutError) else str(error)) from error
        return zygote
