"""A shadow: a version that gets the requests of another one for comparison, and whose answers nobody sees."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, Protocol, final

import numpy as np
from numpy.typing import NDArray

from service.errors import ServiceFault
from service.ticket import Ticket
from service.versions.models import Served
from service.workers.worker import Batch

__all__ = ["Comparisons", "NoComparisons", "Shadows"]

log = logging.getLogger("mno.service")

# comparisons under way: when there are more, the requests that come go uncompared
_MOST: Final = 8
# larger requests go uncompared: their fields would be held too long [B]
_MOST_BYTES: Final = 16 * 2**20
_TICKET: Final = Ticket(client="shadow", priority="bulk")


class Observations(Protocol):
    """Where differences are counted."""

    def observe(self, amount: float) -> None:
        """One relative L2 difference."""


class Comparisons(Protocol):
    """What is told of shadows; ``service.telemetry.metrics`` counts it."""

    def shadow(self, model: str, version: str, shadow: str) -> Observations:
        """Where the differences between two versions are counted."""

    def shadow_failed(self, model: str, shadow: str) -> None:
        """A shadow gave no answer to compare."""


@final
class _Nowhere:
    def observe(self, amount: float) -> None:
        """See ``Observations``."""


@final
class NoComparisons:
    """Tells nobody."""

    def shadow(self, model: str, version: str, shadow: str) -> Observations:  # noqa: ARG002
        """See ``Comparisons``."""
        return _Nowhere()

    def shadow_failed(self, model: str, shadow: str) -> None:
        """See ``Comparisons``."""


@final
class Shadows:
    """Asks shadows, a few at a time; never delays an answer or fails it."""

    def __init__(self, comparisons: Comparisons) -> None:
        self._comparisons = comparisons
        self._running: set[asyncio.Task[None]] = set()

    def follow(self, served: Served, batch: Batch, answers: Mapping[str, NDArray[Any]]) -> None:
        """Ask the shadow of ``served``, where it has one, what it answers to ``batch``."""
        shadow = served.shadow
        if shadow is None or len(self._running) >= _MOST or batch.nbytes > _MOST_BYTES:
            return
        if batch.bucket.grid.shape not in shadow.version.grids:
            return
        task = asyncio.get_running_loop().create_task(self._compare(served, shadow, batch, answers))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def close(self) -> None:
        """Ask no more."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _compare(
        self, served: Served, shadow: Served, batch: Batch, answers: Mapping[str, NDArray[Any]]
    ) -> None:
        model, version, other = served.version.name, str(served.version.version), str(shadow.version.version)
        bucket = replace(
            batch.bucket,
            version=shadow.version.reference,
            scheme=shadow.version.scheme,
            frames=shadow.version.frames or 1,
        )
        try:
            outcome = await shadow.queue.submit(Batch(bucket, batch.fields), _TICKET)
            differences = await asyncio.to_thread(_differences, answers, outcome.solutions.fields)
        except ServiceFault:
            self._comparisons.shadow_failed(model, other)
        except Exception:  # a comparison is nobody's request
            log.exception("%s cannot be compared with its shadow %s", served.version, shadow.version)
            self._comparisons.shadow_failed(model, other)
        else:
            observations = self._comparisons.shadow(model, version, other)
            for difference in differences:
                observations.observe(difference)


def _differences(answers: Mapping[str, NDArray[Any]], others: Mapping[str, NDArray[Any]]) -> list[float]:
    """``||other - answer||_2 / ||answer||_2`` of each row, over all fields and the frames that both have."""
    squares, norms = 0.0, 0.0
    for name, values in answers.items():
        axes = tuple(range(1, values.ndim))
        ours, theirs = _comparable(values, others[name])
        answer = ours.astype(np.float64)
        squares = squares + np.sum((theirs - answer) ** 2, axis=axes)
        norms = norms + np.sum(answer**2, axis=axes)
    found = np.sqrt(squares) / np.maximum(np.sqrt(norms), np.finfo(np.float64).tiny)
    return [float(value) for value in np.atleast_1d(found)]


def _comparable(values: NDArray[Any], other: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Of [batch frame y x] the frames that both have, which are the first ones; [batch y x] as it is."""
    if values.ndim < 4:
        return values, other
    frames = min(values.shape[1], other.shape[1])
    return values[:, :frames], other[:, :frames]
