"""The process of the reference solvers: ``python -m service.workers.numerics FD LOGS``; numba and no torch.

Three threads compute one batch each at a time: ``references`` solves, ``marches`` steps in time, ``bounds``
bounds errors, so that a long march keeps nobody from a bound.

LOGS are the settings of its log as JSON. Over its control socket FD (see ``service.workers.lane``) it says::

    {"ready": {"lanes": ["references", "marches", "bounds"]}, "seconds": to warm up}
    {"failed": "why"}                                  instead, and the process ends with status 1

and hears::

    {"lane": "front 0", "to": "references"}  + 2 descriptors: an end of a lane, and the arena of that front
    {"drain": true}                                    answer what came over the lanes, then end with status 0

The end of the control socket means drain, too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from problems import EVOLUTION_PROBLEMS, STEADY_PROBLEMS, Grid
from service.processes.signals import ignore_stops
from service.telemetry.logs import LogSettings, set_up_logs
from service.workers.lane import BlockingLane, LaneClosed
from service.workers.lane_server import HostRunner, LaneServer, Watch, obey
from service.workers.reference import advance_reference, bound_errors, solve_reference
from service.workers.sample import sample
from service.workers.worker import (
    ANSWER,
    AS_THE_GRID_RESOLVES,
    COTANGENT,
    DEADLINE,
    QUANTITIES,
    STEP,
    TANGENT,
    TOLERANCE,
    Batch,
    Bucket,
    Compute,
)

__all__ = ["LANES", "main", "warm_up"]

log = logging.getLogger("mno.service")

LANES: Final[Mapping[str, Compute]] = {
    "references": solve_reference,
    "marches": advance_reference,
    "bounds": bound_errors,
}
# cells along a side, to warm up
WARM_UP_GRID: Final = (64, 64)


def main(control: socket.socket) -> int:
    """Compute until drained; returns the exit status."""
    lane = BlockingLane(control)
    began = time.perf_counter()
    try:
        warm_up()
    except Exception as error:  # the edge of the process
        log.exception("the reference solvers cannot be warmed up")
        lane.send({"failed": f"{type(error).__name__}: {error}"})
        return 1
    watch = Watch()
    servers = {name: LaneServer(HostRunner(compute), Watch()) for name, compute in LANES.items()}
    threads = [threading.Thread(target=_serve, args=(each,), name=name) for name, each in servers.items()]
    for thread in threads:
        thread.start()
    obey(watch, lane, servers)
    lane.send({"ready": {"lanes": list(LANES)}, "seconds": round(time.perf_counter() - began, 3)})
    watch.run()
    for thread in threads:
        thread.join()
    for server in servers.values():
        server.close()
    return 0


def _serve(server: LaneServer) -> None:
    try:
        server.watch.run()
    except BaseException:  # a lane that nobody serves any more: the supervisor has to start all of this again
        log.exception("a thread of the reference solvers broke")
        os._exit(1)


def warm_up() -> None:
    """Compute a plain sample of every problem, so that no request waits for a compiler."""
    for problem in STEADY_PROBLEMS.values():
        bucket = Bucket(problem.name, None, problem.schemes[0], Grid(WARM_UP_GRID), "float64")
        inputs = sample(problem, WARM_UP_GRID, "float64")
        answer = solve_reference(Batch(bucket, inputs)).fields
        start = {f"{ANSWER}{name}": values for name, values in answer.items()}
        bound_errors(Batch(bucket, {**inputs, **start}))
        for batch in _certified_samples(bucket, {**inputs, **start}):
            solve_reference(batch)
    for evolution in EVOLUTION_PROBLEMS.values():
        grid = Grid(WARM_UP_GRID, evolution.grid.extent, evolution.grid.origin)
        bucket = Bucket(
            evolution.name, None, evolution.schemes[0], grid, "float64", evolution.walls[0], "advance"
        )
        advance_reference(Batch(bucket, {**sample(evolution, WARM_UP_GRID, "float64"), STEP: np.zeros(1)}))


def _certified_samples(bucket: Bucket, fields: Mapping[str, NDArray[Any]]) -> Iterator[Batch]:
    """A batch of each task whose answers have guaranteed errors."""
    problem = STEADY_PROBLEMS[bucket.problem]
    asked = {TOLERANCE: np.full(1, 1e-6), DEADLINE: np.full(1, np.inf)}
    some = {**fields, **asked}
    one = np.ones((1, 1, *bucket.grid.shape))
    yield Batch(replace(bucket, task="certify"), fields)
    yield Batch(replace(bucket, task="refine"), some)
    yield Batch(replace(bucket, task="refine"), {**some, TOLERANCE: np.full(1, AS_THE_GRID_RESOLVES)})
    yield Batch(replace(bucket, task="adjoint"), {**some, f"{COTANGENT}{problem.outputs[0].name}": one})
    yield Batch(replace(bucket, task="tangent"), {**some, f"{TANGENT}{problem.inputs[0].name}": one})
    yield Batch(replace(bucket, task="quantities"), {**some, QUANTITIES: np.zeros((1, 1, 3))})


if __name__ == "__main__":
    ignore_stops()
    set_up_logs(LogSettings.model_validate_json(sys.argv[2]), "numerics")
    status = 0
    # whoever wanted this process may be gone before it is ready
    with contextlib.suppress(LaneClosed):
        status = main(socket.socket(fileno=int(sys.argv[1])))
    logging.shutdown()
    # to take a compiler apart would take half a second
    os._exit(status)
