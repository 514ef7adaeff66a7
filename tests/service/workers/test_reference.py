"""The reference solver on a batch that several callers share."""

import asyncio

import numpy as np

from problems import STEADY_PROBLEMS, Grid
from service.batching.batcher import Batcher, BatchRules
from service.errors import InvalidField
from service.settings import Limits
from service.solver import Queues, Solver, SolveRequest
from service.versions.models import Models
from service.workers.reference import bound_errors, solve_reference
from service.workers.worker import Batch, Bucket, ThreadWorker

EXTREME = np.where(np.random.default_rng(0).random((16, 16)) < 0.5, 1e-300, 1e300)


def test_a_field_it_cannot_solve_leaves_the_other_rows_alone() -> None:
    good = np.random.default_rng(1).lognormal(size=(16, 16))
    fields = {"permeability": np.stack([good, EXTREME, good]), "source": np.ones(3)}
    solutions = solve_reference(
        Batch(Bucket("darcy", None, "tpfa-harmonic-v1", Grid((16, 16)), "float64"), fields)
    )
    assert list(solutions.unsolved) == [1]
    inputs = {"permeability": good, "source": np.array(1.0)}
    alone = STEADY_PROBLEMS["darcy"].solve(inputs, Grid((16, 16))).fields["pressure"]
    for row in (0, 2):
        assert np.array_equal(solutions.fields["pressure"][row], alone)


def test_only_the_caller_of_an_unsolvable_field_is_refused() -> None:
    async def story() -> None:
        rules = BatchRules(max_batch=8, queue_seconds=1e9)
        queues = [
            Batcher(ThreadWorker(each), rules) for each in (solve_reference, solve_reference, bound_errors)
        ]
        async with Solver(Models(), Queues(*queues), Limits()) as solver:
            good = np.ones((16, 16))
            requests = [
                SolveRequest("darcy", {"permeability": field}, "float64", method="solver")
                for field in (good, EXTREME, good, np.stack([good, EXTREME]))
            ]
            tasks = [asyncio.create_task(solver.solve(request)) for request in requests]
            answers = await asyncio.gather(*tasks, return_exceptions=True)
        refused = [answers[1], answers[3]]
        for answer in (answers[0], answers[2]):
            assert not isinstance(answer, BaseException), answer
            assert np.isfinite(answer.fields["pressure"]).all()
        for fault, index in zip(refused, (None, (1,)), strict=True):
            assert isinstance(fault, InvalidField), fault
            assert (fault.field, fault.rule, fault.index) == ("permeability", "contrast", index)

    asyncio.run(story())
