"""What both ways through a rollout have in common: blocks, batches of directions, and what leaves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from service.batching.batcher import Outcome
from service.errors import InvalidField
from service.frame_judge import State
from service.march import March
from service.passage import leaving, off_loop, placed, size_of
from service.rollout import Rollout
from service.rollout_question import Asked
from service.scaling import require_carried, times
from service.workers.worker import Batch, Bucket, Solutions

__all__ = ["Carried", "Way", "ask_block", "blocks_of", "leaving_as_asked", "without_numbers"]

# an outcome is kept for its times: its numbers lie in memory that others wait for
NOTHING: Final = Solutions({}, ())


@final
class Carried(NamedTuple):
    """Directions at the other end of a rollout.

    Attributes:
        fields: by name, a row for each direction of each state: gradients [row y x], tangents [row step y x].
        outcomes: of the blocks.
        seconds: what it took beside them, to get to the frames [s].
    """

    fields: State
    outcomes: Sequence[Outcome]
    seconds: float


class Way(ABC):
    """How directions are carried through a rollout."""

    @abstractmethod
    def bucket(self, march: March, frames: tuple[int, ...]) -> Bucket:
        """Where they are carried through a block, from or to some of its frames, counted from 1."""

    @abstractmethod
    def held(self, asked: Asked, march: March) -> int:
        """What lies in memory between two blocks at most [B]."""

    @abstractmethod
    async def carry(self, asked: Asked, rollout: Rollout) -> Carried:
        """The directions through the whole rollout; raises what is wrong with the rollout."""

    @abstractmethod
    def name(self, asked: Asked) -> str:
        """Of the field, or of the fields, that the derivative is of."""

    @abstractmethod
    def leaving(self, asked: Asked, fields: State) -> NDArray[Any]:
        """The numbers that leave, with the caller's axes."""


def blocks_of(asked: Asked, march: March) -> int:
    """Blocks from the state to the last frame."""
    return -(-asked.span // march.block)


async def ask_block(
    asked: Asked, march: March, bucket: Bucket, state: State, prefix: str, directions: State
) -> Outcome:
    """What the worker gives for the state [batch y x] before a block, and directions [row y x]."""
    batch = await off_loop(size_of(directions) * 2, _batch, march, bucket, state, prefix, directions)
    return await march.queue.submit(batch, asked.request.ticket, admitted=True)


def _batch(march: March, bucket: Bucket, state: State, prefix: str, directions: State) -> Batch:
    """A row for each direction."""
    rows = len(next(iter(directions.values())))
    many = {name: values.repeat(rows // len(values), axis=0) for name, values in state.items()}
    given = many | {f"{prefix}{name}": values for name, values in directions.items()}
    return Batch(bucket, placed(given, march.queue, bucket.dtype))


def without_numbers(outcome: Outcome) -> Outcome:
    """Its times alone."""
    return outcome._replace(solutions=NOTHING)


def leaving_as_asked(asked: Asked, what: str, word: str, values: NDArray[Any]) -> NDArray[Any]:
    """Derivatives [row ...] as they leave.

    Args:
        asked: the question.
        what: they are, such as ``gradient of h``.
        word: what could be scaled: ``cotangents`` or ``tangents``.
        values: a row for each direction of each state.

    Raises:
        InvalidField: they are no finite numbers.
    """
    inputs = asked.inputs
    shaped = values.reshape(inputs.rows, asked.like.number, *values.shape[1:])
    values = times(shaped, asked.exponents)
    if not np.isfinite(values).all():
        message = (
            f"the {what} is not finite: it grew through the steps; ask for fewer steps, or scale the {word}"
        )
        raise InvalidField(asked.problem.outputs[0].name, "diverged", message)
    require_carried(what, values, asked.request.dtype)
    (leaves,) = leaving({what: values}, asked.request.dtype, copy=True).values()
    # whoever writes them would else copy them
    return np.ascontiguousarray(asked.like.as_given(leaves, single=inputs.single))
