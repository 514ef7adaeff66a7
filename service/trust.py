"""What is known about an answer: the bound of its error, and whether its input resembles the training data.

The numbers come from a queue of their own, since each takes a millisecond of computing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from problems import STEADY_PROBLEMS, ErrorBound, SteadyProblem, Variation
from service.batching.batcher import Batcher
from service.certify import bounds, variations
from service.errors import DeadlineExceeded, InvalidField
from service.novelty import FAMILIAR, Novelty, outside, require_in_range, steady_novelty
from service.passage import off_loop, placed
from service.request import ErrorKind, SolveRequest
from service.route import Chosen
from service.ticket import Ticket
from service.validate import Inputs
from service.workers.certified import TOO_LATE
from service.workers.worker import ANSWER, DEADLINE, Batch, Bucket, Solutions

__all__ = ["NOTHING_KNOWN", "Judge", "Judged", "Trust", "novelty_of", "too_much_contrast"]


@final
class Trust(NamedTuple):
    """What is known about the rows of an answer, and how long it took to know it [s]; None: was not asked."""

    errors: tuple[ErrorBound, ...] | None = None
    novelty: tuple[Novelty, ...] | None = None
    seconds: float = 0.0


NOTHING_KNOWN: Final = Trust()


@final
class Judged(NamedTuple):
    """The errors of the rows of an answer, how their coefficients vary, and how long that took [s]."""

    errors: tuple[ErrorBound, ...]
    variations: tuple[Variation, ...]
    seconds: float


@final
class Judge:
    """Asks who bounds errors.

    That is the queue of the bounds, or that of the version that answered, where its device does it faster;
    for bounds from both sides, which may take long, the solvers' one.
    """

    def __init__(self, bounds: Batcher, references: Batcher) -> None:
        self._bounds = bounds
        self._references = references

    def require_room(self, request: SolveRequest, chosen: Chosen, inputs: Inputs) -> None:
        """Refuse now what would be solved and then find no room here.

        Raises:
            Overloaded: the queue is full, or the deadline would pass while it waits.
        """
        queue, bucket = self._asked(request.error, chosen, request.dtype)
        # the inputs, and as many numbers in the answer
        queue.require_room(bucket, inputs.rows, 2 * inputs.nbytes, request.ticket)

    def require_look(self, chosen: Chosen, inputs: Inputs, ticket: Ticket) -> None:
        """Refuse now what would find no room to be looked at; see :meth:`require_room`."""
        bucket = _bucket(chosen.bucket, "float64", "bound")
        self._bounds.require_room(bucket, inputs.rows, inputs.nbytes, ticket)

    async def judge(
        self,
        problem: SteadyProblem,
        request: SolveRequest,
        chosen: Chosen,
        inputs: Inputs,
        answers: Mapping[str, NDArray[Any]],
    ) -> Judged:
        """What is known about the very numbers in ``answers``, as the request wants to know it.

        Raises:
            InvalidField: the bound is no number either.
            DeadlineExceeded: nobody waits for it any more.
        """
        began = time.perf_counter()
        dtype = next(iter(answers.values())).dtype.name
        queue, bucket = self._asked(request.error, chosen, dtype)
        numbers = await _looked(queue, bucket, inputs, answers, request.ticket)
        for row, why in numbers.unsolved.items():
            if why == TOO_LATE:
                raise DeadlineExceeded(why)
            raise too_much_contrast(problem, inputs, row, why)
        errors = bounds(numbers)
        for row, error in enumerate(errors):
            if not (math.isfinite(error.upper) and math.isfinite(error.l2_estimate)):
                what = f"{problem.inputs[0].name}: the error of the answer cannot be bounded in float64"
                message = f"{what}; send a lower contrast, or ask for error=none"
                raise too_much_contrast(problem, inputs, row, message)
        return Judged(errors, variations(numbers), time.perf_counter() - began)

    async def resembles_training(self, chosen: Chosen, inputs: Inputs, ticket: Ticket) -> tuple[bool, ...]:
        """Whether each row does."""
        bucket = _bucket(chosen.bucket, "float64", "bound")
        found = variations(await _looked(self._bounds, bucket, inputs, {}, ticket))
        return tuple(each.in_distribution for each in novelty_of(chosen, inputs, found))

    def _asked(self, error: ErrorKind, chosen: Chosen, dtype: str) -> tuple[Batcher, Bucket]:
        if error == "certified":
            return self._references, _bucket(chosen.bucket, dtype, "certify")
        if chosen.served is not None and chosen.served.version.bounds_errors:
            # the bucket of a derivative counts directions; a bound has none
            return chosen.queue, replace(chosen.bucket, dtype=dtype, task="bound", directions=1)
        return self._bounds, _bucket(chosen.bucket, dtype, "bound")


def novelty_of(
    chosen: Chosen,
    inputs: Inputs,
    found: Sequence[Variation],
    errors: Sequence[ErrorBound] = (),
    scores: Sequence[float] = (),
) -> tuple[Novelty, ...]:
    """Whether each row resembles what the version was trained on that answered.

    Args:
        chosen: who answered.
        inputs: what was asked about.
        found: how the coefficient of each row varies.
        errors: of the version's own answers; empty: they were not looked at.
        scores: ``Solutions.novelty`` of the version's answers.

    Raises:
        InvalidField: one does not, and the version refuses such.
    """
    if chosen.served is None:
        return (FAMILIAR,) * inputs.rows
    version = chosen.served.version
    coefficient = STEADY_PROBLEMS[chosen.bucket.problem].inputs[0].name
    reasons = [outside(version.training_hull, vars(each)) for each in found]
    require_in_range(version, coefficient, reasons, single=inputs.single)
    return steady_novelty(version, found, errors, scores)


async def _looked(
    queue: Batcher, bucket: Bucket, inputs: Inputs, answers: Mapping[str, NDArray[Any]], ticket: Ticket
) -> Solutions:
    fields = await off_loop(inputs.nbytes, placed, inputs.fields, queue, "float64")
    fields |= {f"{ANSWER}{name}": values for name, values in answers.items()}
    if bucket.task == "certify":
        # one may take long, and nobody may wait for it any more
        fields[DEADLINE] = np.full(inputs.rows, math.inf if ticket.deadline is None else ticket.deadline)
    # who gets so far was let in before
    return (await queue.submit(Batch(bucket, fields), ticket, admitted=True)).solutions


@lru_cache(256)
def _bucket(solved: Bucket, dtype: str, task: Literal["bound", "certify"]) -> Bucket:
    # answers of different dtypes are rounded differently, and must not be joined
    return Bucket(solved.problem, None, solved.scheme, solved.grid, dtype, task=task)


def too_much_contrast(problem: SteadyProblem, inputs: Inputs, row: int, message: str) -> InvalidField:
    """What to raise for a field whose values differ too much for float64."""
    return InvalidField(problem.inputs[0].name, "contrast", message, None if inputs.single else (row,))
