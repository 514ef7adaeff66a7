"""What a reference solver starts from: the answer of a surrogate, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from problems import SteadyProblem
from service.passage import batch_of, off_loop
from service.route import Chosen
from service.ticket import Ticket
from service.validate import Inputs
from service.workers.worker import ANSWER

__all__ = ["NOTHING", "Start", "answered"]


@final
class Start(NamedTuple):
    """A surrogate's answer, and what it took; ``fields`` is empty where nobody was asked.

    Attributes:
        queue: what it waited for [s].
        compute: what it took [s].
        novelty: see :class:`service.workers.worker.Solutions`.
    """

    fields: Mapping[str, NDArray[Any]]
    queue: float = 0.0
    compute: float = 0.0
    novelty: tuple[float, ...] = ()

    @property
    def answers(self) -> dict[str, NDArray[Any]]:
        """The fields under the names that they have in a batch; they stay where the surrogate wrote them."""
        return {f"{ANSWER}{name}": values for name, values in self.fields.items()}


NOTHING: Final = Start({})


async def answered(problem: SteadyProblem, chosen: Chosen, inputs: Inputs, ticket: Ticket) -> Start:
    """The answer of the version that was chosen; nothing, where none was.

    Raises:
        ServiceFault: one of its kinds.
    """
    if chosen.served is None:
        return NOTHING
    chosen.queue.require_room(chosen.bucket, inputs.rows, inputs.nbytes, ticket)
    batch = await off_loop(inputs.nbytes, batch_of, problem, inputs, chosen.queue, chosen.bucket)
    outcome = await chosen.queue.submit(batch, ticket)
    found = {name: np.asarray(values) for name, values in outcome.solutions.fields.items()}
    return Start(found, outcome.queue, outcome.compute, outcome.solutions.novelty)
