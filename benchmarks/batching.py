"""When a batch should wait for company: the batcher's own code on a clock that is not the wall's.

    python -m benchmarks.batching [--seconds 10] [--seed 0] [--costs overhead]

The queue, the rules and the event loop are real; only time and the worker are simulated, so that the table
is the same on every machine. The worker takes as long as a small network does whose operators cost more to
call than to compute (``overhead``: a fixed part, cheap rows), or one that is limited by its arithmetic
(``arithmetic``: no fixed part), or one that gives back what it gets (``null``). Clients either ask again as
soon as they are answered (closed loop), or come at random, whatever the service does (Poisson, at a share of
the largest throughput).
"""

from __future__ import annotations

import asyncio
import random
import selectors
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, final

import click
import numpy as np
from numpy.typing import DTypeLike, NDArray

from problems import Grid
from service.batching.batcher import Batcher, BatchRules, Outcome
from service.batching.linger import Greedy, Linger, Returners
from service.errors import Overloaded
from service.workers.worker import Batch, Bucket, Solutions, Worker

__all__ = ["COSTS", "RULES", "Cell", "HighWaterMark", "batching", "measure"]

# time of a batch by its rows, as measured [s]
COSTS: Final[Mapping[str, Mapping[int, float]]] = {
    "overhead": {1: 4.2e-3, 2: 8.6e-3, 4: 9.2e-3, 8: 10.0e-3, 16: 13.6e-3, 24: 16.2e-3, 32: 19.5e-3},
    "arithmetic": {1: 4e-3, 32: 128e-3},
    "null": {1: 60e-6, 32: 220e-6},
}
MAX_BATCH: Final = 32
# what the front spends on an answer before the next one, and a client before it asks again [s]
FRONT: Final = 0.1e-3
CLIENT: Final = (0.1e-3, 0.4e-3)
LOADS: Final = (0.5, 0.8, 0.95, 1.2)
CLIENTS: Final = (1, 2, 4, 8, 16, 32, 64)


@final
class VirtualSelector(selectors.BaseSelector):
    """Waits for nothing: where a selector would sleep, it moves the clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self._map: dict[Any, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """See ``BaseSelector``."""
        key = selectors.SelectorKey(fileobj, 0, events, data)
        self._map[fileobj] = key
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """See ``BaseSelector``."""
        return self._map.pop(fileobj)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Move the clock; with no timer set everybody waits for somebody else."""
        if timeout is None:
            raise RuntimeError("everybody waits, and nothing is going to happen")
        self.now += max(timeout, 0.0)
        return []

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """See ``BaseSelector``."""
        return self._map


