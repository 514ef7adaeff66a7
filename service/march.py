"""How a state is stepped: by which queue, in which bucket, how many steps at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np

from problems import CannotSolve
from problems import InvalidField as BrokenRule
from service.batching.batcher import Batcher
from service.errors import InvalidField, WorkerLost
from service.frame_judge import Computed, Judged, State, rows_of
from service.passage import off_loop, placed, size_of
from service.shadow import Shadows
from service.ticket import Ticket
from service.versions.models import Served
from service.workers.worker import STEP, Batch, Bucket

__all__ = ["March", "lost_at"]


@final
@dataclass(frozen=True)
class March:
    """A way to step states.

    Attributes:
        judged: what its frames are judged by.
        hull: of the training states; None: the method was not trained.
        most_cell_steps: cells times steps that a frame may take; None: each takes the same.
        ticket: on whose behalf, how urgently and until when.
        served: the version, which stays loaded as long as this refers to it; None: the reference solver.
        shadows: compare the first block with that of the version's shadow.
    """

    queue: Batcher
    bucket: Bucket
    judged: Judged
    hull: Mapping[str, float] | None
    most_cell_steps: int | None
    ticket: Ticket
    served: Served | None
    shadows: Shadows

    @property
    def block(self) -> int:
        """Steps that are computed at once."""
        return self.bucket.frames

    async def advance(self, state: State, step: int, *, admitted: bool) -> Computed:
        """The next block after ``state``, which is that of ``step``.

        Args:
            state: fields [batch y x].
            step: number of the step that it belongs to.
            admitted: it goes on with a rollout that was let in before.

        Raises:
            ServiceFault: one of its kinds; a lost worker names the step to go on from.
        """
        if self.most_cell_steps is not None:
            await asyncio.to_thread(self._check_cost, state, step, self.most_cell_steps)
        batch = await off_loop(size_of(state), self._batch, state, step)
        try:
            outcome = await self.queue.submit(batch, self.ticket, admitted=admitted)
        except WorkerLost as error:
            raise lost_at(step, error) from error
        for row, why in outcome.solutions.unsolved.items():
            raise self.judged.diverged(step + 1, row, why)
        solutions = outcome.solutions
        computed = Computed.of(solutions.fields, self.judged.problem, solutions.novelty)
        if self.served is not None and not admitted:
            self.shadows.follow(self.served, batch, computed.fields)
        return computed

    def _batch(self, state: State, step: int) -> Batch:
        fields = placed(state, self.queue, self.bucket.dtype)
        if self.served is None:
            fields[STEP] = np.array([step] * len(next(iter(state.values()))))
        return Batch(self.bucket, fields)

    def _check_cost(self, state: State, step: int, most: int) -> None:
        """Refuse a state of which the reference solver would need too long for one frame."""
        problem, bucket, cost = self.judged.problem, self.bucket, 0
        for row, fields in enumerate(rows_of(state)):
            try:
                cost += problem.cell_steps(fields, bucket.grid, bucket.scheme, step)
            except (BrokenRule, CannotSolve) as error:
                raise self.judged.diverged(step + 1, row, str(error)) from error
        if cost > most:
            message = (
                f"step {step + 1} of {problem.name} from this state takes {cost:.2g} cell updates, "
                f"at most {most:.2g} are allowed; send a coarser grid or a tamer state, or fewer steps"
            )
            raise InvalidField(problem.inputs[0].name, "cost", message)


def lost_at(step: int, error: WorkerLost) -> WorkerLost:
    """What to raise when whoever was to compute what follows after a step is gone."""
    text = f"{error}; go on from step {step} with start_step={step}"
    return WorkerLost(text, error.retry_after, step)
