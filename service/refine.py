"""The story of an answer within a tolerance: the reference solver, perhaps from the surrogate's answer."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final, Literal, final

import numpy as np
from numpy.typing import NDArray

from problems import SteadyProblem
from service.batching.batcher import Batcher, Outcome
from service.certify import bounds, variations
from service.errors import DeadlineExceeded, NotCertifiable, UnknownModel, UnsupportedGrid
from service.passage import leaving, off_loop, placed, size_of
from service.request import SolveRequest, SolveResponse
from service.route import Chosen, Router
from service.start import Start, answered
from service.telemetry.timing import Timing
from service.trust import NOTHING_KNOWN, Judge, Trust, novelty_of
from service.validate import Inputs
from service.workers.certified import TOO_LATE
from service.workers.worker import AS_THE_GRID_RESOLVES, DEADLINE, TOLERANCE, Batch, Bucket

__all__ = ["Refiner", "wants_refinement"]

# what a hybrid answer meets for which no tolerance was asked: about as much as float32 resolves
USUAL: Final = 1e-6
# of a solve, what the surrogate's answer spares the solver: 0 to 2 of its 10 steps, where it is a good one
SPARED: Final = 0.2


def wants_refinement(request: SolveRequest) -> bool:
    """Whether a request is one for a :class:`Refiner`."""
    return request.tolerance is not None or request.method == "hybrid"


@final
class Refiner:
    """Answers requests that name a tolerance, and those for ``hybrid`` answers."""

    def __init__(self, router: Router, judge: Judge, references: Batcher) -> None:
        self._router = router
        self._judge = judge
        self._queue = references

    async def solve(self, problem: SteadyProblem, request: SolveRequest, inputs: Inputs) -> SolveResponse:
        """Solutions whose guaranteed errors are within the tolerance.

        Raises:
            NotCertifiable: float64, or the method, does not carry it.
            DeadlineExceeded: nobody waits for it any more.
            ServiceFault: another of its kinds.
        """
        if request.method == "surrogate":
            return await self._vouch(problem, request, inputs)
        chosen = self._choose(problem, request, inputs)
        bucket = _refining(chosen.bucket)
        self._queue.require_room(bucket, inputs.rows, inputs.nbytes, request.ticket)
        if _is_judged(request):
            self._judge.require_room(replace(request, dtype=_dtype(request)), chosen, inputs)
        start = await answered(problem, chosen, inputs, request.ticket)
        batch = await off_loop(size_of(request.given), self._batch, bucket, inputs, start, request)
        # who gets so far was let in before
        outcome = await self._queue.submit(batch, request.ticket, admitted=bool(start.fields))
        for row, why in outcome.solutions.unsolved.items():
            if why == TOO_LATE:
                raise DeadlineExceeded(why)
            raise _not_certifiable(request, row, why, single=inputs.single)
        return await self._answer(problem, request, inputs, chosen, start, outcome)

    async def _answer(
        self,
        problem: SteadyProblem,
        request: SolveRequest,
        inputs: Inputs,
        chosen: Chosen,
        start: Start,
        outcome: Outcome,
    ) -> SolveResponse:
        solved = {spec.name: outcome.solutions.fields[spec.name] for spec in problem.outputs}
        answers = await off_loop(size_of(request.given), leaving, solved, _dtype(request), copy=True)
        trust = await self._trust(problem, request, inputs, chosen, start, outcome, answers)
        return SolveResponse(
            fields={name: values[0] for name, values in answers.items()} if inputs.single else answers,
            single=inputs.single,
            model=None if chosen.served is None else str(chosen.bucket.version),
            method="solver" if chosen.served is None else "hybrid",
            operator=chosen.bucket.scheme,
            errors=trust.errors,
            novelty=trust.novelty,
            iterations=outcome.solutions.iterations,
            timing=Timing.of_seconds(
                start.queue + outcome.queue,
                start.compute + outcome.compute,
                trust.seconds,
                time.perf_counter() - request.received,
            ),
            batch_size=outcome.batch_size,
            certified=request.tolerance is not None,
        )

    async def _trust(
        self,
        problem: SteadyProblem,
        request: SolveRequest,
        inputs: Inputs,
        chosen: Chosen,
        start: Start,
        outcome: Outcome,
        answers: Mapping[str, NDArray[Any]],
    ) -> Trust:
        if request.error == "none":
            return NOTHING_KNOWN
        if request.tolerance is None:
            # the numbers that leave may be rounded, and it is these that are judged
            judged = await self._judge.judge(problem, request, chosen, inputs, answers)
            novelty = novelty_of(chosen, inputs, judged.variations, scores=start.novelty)
            return Trust(judged.errors, novelty, judged.seconds)
        found = bounds(outcome.solutions, _reference(request))
        novelty = novelty_of(chosen, inputs, variations(outcome.solutions), scores=start.novelty)
        if not _is_judged(request):
            return Trust(found, novelty)
        judged = await self._judge.judge(problem, request, chosen, inputs, answers)
        # both hold
        both = zip(found, judged.errors, strict=True)
        errors = tuple(replace(new, upper=min(new.upper, old.upper)) for old, new in both)
        return Trust(errors, novelty, judged.seconds)

    # --- who answers

    def _choose(self, problem: SteadyProblem, request: SolveRequest, inputs: Inputs) -> Chosen:
        """The surrogate that the solver starts from, or the reference solver where it starts from nothing."""
        alone = self._router.reference(problem, request.model, request.key, inputs.grid)
        if request.method == "solver":
            return alone
        try:
            chosen = self._router.surrogate(problem, request.model, request.key, inputs.grid, request.ticket)
        except (UnknownModel, UnsupportedGrid):
            # a start is no more than a help; where somebody insists on it, it has to be there
            if request.method == "hybrid" or request.model is not None:
                raise
            return alone
        if request.method == "auto" and not self._start_pays(chosen, alone, inputs):
            return alone
        return chosen

    def _start_pays(self, chosen: Chosen, alone: Chosen, inputs: Inputs) -> bool:
        """Whether the surrogate costs less than it spares, as measured; while one is unknown, it does not."""
        if not inputs.fits_float32:
            return False
        surrogate = chosen.queue.expected(chosen.bucket, inputs.rows)
        solver = self._queue.expected(_refining(alone.bucket), inputs.rows)
        return 0 < surrogate < SPARED * solver

    def _batch(self, bucket: Bucket, inputs: Inputs, start: Start, request: SolveRequest) -> Batch:
        tolerance = USUAL if request.tolerance is None else request.tolerance
        wanted = AS_THE_GRID_RESOLVES if isinstance(tolerance, str) else tolerance
        deadline = math.inf if request.ticket.deadline is None else request.ticket.deadline
        numbers = {TOLERANCE: np.full(inputs.rows, wanted), DEADLINE: np.full(inputs.rows, deadline)}
        return Batch(bucket, placed(inputs.fields, self._queue, "float64") | start.answers | numbers)

    # --- a surrogate alone

    async def _vouch(self, problem: SteadyProblem, request: SolveRequest, inputs: Inputs) -> SolveResponse:
        """The surrogate's own numbers, where their certificate meets the tolerance."""
        if not isinstance(request.tolerance, float):
            message = "method=surrogate: nothing tells that it is as exact as the grid resolves"
            raise NotCertifiable(f"{message}; ask for auto, hybrid or solver, or for a tolerance in numbers")
        chosen = self._router.surrogate(problem, request.model, request.key, inputs.grid, request.ticket)
        certifying = replace(request, error="certified", dtype=_dtype(request))
        self._judge.require_room(certifying, chosen, inputs)
        start = await answered(problem, chosen, inputs, request.ticket)
        answers = await off_loop(inputs.nbytes, leaving, start.fields, "float64", copy=True)
        judged = await self._judge.judge(problem, certifying, chosen, inputs, answers)
        for row, error in enumerate(judged.errors):
            if error.upper > request.tolerance:
                why = f"the surrogate's own answer has an error of up to {error.upper:.2g}"
                way_out = "ask for auto, hybrid or solver"
                raise _not_certifiable(request, row, f"{why}; {way_out}", single=inputs.single)
        trust = NOTHING_KNOWN
        if request.error != "none":
            novelty = novelty_of(chosen, inputs, judged.variations, judged.errors, start.novelty)
            trust = Trust(judged.errors, novelty)
        return SolveResponse(
            fields={name: values[0] for name, values in answers.items()} if inputs.single else answers,
            single=inputs.single,
            model=str(chosen.bucket.version),
            method="surrogate",
            operator=chosen.bucket.scheme,
            errors=trust.errors,
            novelty=trust.novelty,
            iterations=(0,) * inputs.rows,
            timing=Timing.of_seconds(
                start.queue, start.compute, judged.seconds, time.perf_counter() - request.received
            ),
            certified=True,
        )


def _dtype(request: SolveRequest) -> Literal["float32", "float64"]:
    """The dtype of the numbers that leave."""
    return request.dtype if request.tolerance is None else "float64"


def _is_judged(request: SolveRequest) -> bool:
    """Whether the answer is judged once more, beyond what the solver tells of it."""
    if request.tolerance is None:
        return request.error != "none"
    return request.error == "certified" and request.tolerance != "discretization"


def _reference(request: SolveRequest) -> Literal["discrete", "pde"]:
    """What the error of an answer within this tolerance is the distance to."""
    return "pde" if request.tolerance == "discretization" else "discrete"


def _not_certifiable(request: SolveRequest, row: int, why: str, *, single: bool) -> NotCertifiable:
    which = "" if single else f" of field {row}"
    wanted = "" if request.tolerance is None else f" {request.tolerance}"
    return NotCertifiable(f"the tolerance{wanted}{which} cannot be met: {why}")


@lru_cache(256)
def _refining(solved: Bucket) -> Bucket:
    """Where solutions are refined that begin at those of a version, or at nothing."""
    return Bucket(solved.problem, solved.version, solved.scheme, solved.grid, "float64", task="refine")
