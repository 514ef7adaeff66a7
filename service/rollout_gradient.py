"""Gradients through a rollout: the states between its blocks are kept, and cotangents go back through each.

The last block comes first (``workers/block_gradient.py``).
"""

from __future__ import annotations

import time
from contextlib import aclosing
from dataclasses import replace
from typing import Any, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from service.frame_judge import State
from service.march import March
from service.passage import size_of
from service.rollout import Rollout
from service.rollout_question import Asked
from service.rollout_way import Carried, Way, ask_block, blocks_of, leaving_as_asked, without_numbers
from service.workers.worker import COTANGENT, GRADIENT, Bucket

__all__ = ["Backward"]


@final
class _Blocks(NamedTuple):
    """The states [batch y x] by name before each block, and which frame of the last one is meant, from 1."""

    states: list[State]
    last: int


@final
class Backward(Way):
    """From the cotangents of a frame to the gradients with respect to the state."""

    def bucket(self, march: March, frames: tuple[int, ...]) -> Bucket:
        """See ``Way``; of one frame."""
        (frame,) = frames
        return replace(march.bucket, task="vjp", frames=frame)

    def held(self, asked: Asked, march: March) -> int:
        """See ``Way``: the states before all blocks."""
        return blocks_of(asked, march) * size_of(asked.inputs.fields)

    async def carry(self, asked: Asked, rollout: Rollout) -> Carried:
        """See ``Way``; a row for each cotangent of each state."""
        began, march = time.perf_counter(), rollout.march
        blocks = await _followed(asked, rollout)
        seconds = time.perf_counter() - began
        grid = asked.inputs.grid
        fields: State = {name: values.reshape(-1, *grid) for name, values in asked.directions.items()}
        frame, outcomes = blocks.last, []
        for state in reversed(blocks.states):
            bucket = self.bucket(march, (frame,))
            outcome = await ask_block(asked, march, bucket, state, COTANGENT, fields)
            found = outcome.solutions.fields
            # a state has the fields that a frame has
            fields = {name: found[f"{GRADIENT}{name}"] for name in fields}
            frame = march.block
            outcomes.append(without_numbers(outcome))
            del found, outcome
        return Carried(fields, outcomes, seconds)

    def name(self, asked: Asked) -> str:
        """See ``Way``."""
        return asked.request.wrt or asked.name

    def leaving(self, asked: Asked, fields: State) -> NDArray[Any]:
        """See ``Way``."""
        values = fields[asked.name]
        if asked.logarithmic:
            values = values * asked.inputs.fields[asked.name].astype(np.float64).repeat(
                asked.like.number, axis=0
            )
        return leaving_as_asked(asked, f"gradient of {asked.name}", "cotangents", values)


async def _followed(asked: Asked, rollout: Rollout) -> _Blocks:
    """The states before each block; a rollout that does not get to the frame raises what is wrong with it."""
    start, end = asked.request.start_step, asked.request.steps
    states = [asked.inputs.fields]
    async with aclosing(rollout.frames) as frames:
        states += [
            frame.fields
            async for frame in frames
            if (frame.step - start) % rollout.block == 0 and frame.step < end
        ]
    return _Blocks(states, end - start - (len(states) - 1) * rollout.block)
