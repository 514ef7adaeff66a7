"""Bounds in batches on the device of a surrogate: the numbers, and who is asked for them."""

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.certificate_cases import FAMILIES, Truth, answers
from model_store import LoadedVersion, Reference, open_store
from problems import Grid, variation
from service.batching.batcher import Batcher, BatchRules
from service.settings import Limits
from service.solver import Queues, Solver, SolveRequest
from service.versions.loading import served_version
from service.versions.models import Models
from service.versions.routing import Route
from service.workers.compute import Surrogates
from service.workers.device_bounds import BOUNDS, bounds_on
from service.workers.lane_server import HostRunner
from service.workers.reference import advance_reference, bound_errors, solve_reference
from service.workers.worker import BOUND_FIELDS, Batch, Bucket, Solutions, ThreadWorker
from service.workers.worker_process import warm_up

GRID = Grid((32, 32))
BUCKET = Bucket("darcy", Reference("darcy", 1), "tpfa-harmonic-v1", GRID, "float64", task="bound")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture(scope="module")
def loaded(store_url: str) -> LoadedVersion:
    return open_store(store_url).load("darcy", 1)


def cases(dtype: type) -> tuple[list[Truth], list[NDArray[Any]], list[NDArray[Any]]]:
    """Truths, fields, and for each an answer of another quality."""
    fields = [family(0, GRID) for family in FAMILIES.values()]
    truths = [Truth(field) for field in fields]
    found = [
        list(answers(truth.exact, truths[0].exact, np.random.default_rng(k)))[k % 8][1]
        for k, truth in enumerate(truths)
    ]
    return truths, fields, [answer.astype(dtype) for answer in found]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_each_row_of_a_batch_is_bounded_and_looked_at(
    loaded: LoadedVersion, device: torch.device, dtype: type
) -> None:
    truths, fields, given = cases(dtype)
    batch = Batch(
        BUCKET,
        {
            "permeability": np.stack(fields),
            "source": np.ones(len(fields)),
            "answer.pressure": np.stack(given),
        },
    )
    found = Surrogates([loaded], device)(batch)
    assert set(found.fields) == set(BOUND_FIELDS)
    for k, truth in enumerate(truths):
        true, _, _ = truth.errors(given[k].astype(np.float64))
        row = {name: values[k] for name, values in found.fields.items()}
        assert row["lower"] - 1e-11 <= true <= row["upper"] + 1e-11
        assert (row["steps"], row["l2_estimate"] > 0) == (8, True)
        varies = variation(fields[k])
        np.testing.assert_allclose(
            [row["contrast"], row["jump"], row["roughness"]], list(vars(varies).values()), rtol=1e-12
        )


def test_only_a_gpu_is_faster_than_the_process_of_the_reference_solvers(loaded: LoadedVersion) -> None:
    assert bounds_on(torch.device("cuda:1"), "darcy")
    assert not bounds_on(torch.device("cpu"), "darcy")
    assert not bounds_on(torch.device("cuda"), "shallow_water")
    assert not served_version(loaded).bounds_errors
    assert list(BOUNDS) == ["darcy"]


def test_a_version_that_bounds_its_errors_says_so_and_is_warmed_up_for_it(
    loaded: LoadedVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.versions.loading.bounds_on", lambda _, problem: problem == "darcy")
    served = served_version(loaded)
    assert served.bounds_errors
    model = Watched(Surrogates([loaded], torch.device("cpu")))
    warm_up(served, HostRunner(model), 4, 0.0)
    assert model.asked.count(("bound", "float64")) == len(served.grids)


class Watched:
    """Computes, and remembers what was asked."""

    def __init__(self, compute: Any) -> None:
        self.compute = compute
        self.asked: list[tuple[str, str]] = []

    def __call__(self, batch: Batch) -> Solutions:
        self.asked.append((batch.bucket.task, batch.bucket.dtype))
        solutions: Solutions = self.compute(batch)
        return solutions


@pytest.mark.parametrize(
    ("on_device", "options", "by_version", "by_bounds"),
    [
        (True, {}, [("solve", "float32"), ("bound", "float32")], []),
        (True, {"dtype": "float64"}, [("solve", "float32"), ("bound", "float64")], []),
        (True, {"error": "none"}, [("solve", "float32")], []),
        # takes solver steps, and so the reference solvers
        (True, {"error": "certified"}, [("solve", "float32")], []),
        # nobody of that version answered
        (True, {"method": "solver"}, [], [("bound", "float32")]),
        (False, {}, [("solve", "float32")], [("bound", "float32")]),
    ],
)
def test_a_version_on_such_a_device_bounds_its_own_answers(
    loaded: LoadedVersion,
    on_device: bool,
    options: dict[str, Any],
    by_version: list[tuple[str, str]],
    by_bounds: list[tuple[str, str]],
) -> None:
    model, bounds = Watched(Surrogates([loaded], torch.device("cpu"))), Watched(bound_errors)
    rules = BatchRules(max_batch=8, queue_seconds=100.0)
    truth = Truth(field := FAMILIES["pdebench"](3, GRID))

    async def story() -> None:
        models = Models()
        served = served_version(loaded).model_copy(update={"bounds_errors": on_device})
        models.add(served, Batcher(ThreadWorker(model), rules))
        models.route({"darcy": Route(name="darcy", main=1)})
        workers = (ThreadWorker(each) for each in (solve_reference, advance_reference, bounds))
        queues = Queues(*(Batcher(worker, rules) for worker in workers))
        async with Solver(models, queues, Limits(), None) as solver, asyncio.timeout(60):
            response = await solver.solve(SolveRequest("darcy", {"permeability": field}, **options))
            if response.errors is None:
                return
            (error,) = response.errors
            true, _, _ = truth.errors(response.fields["pressure"].astype(np.float64))
            assert error.lower - 1e-11 <= true <= error.upper + 1e-11
            assert response.timing.certify > 0

    asyncio.run(story())
    assert model.asked == by_version
    assert bounds.asked == by_bounds


def test_reproducible_answers_are_bounded_in_batches_of_one_size(loaded: LoadedVersion) -> None:
    bucket = replace(BUCKET, reproducible=True)
    rows = {"permeability": np.full((1, 32, 32), 0.5), "source": np.ones(1)}
    fields = rows | {"answer.pressure": np.zeros((1, 32, 32))}

    async def story() -> list[int]:
        sizes: list[int] = []

        def compute(batch: Batch) -> Solutions:
            sizes.append(batch.rows)
            return Surrogates([loaded], torch.device("cpu"))(batch)

        queue = Batcher(ThreadWorker(compute), BatchRules(max_batch=8, reproducible_rows=4))
        outcome = await queue.submit(Batch(bucket, fields))
        assert outcome.solutions.fields["upper"] == pytest.approx(1.0, rel=1e-6)
        await queue.close()
        return sizes

    assert asyncio.run(story()) == [4]
