"""Rollouts of which some steps, or all, are compared with those of the reference solver.

See ``problems.one_step``. The solver steps what was served: for each step that was chosen, the frame before
it. All those of a block are the rows of one batch in the queue of the solver's own rollouts, once the block
is computed. What the solver cannot step, or not within the limit on its work, has no defect; the rollout goes
on.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from problems import CannotSolve
from problems import InvalidField as BrokenRule
from problems.one_step import (
    exponential_bounds,
    root_mean_square,
    root_mean_square_difference,
    sampled_frames,
)
from service.batching.batcher import Batcher
from service.errors import InvalidField, WorkerLost
from service.frame_judge import Computed, State, rows_of
from service.march import March, lost_at
from service.workers.worker import STEP, Batch, Solutions

__all__ = ["CheckedMarch", "check_comparable", "chosen_steps"]


def chosen_steps(start: int, steps: int, every: int, count: int) -> frozenset[int]:
    """The steps of a rollout to compare: ``count`` of those that are sent, or all, if these are fewer.

    The same request has the same ones; a rollout that goes on from another step has others.
    """
    sent = range((start // every + 1) * every, steps + 1, every)
    return frozenset(sent[at] for at in sampled_frames(len(sent), count, seed=start))


def check_comparable(march: March) -> None:
    """Refuse to compare the steps of a march with the reference solver's where they are none of its own.

    Raises:
        InvalidField: it is that solver's, or its version approximates what the solver does not.
    """
    judged, version = march.judged, march.bucket.version
    problem = judged.problem
    if version is None:
        message = "method=solver takes the reference solver's own steps; leave defects out"
        raise InvalidField("defects", "method", f"defects: {message}")
    if march.bucket.scheme not in problem.schemes:
        message = (
            f"{version} approximates {march.bucket.scheme!r}, expected one of {', '.join(problem.schemes)}"
        )
        raise InvalidField("defects", "model", f"defects: {message}; leave defects out")
    if not math.isclose(judged.frame_interval, problem.frame_interval):
        message = f"{version} steps by {judged.frame_interval} s, the solver by {problem.frame_interval} s"
        raise InvalidField("defects", "model", f"defects: {message}; leave defects out")


@final
class _Place(NamedTuple):
    """A transition: the row, and the number of the frame within the block that it leads to."""

    row: int
    number: int


@final
class CheckedMarch:
    """Steps states as a march does, and says how far from the reference solver's steps; once, in order."""

    def __init__(
        self, march: March, solver: Batcher, most_cell_steps: int, chosen: Collection[int], start: int
    ) -> None:
        """A march to be compared.

        Args:
            march: steps; that of a version.
            solver: the queue of the reference solvers' steps.
            most_cell_steps: cells times steps that the solver may take for a block.
            chosen: the steps that are compared.
            start: the step of the first state.
        """
        self._march = march
        self._solver = solver
        self._bucket = replace(march.bucket, version=None, dtype="float64", frames=1, reproducible=False)
        self._most = most_cell_steps
        self._chosen = chosen
        self._start = start
        # bounds of the last frame's error [batch]; NaN: not known any more
        self._errors: list[float] = []

    @property
    def block(self) -> int:
        """See ``Stepper``."""
        return self._march.block

    async def advance(self, state: State, step: int, *, admitted: bool) -> Computed:
        """See ``March``."""
        computed = await self._march.advance(state, step, admitted=admitted)
        batch, places = await asyncio.to_thread(self._asked, state, computed, step)
        if batch is None:
            return await asyncio.to_thread(self._told, computed, {})
        # others wait for the memory that it is in, and the solver may take its time
        computed = await asyncio.to_thread(_own, computed)
        try:
            outcome = await self._solver.submit(batch, self._march.ticket, admitted=admitted)
        except WorkerLost as error:
            raise lost_at(step, error) from error
        return await asyncio.to_thread(
            self._told, computed, _stepped(places, outcome.solutions, computed.fields)
        )

    def _asked(self, state: State, computed: Computed, step: int) -> tuple[Batch | None, list[_Place]]:
        """The states to step from, as far as the solver can and may, and where those steps lead."""
        problem, grid, scheme = self._march.judged.problem, self._bucket.grid, self._bucket.scheme
        places, states, spent = [], [], 0
        for place, before in self._before(state, computed, step):
            try:
                cost = problem.cell_steps(before, grid, scheme, step + place.number)
            except (BrokenRule, CannotSolve):
                continue
            if spent + cost <= self._most:
                spent += cost
                places.append(place)
                states.append(before)
        if not places:
            return None, places
        fields = {name: self._solver.allocate((len(states), *grid.shape), "float64") for name in state}
        for name, room in fields.items():
            np.stack([before[name] for before in states], out=room)
        numbers = np.array([step + place.number for place in places])
        return Batch(self._bucket, {**fields, STEP: numbers}), places

    def _before(
        self, state: State, computed: Computed, step: int
    ) -> Iterator[tuple[_Place, Mapping[str, NDArray[np.float64]]]]:
        """Each chosen transition, and the state before it: that which was sent, or what is served."""
        for number in range(self.block):
            if step + number + 1 in self._chosen:
                before = computed.frame(number - 1) if number else state
                if step + number > self._start:
                    before = self._served(before)
                for row, fields in enumerate(rows_of(before)):
                    yield _Place(row, number), fields

    def _served(self, fields: State) -> State:
        """The numbers that leave the service."""
        # what overflows is no state, which the solver says
        with np.errstate(over="ignore"):
            return {
                name: values.astype(self._march.judged.dtype, copy=False) for name, values in fields.items()
            }

    def _told(self, computed: Computed, stepped: Mapping[_Place, State]) -> Computed:
        """The block with what is known of its steps."""
        defects = np.full((len(computed.invariants), self.block), np.nan)
        for place, after in stepped.items():
            with np.errstate(all="ignore"):
                defects[place] = root_mean_square_difference(self._frame(computed, place), after)
        # what is beyond float64 is not known
        defects[np.isinf(defects)] = np.nan
        return computed._replace(defects=defects, bounds=self._bounds(computed, defects))

    def _frame(self, computed: Computed, place: _Place) -> Mapping[str, NDArray[np.float64]]:
        """What is served, in float64."""
        served = self._served({name: values[place] for name, values in computed.fields.items()})
        return {name: np.asarray(values, np.float64) for name, values in served.items()}

    def _bounds(self, computed: Computed, defects: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """What all defects so far bound, where that is less than the frame itself."""
        judged = self._march.judged
        growth = judged.problem.growth
        if growth is None:
            return None
        starts = self._errors or [0.0] * len(defects)
        found = np.array(
            [
                exponential_bounds(row, growth, judged.frame_interval, error)
                for row, error in zip(defects.tolist(), starts, strict=True)
            ]
        )
        self._errors = found[:, -1].tolist()
        for place in map(_Place._make, np.argwhere(np.isfinite(found))):
            with np.errstate(all="ignore"):
                size = root_mean_square(self._frame(computed, place))
            # a bound that the frame itself meets says nothing
            if not found[place] <= size:
                found[place] = np.nan
        found[~np.isfinite(found)] = np.nan
        return found


def _own(computed: Computed) -> Computed:
    """The same in memory of its own."""
    fields = {name: values.copy() for name, values in computed.fields.items()}
    return computed._replace(fields=fields, invariants=computed.invariants.copy())


def _stepped(places: Sequence[_Place], solutions: Solutions, names: Collection[str]) -> dict[_Place, State]:
    """What the solver has found, by transition."""
    return {
        place: {name: solutions.fields[name][at, 0] for name in names}
        for at, place in enumerate(places)
        if at not in solutions.unsolved
    }
