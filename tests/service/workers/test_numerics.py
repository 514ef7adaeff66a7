"""The process of the reference solvers: the numbers of the problems themselves, from threads of their own."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from problems import EVOLUTION_PROBLEMS, STEADY_PROBLEMS, Grid, variation
from service.processes.zygote import Child, spawn
from service.telemetry.logs import LogSettings
from service.workers.arena import Arena
from service.workers.lane import Lane, lane_pair
from service.workers.process_worker import ProcessWorker
from service.workers.reference import advance_reference, bound_errors, solve_reference
from service.workers.sample import sample
from service.workers.worker import (
    ANSWER,
    AS_THE_GRID_RESOLVES,
    DEADLINE,
    STEP,
    TOLERANCE,
    Batch,
    Bucket,
    Solutions,
)

LANES = ("references", "marches", "bounds")
DARCY = Bucket("darcy", None, "tpfa-harmonic-v1", Grid((16, 16)), "float64")
PERMEABILITY = np.random.default_rng(1).lognormal(size=(3, 16, 16))
SOURCE = np.array([1.0, 2.0, 1.0])


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


class Numerics:
    """A process of the reference solvers, and workers for its lanes."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.control = Lane(child.control, lambda message, _: self.heard.put_nowait(message), lambda: None)
        self.arena = Arena(2**24)
        self.workers = {name: ProcessWorker(self.arena, name) for name in LANES}
        for name, worker in self.workers.items():
            ours, theirs = lane_pair()
            with theirs:
                self.control.send({"lane": "front 0", "to": name}, [theirs.fileno(), self.arena.fd])
            worker.attach(ours)

    async def run(self, lane: str, batch: Batch) -> Solutions:
        return await self.workers[lane].run([batch])

    async def close(self) -> int:
        for worker in self.workers.values():
            worker.close()
        self.arena.close()
        self.control.close()
        return await self.child.wait()


@pytest.fixture(scope="module")
def numerics(runner: asyncio.Runner) -> Iterator[Numerics]:
    async def start() -> Numerics:
        numerics = Numerics(await spawn("service.workers.numerics", LogSettings().model_dump_json()))
        assert (await numerics.heard.get())["ready"] == {"lanes": list(LANES)}
        return numerics

    numerics = runner.run(start())
    yield numerics
    assert runner.run(numerics.close()) == 0


def same(found: Solutions, expected: Solutions) -> None:
    assert found.fields.keys() == expected.fields.keys()
    for name, values in expected.fields.items():
        assert np.array_equal(found.fields[name], values, equal_nan=True), name
    assert found.iterations == expected.iterations
    assert found.unsolved == expected.unsolved


def test_solutions_are_those_of_the_solver(runner: asyncio.Runner, numerics: Numerics) -> None:
    extreme = np.where(np.random.default_rng(0).random((16, 16)) < 0.5, 1e-300, 1e300)
    fields = np.stack([PERMEABILITY[0], extreme, PERMEABILITY[1]])
    batch = Batch(DARCY, {"permeability": fields, "source": SOURCE})
    found = runner.run(numerics.run("references", batch))
    same(found, solve_reference(batch))
    assert list(found.unsolved) == [1]


@pytest.mark.parametrize("name", EVOLUTION_PROBLEMS)
def test_steps_are_those_of_the_solver(runner: asyncio.Runner, numerics: Numerics, name: str) -> None:
    problem = EVOLUTION_PROBLEMS[name]
    grid = Grid((16, 16), problem.grid.extent, problem.grid.origin)
    bucket = Bucket(name, None, problem.schemes[0], grid, "float64", problem.walls[0], "advance")
    state = sample(problem, (16, 16), "float64", rows=2)
    batch = Batch(bucket, {**state, STEP: np.array([0, 3])})
    same(runner.run(numerics.run("marches", batch)), advance_reference(batch))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bounds_hold_for_the_numbers_that_leave(
    runner: asyncio.Runner, numerics: Numerics, dtype: str
) -> None:
    inputs = {"permeability": PERMEABILITY, "source": SOURCE}
    exact = solve_reference(Batch(DARCY, inputs)).fields["pressure"]
    answer = (exact * 1.01).astype(dtype)
    batch = Batch(replace(DARCY, task="bound"), {**inputs, f"{ANSWER}pressure": answer})
    found = runner.run(numerics.run("bounds", batch))
    same(found, bound_errors(batch))
    for row in range(3):
        expected = STEADY_PROBLEMS["darcy"].error_bound(
            {"permeability": PERMEABILITY[row], "source": SOURCE[row]},
            {"pressure": answer[row].astype(float)},
            DARCY.grid,
            scheme=DARCY.scheme,
            rounding=2.0**-24 if dtype == "float32" else 0.0,
        )
        assert found.fields["upper"][row] == expected.upper >= 0.01
        assert found.fields["l2_estimate"][row] == expected.l2_estimate
        features = variation(PERMEABILITY[row])
        assert found.fields["contrast"][row] == features.contrast
        assert found.fields["jump"][row] == features.jump
        assert found.fields["roughness"][row] == features.roughness


def test_without_an_answer_there_are_features_and_no_bound(
    runner: asyncio.Runner, numerics: Numerics
) -> None:
    batch = Batch(replace(DARCY, task="bound"), {"permeability": PERMEABILITY, "source": SOURCE})
    found = runner.run(numerics.run("bounds", batch)).fields
    assert np.isnan(found["upper"]).all()
    assert np.isfinite(found["contrast"]).all()


def test_it_imports_neither_torch_nor_the_web() -> None:
    code = (
        "import sys, service.workers.numerics; "
        "print(sorted({'torch', 'fastapi', 'uvicorn', 'grpc', 'operators'} & sys.modules.keys()))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("tolerance", [1e-6, AS_THE_GRID_RESOLVES])
def test_refined_answers_come_over_the_lane(
    runner: asyncio.Runner, numerics: Numerics, tolerance: float
) -> None:
    numbers = {TOLERANCE: np.full(3, tolerance), DEADLINE: np.array([np.inf, 0.0, np.inf])}
    start = np.ones_like(PERMEABILITY, np.float32)
    fields = {"permeability": PERMEABILITY, "source": SOURCE, f"{ANSWER}pressure": start, **numbers}
    batch = Batch(replace(DARCY, task="refine"), fields)
    found = runner.run(numerics.run("references", batch))
    same(found, solve_reference(batch))
    # nobody waits for the second one any more
    assert list(found.unsolved) == [1]
    assert min(found.iterations[0], found.iterations[2]) > 0
    if tolerance:
        assert found.fields["upper"][[0, 2]].max() <= tolerance
