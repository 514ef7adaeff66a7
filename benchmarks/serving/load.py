"""Closed loops of clients from another process: ``h2load``, or this package's own where it is missing."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, final

import numpy as np
from numpy.typing import NDArray

from benchmarks.serving.process_tree import ProcessTree
from benchmarks.serving.request import Request, Route

__all__ = [
    "Burst",
    "ClosedLoop",
    "H2load",
    "LoadFailed",
    "OwnClosedLoop",
    "Traffic",
    "measure",
    "parse_latencies",
    "parse_summary",
    "preferred_loop",
    "prepared_body",
]


class LoadFailed(Exception):
    """The generator could not do its work."""


@final
@dataclass(frozen=True)
class Traffic:
    """What a generator saw.

    Attributes:
        answered: requests with a status of 200 (of gRPC, of HTTP's).
        failed: all others.
        seconds: how long it took.
        latencies: of the answered requests [s].
        received: bytes of the bodies.
    """

    answered: int
    failed: int
    seconds: float
    latencies: NDArray[np.float64]
    received: int = 0


@final
@dataclass(frozen=True)
class Burst:
    """Traffic, and what it cost the server."""

    rate: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    failed: int
    answered: int


class ClosedLoop(ABC):
    """So many clients, each of which asks again as soon as it is answered."""

    name: ClassVar[str]
    protocols: ClassVar[frozenset[Literal["http", "grpc"]]]

    @abstractmethod
    def drive(
        self, route: Route, request: Request, clients: int, seconds: float, cores: tuple[int, ...] = ()
    ) -> Traffic:
        """Load a route.

        Raises:
            LoadFailed: not one request was answered.
        """


def prepared_body(route: Route, request: Request) -> bytes:
    """The bytes behind the headers: gRPC prefixes a message with one flag and its length."""
    if route.protocol == "http":
        return request.body
    return b"\0" + len(request.body).to_bytes(4, "big") + request.body


@final
class H2load(ClosedLoop):
    """nghttp2's generator, in C: HTTP/1.1 and gRPC alike."""

    name = "h2load"
    protocols = frozenset({"http", "grpc"})

    def drive(
        self, route: Route, request: Request, clients: int, seconds: float, cores: tuple[int, ...] = ()
    ) -> Traffic:
        with tempfile.TemporaryDirectory() as folder:
            body, log = Path(folder) / "body", Path(folder) / "log"
            body.write_bytes(prepared_body(route, request))
            headers = dict(request.headers)
            if route.protocol == "grpc":
                headers |= {"content-type": "application/grpc", "te": "trailers"}
            command = [
                *pinning(cores),
                "h2load",
                f"--clients={clients}",
                f"--duration={round(1000 * seconds)}ms",
                f"--data={body}",
                f"--log-file={log}",
                *(["--h1"] if route.protocol == "http" else []),
                *(f"--header={name}: {value}" for name, value in headers.items()),
                route.origin + request.path,
            ]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60)
            except subprocess.TimeoutExpired as error:
                raise LoadFailed(f"h2load does not end: {route.title}") from error
            if done.returncode != 0 or not log.exists():
                raise LoadFailed(f"h2load: {done.stdout[-500:]} {done.stderr[-500:]}")
            return parse_summary(done.stdout, log.read_text())


def pinning(cores: tuple[int, ...]) -> list[str]:
    """What goes before a command that may use these cores only."""
    return ["taskset", "--cpu-list", ",".join(map(str, cores))] if cores else []


def parse_summary(output: str, log: str) -> Traffic:
    """What ``h2load`` prints, and its log of requests."""
    finished = re.search(r"^finished in ([\d.]+)(ms|s|us)", output, re.MULTILINE)
    statuses = re.search(r"^status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", output, re.MULTILINE)
    requests = re.search(
        r"^requests: .* (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", output, re.MULTILINE
    )
    traffic = re.search(r"^traffic: .* \((\d+)\) data$", output, re.MULTILINE)
    if finished is None or statuses is None or requests is None:
        raise LoadFailed(f"expected the summary of h2load, got: {output[-500:]}")
    good, *bad = map(int, statuses.groups())
    seconds = float(finished[1]) * {"s": 1.0, "ms": 1e-3, "us": 1e-6}[finished[2]]
    received = int(traffic[1]) if traffic else 0
    return Traffic(
        min(good, int(requests[1])), sum(bad) + int(requests[2]), seconds, parse_latencies(log), received
    )


def parse_latencies(log: str) -> NDArray[np.float64]:
    """Durations of the answered requests [s] in a log of ``h2load``: start, status and duration in a line."""
    rows = (line.split("\t") for line in log.splitlines())
    return np.array([int(row[2]) for row in rows if len(row) == 3 and row[1] == "200"], float) / 1e6


@final
class OwnClosedLoop(ClosedLoop):
    """This package's generator, in Python: HTTP/1.1 only, and it needs more of the CPU."""

    name = "asyncio"
    protocols = frozenset({"http"})

    def drive(
        self, route: Route, request: Request, clients: int, seconds: float, cores: tuple[int, ...] = ()
    ) -> Traffic:
        return own_generator(route, request, ["--clients", str(clients)], seconds, cores)


def own_generator(
    route: Route, request: Request, options: list[str], seconds: float, cores: tuple[int, ...]
) -> Traffic:
    """Run ``benchmarks.serving.generator`` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        head, log = Path(folder) / "request", Path(folder) / "log"
        head.write_bytes(http_request(request))
        command = [*pinning(cores), sys.executable, "-m", "benchmarks.serving.generator"]
        command += [str(route.port), str(head), str(log), "--seconds", str(seconds), *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 90)
        if done.returncode != 0:
            raise LoadFailed(f"generator: {done.stderr[-1000:]}")
        rows = [line.split() for line in log.read_text().splitlines()]
    latencies = np.array([float(duration) for _, status, duration in rows if status == "200"])
    return Traffic(len(latencies), len(rows) - len(latencies), float(done.stdout), latencies)


def http_request(request: Request) -> bytes:
    """A request of HTTP/1.1, as it goes over the wire."""
    headers = {"host": "127.0.0.1", "content-length": str(len(request.body)), **request.headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {request.path} HTTP/1.1\r\n{lines}\r\n".encode() + request.body


def preferred_loop() -> ClosedLoop:
    """``h2load`` where it is installed (Debian: nghttp2-client)."""
    return H2load() if shutil.which("h2load") else OwnClosedLoop()


def measure(
    loop: ClosedLoop,
    tree: ProcessTree,
    route: Route,
    request: Request,
    clients: int,
    seconds: float,
    cores: tuple[int, ...] = (),
) -> Burst:
    """One burst against a server.

    Raises:
        LoadFailed: nothing was answered.
    """
    before = tree.cpu_seconds()
    traffic = loop.drive(route, request, clients, seconds, cores)
    spent = tree.cpu_seconds() - before
    # at the end of a burst there are answers that have begun, and have no latency
    if not traffic.answered or not traffic.latencies.size:
        raise LoadFailed(f"{route.title}: none of {traffic.failed} requests was answered with 200")
    p50, p99 = np.percentile(traffic.latencies, (50, 99)) * 1e3
    rate = traffic.answered / traffic.seconds
    # the server has worked on what failed too
    cpu = 1e3 * spent / (traffic.answered + traffic.failed)
    return Burst(rate, float(p50), float(p99), cpu, traffic.failed, traffic.answered)
