"""A process that holds one version: loads it, warms it up, and computes batches for all fronts.

Over its control socket (see ``service.workers.lane``) it says::

    {"ready": ServedVersion as JSON, "costs": [[ny, nx, rows, seconds], ...], "seconds": to load and warm up,
     "device": "cpu" or "cuda:0", where it computes}
    {"failed": "why"}                                  instead, and the process ends with status 1

and hears::

    {"lane": "front 0"}  + 2 descriptors               an end of a lane, and the arena of that front
    {"memory": true}                                   says ``{"memory": {...}}``, see ``memory.py``
    {"drain": true}                                    answer what came over the lanes, then end with status 0

The end of the control socket means drain, too. A front that goes away closes its lane.
"""

from __future__ import annotations

import importlib
import logging
import math
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self, final

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveInt, model_validator

from model_store import StoreError, open_catalog
from model_store.cache import CachePlace
from operators.scan import set_default_backend
from problems import PROBLEMS, STEADY_PROBLEMS
from service.errors import InvalidSettings
from service.telemetry.logs import LogSettings, set_up_logs
from service.versions.loading import load_version, served_version
from service.versions.served import ServedVersion
from service.workers.batch_token import Job
from service.workers.compute import Surrogates, choose_device
from service.workers.cuda_graphs import GraphRunner
from service.workers.invariants import warm_up_invariants
from service.workers.lane import BlockingLane
from service.workers.lane_server import HostRunner, LaneServer, Runner, Watch, obey
from service.workers.sample import Cost, batch_sizes, plain_bucket, sample
from service.workers.worker import ANSWER

__all__ = ["ModelSpec", "main", "warm_up"]

log = logging.getLogger("mno.service")


@final
class ModelSpec(BaseModel):
    """What a worker process is to hold; travels as JSON.

    Attributes:
        store: URL of a user's store, searched before the built-in models; None: the built-in models.
        kept: where what is read of a store behind a network is kept; None: nowhere.
        model: ``name@number``.
        factory: instead of ``model``: ``module:function``, which is called with ``arguments`` by name and
            returns a ServedVersion and a Compute.
        threads: of the model, on a CPU.
        max_batch: the most rows of a batch.
        warm_up_seconds: beyond the first batch of each grid, how long to go on with larger ones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str | None = None
    kept: CachePlace | None = None
    model: str | None = None
    factory: str | None = None
    arguments: Mapping[str, Any] = {}
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$")
    threads: PositiveInt = 1
    scan_backend: str | None = None
    max_batch: PositiveInt = 32
    warm_up_seconds: NonNegativeFloat = 0.1
    logs: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _names_one_source(self) -> Self:
        if (self.model is None) == (self.factory is None):
            raise ValueError("expected either model or factory")
        return self


def main(control: socket.socket, spec: Mapping[str, Any]) -> int:
    """Be a worker for a ModelSpec in its JSON form until drained; returns the exit status."""
    lane = BlockingLane(control)
    began = time.perf_counter()
    try:
        version, runner, costs = _prepared(ModelSpec.model_validate(spec))
    except (StoreError, InvalidSettings) as error:
        lane.send({"failed": str(error)})
        return 1
    except Exception as error:  # whatever it is, the supervisor has to know
        log.exception("a version does not load")
        lane.send({"failed": f"{type(error).__name__}: {error}"})
        return 1
    watch = Watch()
    server = LaneServer(runner, watch)
    obey(watch, lane, {"": server})
    seconds = round(time.perf_counter() - began, 3)
    measured = {"costs": costs, "seconds": seconds, "device": _device()}
    lane.send({"ready": version.model_dump(mode="json"), **measured})
    watch.run()
    server.close()
    return 1 if server.broken else 0


def _device() -> str:
    # after the warm-up, whoever computes on a GPU has begun to
    began: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return f"cuda:{torch.cuda.current_device()}" if began else "cpu"


def _prepared(spec: ModelSpec) -> tuple[ServedVersion, Runner, list[Cost]]:
    set_up_logs(spec.logs, f"worker {spec.model or spec.factory}")
    torch.set_num_threads(spec.threads)
    set_default_backend(spec.scan_backend)
    version, runner = _loaded(spec) if spec.factory is None else _made(spec.factory, spec.arguments)
    warm_up_invariants(version)
    # graphs have to exist before anybody asks
    seconds = math.inf if isinstance(runner, GraphRunner) else spec.warm_up_seconds
    return version, runner, warm_up(version, runner, spec.max_batch, seconds)


def _loaded(spec: ModelSpec) -> tuple[ServedVersion, Runner]:
    device = choose_device(spec.device)
    catalog = open_catalog(spec.store, spec.kept)
    loaded = load_version(catalog, catalog.resolve(spec.model or ""))
    surrogates = Surrogates([loaded], device)
    if device.type == "cuda":
        return served_version(loaded), GraphRunner(surrogates, device, spec.max_batch)
    return served_version(loaded), HostRunner(surrogates)


def _made(factory: str, arguments: Mapping[str, Any]) -> tuple[ServedVersion, Runner]:
    module, _, function = factory.partition(":")
    version, compute = getattr(importlib.import_module(module), function)(**arguments)
    return version, HostRunner(compute)


def warm_up(version: ServedVersion, runner: Runner, max_batch: int, seconds: float) -> list[Cost]:
    """Compute a plain sample on every grid, then measure larger batches while there is time.

    On a CPU the first batch of a grid is what costs; larger ones only tell the batcher what they take. On a
    CUDA device every size has its graph captured here, however long it takes.

    Raises:
        InvalidSettings: the numbers are not finite.
    """
    if version.history > 1:
        # no request can be answered from one frame
        return []
    first = [_timed(version, runner, grid, 1) for grid in version.grids]
    if version.bounds_errors:
        for grid in version.grids:
            runner.run(_bound_job(version, grid))
    costs, end = [], time.perf_counter() + seconds
    for (ny, nx), took in zip(version.grids, first, strict=True):
        for rows in batch_sizes(max_batch):
            if time.perf_counter() + took > end:
                break
            took = _timed(version, runner, (ny, nx), rows)
            costs.append((ny, nx, rows, took))
            # the next one is at most twice as large, and takes at most about twice as long
            took *= 2
    return costs


def _timed(version: ServedVersion, runner: Runner, grid: tuple[int, int], rows: int) -> float:
    job = _sample_job(version, grid, rows)
    began = time.perf_counter()
    solutions = runner.run(job)
    seconds = time.perf_counter() - began
    for name, values in solutions.fields.items():
        if not np.isfinite(values).all():
            raise InvalidSettings(
                f"{version} gives a {name} that is not finite for constant inputs on {grid}; "
                "leave it out of the models"
            )
    return seconds


def _sample_job(version: ServedVersion, grid: tuple[int, int], rows: int) -> Job:
    inputs = sample(PROBLEMS[version.problem], grid, "float32", rows)
    return Job(
        plain_bucket(version, grid), rows, None, {name: [values] for name, values in inputs.items()}, {}
    )


def _bound_job(version: ServedVersion, grid: tuple[int, int]) -> Job:
    """A bound of the error of 0."""
    problem = STEADY_PROBLEMS[version.problem]
    inputs = sample(problem, grid, "float64")
    answers = {f"{ANSWER}{spec.name}": np.zeros((1, *grid)) for spec in problem.outputs}
    bucket = replace(plain_bucket(version, grid), dtype="float64", task="bound")
    return Job(bucket, 1, None, {name: [values] for name, values in (inputs | answers).items()}, {})
