"""What is measured beside the closed loops: probes at saturation, strangers' arrivals, bits under load."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, Final

import numpy as np

from benchmarks.serving import forms
from benchmarks.serving.client import Refused, ask
from benchmarks.serving.load import ClosedLoop, LoadFailed, Traffic, own_generator
from benchmarks.serving.request import Request, Route
from benchmarks.serving.results import Results
from benchmarks.serving.rounds import Plan, Report, field, started
from benchmarks.serving.server import Running, ServerFailed

__all__ = ["measure_extras"]

BUSY: Final = 32
PROBE_PAUSE: Final = 0.01
LOADS: Final = (0.5, 0.8, 0.95, 1.2)


def measure_extras(plan: Plan, results: Results, report: Report) -> None:
    """Everything here, with the real model, a server at a time."""
    health: list[dict[str, Any]] = []
    arrivals: list[dict[str, Any]] = []
    for server in plan.servers:
        try:
            with started(server, plan, ("patch",)) as process:
                report(f"extras: {server.name}")
                health.append(_health(process, plan))
                if server.name in ("mno", "triton"):
                    arrivals += _open_loop(process, plan)
                if server.name == "mno":
                    results.extras["Reproducible"] = _reproducible(process, plan)
        except (ServerFailed, LoadFailed, Refused) as error:
            results.troubles.append(f"extras of {server.title}: {error}")
    results.extras["Health at saturation"] = health
    results.extras["Open loop, Poisson arrivals"] = arrivals


@contextmanager
def _loaded(loop: ClosedLoop, route: Route, request: Request, seconds: float) -> Iterator[None]:
    """Clients in another process, as long as the block runs, and no longer than some seconds."""
    thread = threading.Thread(target=partial(loop.drive, route, request, BUSY, seconds))
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _health(process: Running, plan: Plan) -> dict[str, Any]:
    """Latency of the probe while 32 clients keep the server busy."""
    route = _loadable(process, plan)
    seconds = 2 * plan.seconds
    taken = []
    with _loaded(plan.loop, route, route.encode(field()), seconds):
        time.sleep(0.3)
        until = time.perf_counter() + seconds - 0.5
        with closing(http.client.HTTPConnection("127.0.0.1", process.place.http_port, timeout=10)) as probe:
            while (start := time.perf_counter()) < until:
                probe.request("GET", process.server.health)
                probe.getresponse().read()
                taken.append(1e3 * (time.perf_counter() - start))
                time.sleep(PROBE_PAUSE)
    p50, p99 = np.percentile(taken, (50, 99))
    return {"server": process.server.name, "probes": len(taken), "p50 ms": float(p50), "p99 ms": float(p99)}


def _loadable(process: Running, plan: Plan) -> Route:
    routes = process.server.routes(process.place, "patch")
    return next(route for route in routes if route.protocol in plan.loop.protocols)


def _open_loop(process: Running, plan: Plan) -> Iterator[dict[str, Any]]:
    """Random arrivals at shares of what 32 clients got."""
    route = next(route for route in process.server.routes(process.place, "patch") if route.protocol == "http")
    request = route.encode(field())
    closed = plan.loop.drive(route, request, BUSY, 2 * plan.seconds)
    capacity = closed.answered / closed.seconds
    for share in LOADS:
        options = ["--rate", f"{share * capacity:.3f}"]
        traffic = own_generator(route, request, options, 3 * plan.seconds, plan.load_cores)
        yield _arrivals(route.title, share, capacity, traffic)


def _arrivals(title: str, share: float, capacity: float, traffic: Traffic) -> dict[str, Any]:
    p50, p99 = np.percentile(traffic.latencies, (50, 99)) * 1e3 if traffic.answered else (np.nan, np.nan)
    return {
        "route": title,
        "load": f"{share:.0%} of {capacity:.0f}/s",
        "answered": traffic.answered,
        "refused or lost": traffic.failed,
        "p50 ms": float(p50),
        "p99 ms": float(p99),
    }


def _reproducible(process: Running, plan: Plan) -> str:
    """Whether answers have the bits of a lone request, whoever else is served."""
    fields = [field(seed) for seed in range(8)]
    port = process.place.http_port
    route = Route(
        "mno-reproducible",
        "mno: .npy, reproducible",
        "http",
        port,
        partial(forms.solve_npy, "patch", options="&reproducible=true"),
        forms.from_npy,
    )
    alone = [route.decode(ask(route, route.encode(values))) for values in fields]
    rounds = 5
    with _loaded(plan.loop, route, route.encode(field(99)), 2.0):
        different = sum(
            not np.array_equal(route.decode(ask(route, route.encode(values))), wanted)
            for _ in range(rounds)
            for values, wanted in zip(fields, alone, strict=True)
        )
    asked = rounds * len(fields)
    return f"bit-equal, {asked} of {asked}" if not different else f"{different} of {asked} differ"
