"""What is known about an answer: the bound of its error, and whether its input resembles the training data.

The numbers come from a queue of their own, since each takes a millisecond of computing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple, final

from numpy.typing import NDArray

from problems import ErrorBound, SteadyProblem
from service.batching.batcher import Batcher
from service.certify import bounds, in_hull, variations
from service.errors import InvalidField
from service.passage import off_loop, placed
from service.route import Chosen
from service.ticket import Ticket
from service.validate import Inputs
from service.workers.worker import ANSWER, Batch, Bucket, Solutions

__all__ = ["NOTHING_KNOWN", "Judge", "Trust", "too_much_contrast"]


@final
class Trust(NamedTuple):
    """What is known about the rows of an answer, and how long it took to know it [s]; None: was not asked."""

    errors: tuple[ErrorBound, ...] | None = None
    in_distribution: tuple[bool, ...] | None = None
    seconds: float = 0.0


NOTHING_KNOWN: Final = Trust()


@final
class Judge:
    """Asks the queue of the bounds."""

    def __init__(self, queue: Batcher) -> None:
        self._queue = queue

    def require_room(self, chosen: Chosen, inputs: Inputs, dtype: str, ticket: Ticket) -> None:
        """Refuse now what would be solved and then find no room here.

        Raises:
            Overloaded: the queue is full, or the deadline would pass while it waits.
        """
        # the inputs, and as many numbers in the answer
        self._queue.require_room(_bucket(chosen.bucket, dtype), inputs.rows, 2 * inputs.nbytes, ticket)

    async def judge(
        self,
        problem: SteadyProblem,
        chosen: Chosen,
        inputs: Inputs,
        answers: Mapping[str, NDArray[Any]],
        ticket: Ticket,
    ) -> Trust:
        """What is known about the very numbers in ``answers``.

        Raises:
            InvalidField: the bound is no number either.
        """
        began = time.perf_counter()
        dtype = next(iter(answers.values())).dtype.name
        numbers = await self._look(chosen, inputs, dtype, answers, ticket)
        errors = bounds(numbers)
        for row, error in enumerate(errors):
            if not (math.isfinite(error.upper) and math.isfinite(error.l2_estimate)):
                what = f"{problem.inputs[0].name}: the error of the answer cannot be bounded in float64"
                message = f"{what}; send a lower contrast, or ask for error=none"
                raise too_much_contrast(problem, inputs, row, message)
        return Trust(errors, _known(chosen, numbers, inputs), time.perf_counter() - began)

    async def resembles_training(self, chosen: Chosen, inputs: Inputs, ticket: Ticket) -> tuple[bool, ...]:
        """Whether each row does."""
        return _known(chosen, await self._look(chosen, inputs, "float64", {}, ticket), inputs)

    async def _look(
        self,
        chosen: Chosen,
        inputs: Inputs,
        dtype: str,
        answers: Mapping[str, NDArray[Any]],
        ticket: Ticket,
    ) -> Solutions:
        fields = await off_loop(inputs.nbytes, placed, inputs.fields, self._queue, "float64")
        fields |= {f"{ANSWER}{name}": values for name, values in answers.items()}
        # who gets so far was let in before
        outcome = await self._queue.submit(
            Batch(_bucket(chosen.bucket, dtype), fields), ticket, admitted=True
        )
        return outcome.solutions


@lru_cache(256)
def _bucket(solved: Bucket, dtype: str) -> Bucket:
    # answers of different dtypes are rounded differently, and must not be joined
    return Bucket(solved.problem, None, solved.scheme, solved.grid, dtype, task="bound")


def _known(chosen: Chosen, numbers: Solutions, inputs: Inputs) -> tuple[bool, ...]:
    return (True,) * inputs.rows if chosen.hull is None else in_hull(chosen.hull, variations(numbers))


def too_much_contrast(problem: SteadyProblem, inputs: Inputs, row: int, message: str) -> InvalidField:
    """What to raise for a field whose values differ too much for float64."""
    return InvalidField(problem.inputs[0].name, "contrast", message, None if inputs.single else (row,))