@final
class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose seconds take no time."""

    def __init__(self) -> None:
        self._virtual = VirtualSelector()
        super().__init__(self._virtual)

    def time(self) -> float:
        """The simulated time [s]."""
        return self._virtual.now


@final
class HighWaterMark(Linger):
    """Holds a batch until it has as many rows as were under way at once lately; what was tried first."""

    def __init__(self, longest: float, memory: float = 0.05) -> None:
        """``memory``: time in which the mark falls to a third [s]."""
        self._longest = longest
        self._memory = memory
        self._mark = 0.0
        self._at = 0.0
        self._under_way = 0
        self._since: float | None = None

    def arrived(self, rows: int, now: float) -> None:
        """See ``Linger``."""
        self._under_way += rows
        self._mark = max(self._under_way, self._mark * float(np.exp((self._at - now) / self._memory)))
        self._at = now

    def answered(self, rows: int, now: float, overhead: float) -> None:  # noqa: ARG002
        """See ``Linger``."""
        self._under_way -= rows
        self._since = None

    def left(self, now: float) -> None:
        """See ``Linger``."""

    def until(self, rows: int, now: float) -> float:
        """See ``Linger``."""
        if self._since is None:
            self._since = now
        mark = self._mark * float(np.exp((self._at - now) / self._memory))
        return -1.0 if rows >= round(mark) else self._since + self._longest


@final
class Fixed(Linger):
    """Holds every batch for the same time."""

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._since: float | None = None

    def arrived(self, rows: int, now: float) -> None:
        """See ``Linger``."""

    def answered(self, rows: int, now: float, overhead: float) -> None:  # noqa: ARG002
        """See ``Linger``."""
        self._since = None

    def left(self, now: float) -> None:
        """See ``Linger``."""

    def until(self, rows: int, now: float) -> float:  # noqa: ARG002
        """See ``Linger``."""
        if self._since is None:
            self._since = now
        return self._since + self._longest


RULES: Final[Mapping[str, Callable[[float], Linger]]] = {
    "greedy": lambda _: Greedy(),
    "fixed": Fixed,
    "high-water mark": HighWaterMark,
    "returners": Returners,
}


@final
class SimulatedWorker(Worker):
    """Takes as long as a model would, give or take a few percent."""

    def __init__(self, costs: Mapping[int, float], rng: random.Random) -> None:
        self._rows, self._seconds = list(costs), list(costs.values())
        self._rng = rng
        self.batches: list[int] = []

    async def run(self, parts: Sequence[Batch], *, pad_to: int | None = None) -> Solutions:
        """See ``Worker``."""
        rows = sum(part.rows for part in parts)
        self.batches.append(rows)
        seconds = float(np.interp(pad_to or rows, self._rows, self._seconds))
        await asyncio.sleep(seconds * self._rng.uniform(0.95, 1.1))
        return Solutions({"y": np.empty(rows)}, (0,) * rows)

    @property
    def available(self) -> bool:
        """See ``Worker``."""
        return True

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """See ``Worker``."""
        return np.empty(shape, dtype)

    def close(self) -> None:
        """See ``Worker``."""


@final
@dataclass(frozen=True)
class Cell:
    """What was seen of one rule under one load: answers a second, latencies [ms], and rows of a batch."""

    rate: float
    mean: float
    p50: float
    p99: float
    batch: float
    refused: float


@dataclass
class _Record:
    latencies: list[float] = field(default_factory=list)
    refused: int = 0
    sent: int = 0


def measure(
    costs: Mapping[int, float],
    linger: Callable[[float], Linger],
    load: Callable[[Batcher, random.Random, float, _Record], Any],
    *,
    seconds: float,
    seed: int,
) -> Cell:
    """Simulate one cell of the table."""
    rng = random.Random(seed)
    worker = SimulatedWorker(costs, rng)
    record = _Record()

    async def run() -> None:
        loop = asyncio.get_running_loop()
        rules = BatchRules(max_batch=MAX_BATCH, queue_seconds=0.2)
        batcher = Batcher(worker, rules, linger=linger, clock=loop.time)
        await load(batcher, rng, seconds, record)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(run())
    latencies = np.array(record.latencies) * 1000
    return Cell(
        rate=len(latencies) / seconds,
        mean=float(latencies.mean()),
        p50=float(np.percentile(latencies, 50)),
        p99=float(np.percentile(latencies, 99)),
        batch=statistics.fmean(worker.batches),
        refused=record.refused / max(record.sent, 1),
    )


_NUMBER: Final = np.zeros(1, np.float32)
_BATCH: Final = Batch(Bucket("darcy", None, "", Grid((8, 8)), "float32"), {"x": _NUMBER})


async def _ask(batcher: Batcher, record: _Record) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    record.sent += 1
    try:
        outcome: Outcome = await batcher.submit(_BATCH)
    except Overloaded:
        record.refused += 1
        return
    assert outcome.batch_size
    record.latencies.append(loop.time() - began)


async def closed_loop(
    clients: int, batcher: Batcher, rng: random.Random, seconds: float, record: _Record
) -> None:
    """So many clients that ask again when they are answered; their answers leave one after another."""
    loop = asyncio.get_running_loop()
    free = [0.0]

    async def client() -> None:
        while loop.time() < seconds:
            await _ask(batcher, record)
            free[0] = max(free[0], loop.time()) + FRONT
            await asyncio.sleep(free[0] - loop.time() + rng.uniform(*CLIENT))

    await asyncio.gather(*(client() for _ in range(clients)))


async def open_loop(
    rate: float, batcher: Batcher, rng: random.Random, seconds: float, record: _Record
) -> None:
    """So many requests a second, independent of each other and of the answers."""
    loop = asyncio.get_running_loop()
    running = set()
    while loop.time() < seconds:
        running.add(asyncio.ensure_future(_ask(batcher, record)))
        await asyncio.sleep(rng.expovariate(rate))
    await asyncio.gather(*running)


def _loads(costs: Mapping[int, float]) -> Iterator[tuple[str, Callable[..., Any]]]:
    for clients in CLIENTS:
        yield f"{clients} clients", partial(closed_loop, clients)
    largest = max(costs)
    for load in LOADS:
        yield f"Poisson {load:.0%}", partial(open_loop, load * largest / costs[largest])


@click.command()
@click.option("--seconds", default=10.0, help="Simulated time of a cell; of null, a tenth.")
@click.option("--seed", default=0)
@click.option("--costs", default=",".join(COSTS), help="Models, comma-separated.")
def batching(seconds: float, seed: int, costs: str) -> None:
    """Compare the rules that hold batches: greedy, fixed, high-water mark and returners (the default)."""
    for name in costs.split(","):
        click.echo(f"\nmodel {name}: requests/s, mean/p50/p99 ms, mean batch")
        click.echo("| load | " + " | ".join(RULES) + " |")
        click.echo("|---" * (len(RULES) + 1) + "|")
        for load, asked in _loads(COSTS[name]):
            cells = (measure(COSTS[name], rule, asked, seconds=seconds, seed=seed) for rule in RULES.values())
            click.echo(f"| {load} | " + " | ".join(map(_shown, cells)) + " |", nl=True)


def _shown(cell: Cell) -> str:
    refused = f", {cell.refused:.0%} refused" if cell.refused else ""
    return f"{cell.rate:.0f}, {cell.mean:.1f}/{cell.p50:.1f}/{cell.p99:.1f}, {cell.batch:.1f}{refused}"


if __name__ == "__main__":
    batching()
