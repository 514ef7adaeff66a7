"""A generator of load over HTTP/1.1: ``python -m benchmarks.serving.generator``, a process of its own.

Closed loop: so many clients, each asks again when it is answered. Open loop: requests at random times
(Poisson), whatever the server does, as strangers come; their latency counts from the time at which they were
due, so that a server cannot hide its queue by slowing its clients down.
"""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from typing import cast, final

import click
import uvloop

__all__ = ["Connection", "Row", "closed_loop", "open_loop"]

# an open loop's connections; a request that finds none free counts as failed
MOST_CONNECTIONS = 1000
# opened before the first is due
KEPT_OPEN = 32
# how long answers may take after the last request
PATIENCE = 20.0

# start [s], status (0: none), duration [s]
Row = tuple[float, int, float]


@final
class Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[int] | None = None
        self._buffer = bytearray()
        self._missing = -1
        self._status = 0
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def lost(self) -> bool:
        """Whether it has ended."""
        return self._gone.done()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is none by its class
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._gone.set_result(None)
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(0)

    def data_received(self, data: bytes) -> None:
        if self._missing < 0:
            self._buffer += data
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._buffer[:end]).lower()
            self._status = int(head[9:12])
            self._missing = _length(head) - (len(self._buffer) - end - 4)
            self._buffer.clear()
        else:
            self._missing -= len(data)
        if self._missing == 0:
            self._missing = -1
            assert self._answer is not None
            self._answer.set_result(self._status)

    async def ask(self, request: bytes) -> int:
        """Send a request; its status, 0 where the connection was lost."""
        assert self._transport is not None
        if self.lost:
            return 0
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    async def close(self) -> None:
        """Leave, answered or not."""
        assert self._transport is not None
        self._transport.abort()
        await self._gone


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    raise ValueError(f"expected an answer with a content-length, got {head!r}")


async def _connect(port: int) -> Connection:
    _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
    return connection


async def closed_loop(port: int, request: bytes, clients: int, seconds: float) -> list[Row]:
    """``clients`` loops for some seconds; requests then under way are waited for."""
    rows: list[Row] = []
    end = time.perf_counter() + seconds

    async def client() -> None:
        connection = await _connect(port)
        while (start := time.perf_counter()) < end:
            status = await connection.ask(request)
            rows.append((start, status, time.perf_counter() - start))
            if connection.lost:
                connection = await _connect(port)
        await connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return rows


async def open_loop(port: int, request: bytes, rate: float, seconds: float, seed: int = 0) -> list[Row]:
    """Requests at ``rate`` per second on average for some seconds."""
    draw = random.Random(seed)
    rows: list[Row] = []
    connections: list[Connection] = []
    idle: list[Connection] = []
    asked: set[asyncio.Task[None]] = set()

    async def opened() -> Connection:
        connection = await _connect(port)
        connections.append(connection)
        return connection

    async def ask(due: float) -> None:
        try:
            connection = idle.pop() if idle else await opened()
            status = await connection.ask(request)
        except OSError:
            status = 0
        else:
            if not connection.lost:
                idle.append(connection)
        rows.append((due, status, time.perf_counter() - due))

    idle += [await opened() for _ in range(KEPT_OPEN)]
    due = start = time.perf_counter()
    while (due := due + draw.expovariate(rate)) < start + seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        if len(asked) >= MOST_CONNECTIONS:
            rows.append((due, 0, 0.0))
            continue
        task = asyncio.create_task(ask(due))
        asked.add(task)
        task.add_done_callback(asked.discard)
    if asked:
        _, late = await asyncio.wait(asked, timeout=PATIENCE)
        rows += [(due, 0, PATIENCE) for _ in late]
    await asyncio.gather(*(connection.close() for connection in connections))
    return rows


@click.command()
@click.argument("port", type=int)
@click.argument("request_path", type=click.Path(exists=True, path_type=Path))
@click.argument("log_path", type=click.Path(path_type=Path))
@click.option("--seconds", type=float, required=True)
@click.option("--clients", type=int, help="Closed loop.")
@click.option("--rate", type=float, help="Open loop [1/s].")
def main(
    port: int, request_path: Path, log_path: Path, seconds: float, clients: int | None, rate: float | None
) -> None:
    """Load the server at PORT; a line per request goes to LOG, the time it took to standard output."""
    request = request_path.read_bytes()
    start = time.perf_counter()
    if clients is not None:
        work = closed_loop(port, request, clients, seconds)
    elif rate is not None:
        work = open_loop(port, request, rate, seconds)
    else:
        raise click.UsageError("expected --clients or --rate")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        rows = runner.run(work)
    log_path.write_text("".join(f"{a:.6f} {status} {b:.6f}\n" for a, status, b in rows))
    click.echo(f"{time.perf_counter() - start:.6f}")


if __name__ == "__main__":
    main()
