"""A state becomes the frame that leaves the service, with all that is known about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, final

import numpy as np
from numpy.typing import NDArray

from problems import EvolutionProblem, Grid
from problems import InvalidField as BrokenRule
from service.errors import InvalidField
from service.frame_trust import CalibratedError, calibrated_error

__all__ = ["Block", "Frame", "FrameJudge", "Judged", "State", "rows_of"]

State = Mapping[str, NDArray[Any]]

# an invariant that some problems have, and what is said about it beside
MASS: Final = "mass"
MASS_DEFECT: Final = "mass_defect"


@final
@dataclass(frozen=True)
class Frame:
    """The state after a step.

    Attributes:
        step: counted from the initial state, which is step 0.
        time: of the step [s].
        fields: [batch y x] by name.
        invariants: [batch] by name.
        error: what is known about the error at this step; None: nothing.
    """

    step: int
    time: float
    fields: State
    invariants: Mapping[str, NDArray[np.float64]]
    error: CalibratedError | None


@final
@dataclass(frozen=True)
class Judged:
    """What frames are judged by.

    Attributes:
        calibrated_from: the step from which the frames of ``calibration`` count.
        surrogate: a version computed them, not the reference solver.
        single: the caller sent one state, not a batch.
        dtype: of the frames.
    """

    problem: EvolutionProblem
    grid: Grid
    frame_interval: float
    calibration: Mapping[str, float]
    calibrated_from: int
    surrogate: bool
    single: bool
    dtype: Literal["float32", "float64"]

    def diverged(self, step: int, row: int, why: str) -> InvalidField:
        """What to raise when the state of a row has left what the problem allows."""
        way_out = "another model, or method=solver" if self.surrogate else "or start from a tamer state"
        message = f"step {step}: {why}; ask for fewer steps, {way_out}"
        return InvalidField(
            self.problem.outputs[0].name, "diverged", message, None if self.single else (row,)
        )


@final
@dataclass(frozen=True)
class Block:
    """The frames of a block that are sent, in memory of their own, and the state after it.

    Attributes:
        fault: what is wrong with the frame after these, which ends them; None: nothing.
    """

    frames: tuple[Frame, ...]
    state: State
    fault: InvalidField | None


@final
class FrameJudge:
    """Judges the frames of one rollout."""

    def __init__(self, judged: Judged, start_step: int, initial: State) -> None:
        self._judged = judged
        self._mass = self._invariants(start_step, initial).get(MASS)

    def block(self, fields: State, steps: range, every: int) -> Block:
        """Judge the frames [batch frame y x] of ``steps``, of which every ``every``-th is sent."""
        frames: list[Frame] = []
        fault = None
        for offset, step in enumerate(steps):
            if step % every == 0:
                try:
                    frames.append(
                        self._frame(step, {name: values[:, offset] for name, values in fields.items()})
                    )
                except InvalidField as error:
                    fault = error
                    break
        last = {name: values[:, len(steps) - 1].copy() for name, values in fields.items()}
        return Block(tuple(frames), last, fault)

    def _frame(self, step: int, state: State) -> Frame:
        with np.errstate(over="ignore"):
            fields = {name: values.astype(self._judged.dtype, order="C") for name, values in state.items()}
        for name, values in fields.items():
            if not np.isfinite(values).all():
                row = int(np.argmin(np.isfinite(values).all(axis=(1, 2))))
                raise self._judged.diverged(step, row, f"{name} is not finite in {self._judged.dtype}")
        invariants = self._invariants(step, fields)
        if self._mass is not None:
            invariants[MASS_DEFECT] = invariants[MASS] / self._mass - 1
        time_of_step = step * self._judged.frame_interval
        error = calibrated_error(self._judged.calibration, step - self._judged.calibrated_from)
        return Frame(step, time_of_step, fields, invariants, error)

    def _invariants(self, step: int, fields: State) -> dict[str, NDArray[np.float64]]:
        problem, grid = self._judged.problem, self._judged.grid
        rows: list[Mapping[str, float]] = []
        for state in rows_of(fields):
            try:
                # what overflows is no number in the answer either
                with np.errstate(all="ignore"):
                    rows.append(problem.invariants(state, grid))
            except BrokenRule as error:
                raise self._judged.diverged(step, len(rows), error.message) from error
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def rows_of(fields: State) -> Iterator[dict[str, NDArray[np.float64]]]:
    """Each sample of a batch by itself, in float64."""
    for row in range(len(next(iter(fields.values())))):
        yield {name: np.asarray(values[row], dtype=np.float64) for name, values in fields.items()}
