"""The measurement: rounds in which every route has its burst, so that all meet the same machine."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np
import torch

from benchmarks.serving.client import check, refusal
from benchmarks.serving.load import Burst, ClosedLoop, LoadFailed, measure
from benchmarks.serving.models import SIDE, build
from benchmarks.serving.process_tree import pss_bytes
from benchmarks.serving.raw_forward import BATCHES, RawForward
from benchmarks.serving.request import Array, Request, Route
from benchmarks.serving.results import Cell, Results
from benchmarks.serving.server import (
    Place,
    Running,
    Server,
    ServerFailed,
    free_port,
    running,
    wait_until,
)

__all__ = ["Plan", "Report", "Target", "field", "measure_rounds", "started"]

Report = Callable[[str], None]


@final
@dataclass(frozen=True)
class Plan:
    """What is measured, and how long.

    Attributes:
        environments: folder with an environment for each peer.
        work: folder for the servers' files.
        server_cores: empty: all.
        load_cores: empty: all.
        skip: keys of routes that are left out.
    """

    servers: tuple[Server, ...]
    environments: Path
    work: Path
    loop: ClosedLoop
    clients: tuple[int, ...] = (1, 8, 32)
    bursts: int = 5
    seconds: float = 1.3
    warm_up: float = 0.3
    frozen: bool = False
    server_cores: tuple[int, ...] = ()
    load_cores: tuple[int, ...] = ()
    skip: frozenset[str] = frozenset()

    def without(self, routes: frozenset[str]) -> Plan:
        """The same, with these routes left out too."""
        return replace(self, skip=self.skip | routes)

    def place(self, server: Server, models: tuple[str, ...]) -> Place:
        """A fresh folder and free ports for a server."""
        folder = self.work / f"{server.name}-{'-'.join(models)}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return Place(
            self.environments / server.name,
            folder,
            models,
            free_port(),
            free_port(),
            self.frozen,
            self.server_cores,
        )


@final
@dataclass(frozen=True)
class Target:
    """A route of a server that runs, and the request that is sent to it."""

    running: Running
    route: Route
    request: Request


def field(seed: int = 0, side: int = SIDE) -> Array:
    """A permeability."""
    return np.exp(np.random.default_rng(seed).standard_normal((side, side))).astype(np.float32)


def expected(model: str, frozen: bool, values: Array) -> Array:
    """What the forward itself gives."""
    answer: Array = build(model, frozen)(torch.from_numpy(values)[None]).numpy()[0]
    return answer


@contextmanager
def started(server: Server, plan: Plan, models: tuple[str, ...]) -> Iterator[Running]:
    """A server that has answered its first route, of each model.

    Raises:
        ServerFailed: it does not.
    """
    with running(server, plan.place(server, models)) as process:
        for model in models:
            _await_answer(process, server.routes(process.place, model)[0], model, plan.frozen)
        yield process


def _await_answer(process: Running, route: Route, model: str, frozen: bool) -> None:
    values = field()
    wanted = expected(model, frozen, values)
    trouble: str | None = None

    def answers() -> bool:
        nonlocal trouble
        # not every server can say NaN, on every route
        trouble = check(route, values, wanted) if model != "nan" else refusal(route, values)
        return trouble is None

    try:
        wait_until(answers, process)
    except ServerFailed as error:
        raise ServerFailed(f"{error}\n{trouble}") from error


def measure_rounds(model: str, plan: Plan, results: Results, report: Report) -> None:
    """All rounds with one model."""
    raw = RawForward(model, plan.frozen)
    results.raw_ms[model] = {batch: [] for batch in BATCHES}
    with ExitStack() as stack:
        processes = list(_start(model, plan, results, report, stack))
        targets = list(_targets(processes, model, plan, results, report))
        cells = _cells(model, plan, targets)
        results.cells += cells.values()
        _warm_up(targets, plan)
        for number in range(plan.bursts):
            _sample_raw(raw, model, results)
            _round(number, plan, targets, cells, results)
            _sample_raw(raw, model, results)
            report(f"{model}: round {number + 1} of {plan.bursts}")
        _weigh(processes, model, results)


def _start(model: str, plan: Plan, results: Results, report: Report, stack: ExitStack) -> Iterator[Running]:
    for server in plan.servers:
        report(f"{model}: starting {server.name}")
        try:
            process = stack.enter_context(started(server, plan, (model,)))
        except (ServerFailed, OSError) as error:
            results.troubles.append(f"{server.title} with {model}: {error}")
            report(results.troubles[-1])
        else:
            process.sleep()
            yield process


def _targets(
    processes: Sequence[Running], model: str, plan: Plan, results: Results, report: Report
) -> Iterator[Target]:
    """The routes whose answers are right to the last bit."""
    values = field(1)
    wanted = expected(model, plan.frozen, values)
    for process in processes:
        for route in process.server.routes(process.place, model):
            if route.protocol not in plan.loop.protocols or route.key in plan.skip:
                continue
            with process.awake():
                trouble = check(route, values, wanted)
            if trouble is None:
                yield Target(process, route, route.encode(values))
            else:
                results.troubles.append(f"{route.title} with {model}: {trouble}")
                report(results.troubles[-1])


def _cells(model: str, plan: Plan, targets: Sequence[Target]) -> dict[tuple[str, int], Cell]:
    return {
        (target.route.key, clients): Cell(model, target.route.key, target.route.title, clients)
        for target in targets
        for clients in plan.clients
    }


def _warm_up(targets: Sequence[Target], plan: Plan) -> None:
    for target in targets:
        with target.running.awake(), suppress(LoadFailed):
            for clients in plan.clients:
                plan.loop.drive(target.route, target.request, clients, plan.warm_up)


def _round(
    number: int,
    plan: Plan,
    targets: Sequence[Target],
    cells: dict[tuple[str, int], Cell],
    results: Results,
) -> None:
    # every round begins with another target, so that no two always meet in the same order
    first = number % max(1, len(targets))
    for clients in plan.clients:
        for target in (*targets[first:], *targets[:first]):
            try:
                burst = _burst(target, plan, clients)
            except LoadFailed as error:
                burst = None
                results.troubles.append(
                    f"{target.route.title}, round {number + 1}, {clients} clients: {error}"
                )
            cells[target.route.key, clients].bursts.append(burst)


def _burst(target: Target, plan: Plan, clients: int) -> Burst:
    """One cell of one round: a short run that does not count, then the one that does."""
    route, request = target.route, target.request
    with target.running.awake():
        plan.loop.drive(route, request, clients, plan.warm_up, plan.load_cores)
        return measure(plan.loop, target.running.tree, route, request, clients, plan.seconds, plan.load_cores)


def _sample_raw(raw: RawForward, model: str, results: Results) -> None:
    for batch in BATCHES:
        results.raw_ms[model][batch].append(raw.milliseconds(batch))


def _weigh(processes: Sequence[Running], model: str, results: Results) -> None:
    for process in processes:
        memory = results.memory_mb.setdefault(process.server.name, {})
        memory[model] = process.tree.pss_bytes() / 2**20
        results.fronts_mb += [pss_bytes(pid) / 2**20 for pid in process.server.fronts(process.tree)]
