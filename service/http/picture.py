"""A field as a picture: a color bar with units, axes in metres, y upwards as in the training reports.

matplotlib draws it, in a process of its own: that takes a tenth of a second during which nobody else could
be answered, and as much memory as everything else here. The process is started by the first picture.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib.util
import io
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from service.errors import NotAvailableYet, Overloaded, WorkerLost

__all__ = ["Pictures", "Subject", "draw"]

INCHES: Final = (6.4, 5.2)
DOTS_PER_INCH: Final = 130
# above this contrast of all but a few values a linear scale shows nothing of the small ones
LOGARITHMIC_CONTRAST: Final = 100.0
FEW: Final = 0.1
COLORS: Final = "magma"
SIGNED_COLORS: Final = "RdBu_r"
# some seconds of work: who comes then is better told to come again
MOST_WANTED: Final = 8
# [s]
RETRY_AFTER: Final = 2
# prctl(2): the signal that a process gets when its parent ends
PR_SET_PDEATHSIG: Final = 1


@final
@dataclass(frozen=True)
class Subject:
    """What is to be seen.

    Attributes:
        name: of the field, with its unit.
        remark: a line below the title: who computed it, and how sure they are.
        extent: side lengths (Ly, Lx) [m].
        origin: coordinates (y, x) of the lower left corner [m].
    """

    values: NDArray[Any]
    name: str
    unit: str
    remark: str = ""
    extent: tuple[float, float] = (1.0, 1.0)
    origin: tuple[float, float] = (0.0, 0.0)


@final
class Pictures:
    """Draws one picture after the other, for a few who wait."""

    def __init__(self, start: Callable[[], Executor] | None = None) -> None:
        """``start``: whatever is to call ``draw``; default: a process of its own."""
        self._start = start or _process
        self._pool: Executor | None = None
        self._turn = asyncio.Lock()
        self._wanted = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place among those who wait; who takes it before anything is computed, computes nothing in vain.

        Raises:
            NotAvailableYet: matplotlib is not installed.
            Overloaded: there is none.
        """
        if importlib.util.find_spec("matplotlib") is None:
            raise NotAvailableYet("pictures need matplotlib beside the service: `pip install matplotlib`")
        if self._wanted == MOST_WANTED:
            message = f"{self._wanted} pictures are being drawn; try again later, or ask for the numbers"
            raise Overloaded(message, RETRY_AFTER)
        self._wanted += 1
        try:
            yield
        finally:
            self._wanted -= 1

    async def draw(self, subject: Subject) -> bytes:
        """A PNG; nothing is drawn for those who leave before it is their turn.

        Raises:
            WorkerLost: the process that drew it is gone.
        """
        await self._turn.acquire()
        drawing = asyncio.ensure_future(self._draw(subject))
        # a picture that was begun is drawn to its end, whoever leaves: the next one's turn is after that
        drawing.add_done_callback(lambda _: self._turn.release())
        return await asyncio.shield(drawing)

    async def _draw(self, subject: Subject) -> bytes:
        if self._pool is None:
            self._pool = self._start()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, draw, subject)
        except BrokenExecutor as error:
            self._pool = None
            raise WorkerLost("the process that draws pictures died; ask again") from error


def _process() -> Executor:
    # a process that is forked would have the threads' locks, and the listening sockets
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _live, (os.getpid(),))


def _live(parent: int) -> None:
    """Stay as long as the parent does, whatever ends it: nobody else knows of this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # it may have ended before it was asked to take this process along
    if os.getppid() != parent:
        os._exit(1)


def draw(subject: Subject) -> bytes:
    """A PNG of the subject."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    (ly, lx), (y0, x0) = subject.extent, subject.origin
    colors, scale = _scale(subject.values)
    image = axes.imshow(
        subject.values,
        cmap=colors,
        norm=scale,
        origin="lower",
        extent=(x0, x0 + lx, y0, y0 + ly),
        aspect="equal",
        interpolation="nearest",
    )
    unit = subject.unit.replace("^2", "²").replace("^3", "³")
    figure.colorbar(image, ax=axes, pad=0.02, shrink=0.94, label=f"{subject.name} [{unit}]")
    axes.set_xlabel("x [m]")
    axes.set_ylabel("y [m]")
    axes.set_title(subject.name, fontsize=13, loc="left")
    if subject.remark:
        axes.set_title(subject.remark, fontsize=8, loc="right", color="#555555")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _scale(values: NDArray[Any]) -> tuple[str, Any]:
    """Colors and their scale: about zero where there are both signs, logarithmic where one saw nothing."""
    from matplotlib.colors import LogNorm, Normalize

    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if low < 0 < high:
        size = max(-low, high)
        return SIGNED_COLORS, Normalize(-size, size)
    # a solution that falls to zero at its boundary is small in few places, and no reason for logarithms
    if low > 0 and high > LOGARITHMIC_CONTRAST * np.quantile(finite, FEW):
        return COLORS, LogNorm(low, high)
    return COLORS, Normalize(low, high)
