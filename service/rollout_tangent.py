"""Tangents through a rollout: they march beside the state, a block after another.

Nothing of a block is kept but the frames that are asked for (``workers/tangent.py``).
"""

from __future__ import annotations

import time
from contextlib import aclosing
from dataclasses import replace
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from service.batching.batcher import Outcome
from service.frame_judge import State
from service.march import March
from service.passage import size_of
from service.rollout import Rollout
from service.rollout_question import Asked, RolloutJvpRequest
from service.rollout_way import Carried, Way, ask_block, leaving_as_asked, without_numbers
from service.workers.worker import TANGENT, Bucket

__all__ = ["Forward"]


@final
class Forward(Way):
    """From the tangents of a state to those of the frames that are asked for."""

    def bucket(self, march: March, frames: tuple[int, ...]) -> Bucket:
        """See ``Way``."""
        return replace(march.bucket, task="jvp", frames=march.block, chosen=frames)

    def held(self, asked: Asked, march: March) -> int:
        """See ``Way``: the tangents of all frames that are asked for, and of those of a block."""
        return (len(asked.steps) + march.block) * asked.like.number * size_of(asked.inputs.fields)

    async def carry(self, asked: Asked, rollout: Rollout) -> Carried:
        """See ``Way``; a row for each tangent of each state."""
        march, grid = rollout.march, asked.inputs.grid
        before = asked.inputs.fields
        tangents: State = {name: values.reshape(-1, *grid) for name, values in asked.directions.items()}
        done, taken, outcomes, seconds = asked.request.start_step, [], [], 0.0
        began = time.perf_counter()
        async with aclosing(rollout.frames) as frames:
            async for frame in frames:
                if frame.step - done < rollout.block and frame.step < asked.request.steps:
                    continue
                seconds += time.perf_counter() - began
                wanted = [step - done for step in asked.steps if done < step <= frame.step]
                ends = frame.step - done
                bucket = self.bucket(march, tuple(dict.fromkeys((*wanted, ends))))
                outcome = await ask_block(asked, march, bucket, before, TANGENT, tangents)
                tangents, found = _split(outcome, tangents, len(wanted))
                taken.append(found)
                outcomes.append(without_numbers(outcome))
                del outcome
                before, done, began = frame.fields, frame.step, time.perf_counter()
        fields = {name: np.concatenate([found[name] for found in taken], axis=1) for name in tangents}
        return Carried(fields, outcomes, seconds)

    def name(self, asked: Asked) -> str:
        """See ``Way``: the channels."""
        return ",".join(asked.directions)

    def leaving(self, asked: Asked, fields: State) -> NDArray[Any]:
        """See ``Way``: [.. step channel y x], without the axis of steps where only the last is asked for."""
        values = np.stack(list(fields.values()), axis=-3)
        request = asked.request
        if isinstance(request, RolloutJvpRequest) and request.every is None:
            values = values[:, 0]
        return leaving_as_asked(asked, f"tangent of {self.name(asked)}", "tangents", values)


def _split(outcome: Outcome, names: State, wanted: int) -> tuple[State, State]:
    """The tangents at the end of a block [row y x], and those of wanted frames [row step y x]."""
    # in memory of their own: what came lies in memory that others wait for
    found = {name: outcome.solutions.fields[f"{TANGENT}{name}"].copy() for name in names}
    ends = {name: values[:, -1] for name, values in found.items()}
    return ends, {name: values[:, :wanted] for name, values in found.items()}
