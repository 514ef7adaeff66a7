"""A field as a picture: a color bar with units, axes in metres, y upwards as in the training reports.

matplotlib draws it, in a process of its own: that takes a tenth of a second during which nobody else could
be answered, and as much memory as everything else here. The process is started by the first picture.
"""

from __future__ import annotations

import asyncio
import importlib.util
import io
import multiprocessing
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidField, NotAvailableYet, WorkerLost

__all__ = ["Pictures", "Subject", "draw"]

INCHES: Final = (6.4, 5.2)
DOTS_PER_INCH: Final = 130
# above this contrast a linear scale shows nothing of the small values
LOGARITHMIC_CONTRAST: Final = 100.0
COLORS: Final = "magma"
SIGNED_COLORS: Final = "RdBu_r"


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
    """Draws one picture after the other."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    async def draw(self, subject: Subject) -> bytes:
        """A PNG.

        Raises:
            InvalidField: there are several fields.
            NotAvailableYet: matplotlib is not installed.
            WorkerLost: the process that drew it is gone.
        """
        if subject.values.ndim != 2:
            message = f"a picture shows one field (ny, nx), got {len(subject.values)} of them; ask for each"
            raise InvalidField(subject.name, "rank", message)
        if importlib.util.find_spec("matplotlib") is None:
            raise NotAvailableYet("pictures need matplotlib beside the service: `pip install matplotlib`")
        if self._pool is None:
            # a process that is forked would have the threads' locks, and the listening sockets
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, context, signal.signal, (signal.SIGINT, signal.SIG_IGN))
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, draw, subject)
        except BrokenProcessPool as error:
            self.close()
            raise WorkerLost("the process that draws pictures died; ask again") from error

    def close(self) -> None:
        """End the process."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)


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
    if low > 0 and high > LOGARITHMIC_CONTRAST * low:
        return COLORS, LogNorm(low, high)
    return COLORS, Normalize(low, high)
