"""A state becomes the frame that leaves the service, with all that is known about it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, Self, final

import numpy as np
from numpy.typing import NDArray

from problems import EvolutionProblem, Grid
from problems import InvalidField as BrokenRule
from problems.lower_bounds import least_rms_error, symmetries
from service.errors import InvalidField
from service.frame_trust import CalibratedError, Calibration
from service.workers.worker import INVARIANTS

__all__ = ["BOUND", "DEFECT", "Block", "Computed", "Frame", "FrameJudge", "Judged", "State", "rows_of"]

State = Mapping[str, NDArray[Any]]

# an invariant that some problems have, and what is said about it beside
MASS: Final = "mass"
MASS_DEFECT: Final = "mass_defect"
# lower bounds of the error, where there are any; see ``problems.lower_bounds``
LEAST_MEAN: Final = "least_mean_error"
LEAST_RMS: Final = "least_rms_error"
# what steps of the reference solver tell; see ``checked_march``
DEFECT: Final = "defect"
BOUND: Final = "exponential_bound"


@final
class Computed(NamedTuple):
    """A block as it was computed, in memory that others wait for.

    Attributes:
        fields: [batch frame y x] by name.
        invariants: [batch frame invariant]; not all finite where nobody has looked at a frame, or where it
            breaks a rule.
        scores: ``Solutions.novelty`` of the state before the block; empty: nothing is known.
        defects: [batch frame], NaN where nobody has looked; see ``Frame``. None: nobody wants to know.
        bounds: [batch frame], NaN where there is none; None: there are none.
    """

    fields: State
    invariants: NDArray[np.float64]
    scores: tuple[float, ...] = ()
    defects: NDArray[np.float64] | None = None
    bounds: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, outputs: State, problem: EvolutionProblem, scores: tuple[float, ...] = ()) -> Self:
        """What a worker has given."""
        fields = {spec.name: outputs[spec.name] for spec in problem.outputs}
        if INVARIANTS in outputs:
            return cls(fields, outputs[INVARIANTS], scores)
        rows, frames = next(iter(fields.values())).shape[:2]
        return cls(fields, np.full((rows, frames, len(problem.invariant_names)), np.nan), scores)

    @property
    def sound(self) -> list[bool]:
        """Of each frame, whether it is known to be one."""
        sound: list[bool] = np.logical_and.reduce(np.isfinite(self.invariants), axis=(0, 2)).tolist()
        return sound

    def frame(self, number: int) -> State:
        """The fields [batch y x] of a frame, where they are."""
        return {name: values[:, number] for name, values in self.fields.items()}

    def some(self, frames: slice, dtype: str) -> Computed:
        """Some frames: fields of this dtype where they are, others as copies; invariants of their own."""
        fields = {name: values[:, frames].astype(dtype, copy=False) for name, values in self.fields.items()}
        defects = None if self.defects is None else self.defects[:, frames]
        bounds = None if self.bounds is None else self.bounds[:, frames]
        return Computed(fields, self.invariants[:, frames].copy(), self.scores, defects, bounds)


@final
class Frame(NamedTuple):
    """The state after a step.

    Attributes:
        step: counted from the initial state, which is step 0.
        time: of the step [s].
        fields: [batch y x] by name.
        invariants: of each row, by name.
        error: what is known about the error at this step; None: nothing.
        ood_scores: of each row, the share of the calibration data whose states resemble the training data
            more than the one that the frame's block began with; empty: nobody can tell.
        defects: of each row, how far it is from one step of the reference solver from the frame before it:
            root mean square over all fields and cells, in their units; NaN: not looked at. Empty: nowhere.
        bounds: of each row, the root mean square error that the defects up to here allow, against the
            solution from the given state; NaN: nothing is known. Empty: nowhere.
    """

    step: int
    time: float
    fields: State
    invariants: Mapping[str, Sequence[float]]
    error: CalibratedError | None
    ood_scores: tuple[float, ...] = ()
    defects: tuple[float, ...] = ()
    bounds: tuple[float, ...] = ()

    def checked(self, row: int) -> dict[str, float]:
        """What the reference solver says of a row, by name; what is not known is left out."""
        found = {DEFECT: self.defects, BOUND: self.bounds}
        return {name: values[row] for name, values in found.items() if values and math.isfinite(values[row])}


@final
@dataclass(frozen=True)
class Judged:
    """What frames are judged by.

    Attributes:
        calibrated_from: the step from which the frames of ``calibration`` count.
        surrogate: a version computed them, not the reference solver.
        closed: nothing passes the walls.
        single: the caller sent one state, not a batch.
        dtype: of the frames.
        solver: the reference solver is a way out.
    """

    problem: EvolutionProblem
    grid: Grid
    frame_interval: float
    calibration: Mapping[str, float]
    calibrated_from: int
    surrogate: bool
    single: bool
    dtype: Literal["float32", "float64"]
    closed: bool = False
    solver: bool = True

    def diverged(self, step: int, row: int, why: str) -> InvalidField:
        """What to raise when the state of a row has left what the problem allows."""
        way_out = "another model, or method=solver"
        if not self.surrogate:
            way_out = "or start from a tamer state"
        elif not self.solver:
            way_out = "or another model"
        message = f"step {step}: {why}; ask for fewer steps, {way_out}"
        return InvalidField(
            self.problem.outputs[0].name, "diverged", message, None if self.single else (row,)
        )


@final
@dataclass(frozen=True)
class Block:
    """The frames of a block that are sent, and the state after it in memory of its own.

    Attributes:
        frames: their fields lie where they were computed, unless they leave in another dtype.
        fault: what is wrong with the frame after these, which ends them; None: nothing.
    """

    frames: Sequence[Frame]
    state: State
    fault: InvalidField | None


@final
class FrameJudge:
    """Judges the frames of one rollout."""

    def __init__(self, judged: Judged, start_step: int, initial: State) -> None:
        self._judged = judged
        self._calibration = Calibration.of(judged.calibration)
        self._names = judged.problem.invariant_names
        # of the state before the first frame, where the problem has one [batch]
        self._mass: NDArray[np.float64] | None = None
        if MASS in self._names:
            with np.errstate(all="ignore"):
                self._mass = self._invariants(start_step, initial)[:, self._names.index(MASS)]
            self._names = (*self._names, MASS_DEFECT, *([LEAST_MEAN] if judged.closed else []))
        # of each row, all that the solution shares with the state; empty: some row has none
        self._groups = [symmetries(judged.problem, row) for row in rows_of(initial)]
        if all(self._groups):
            self._names = (*self._names, LEAST_RMS)
        else:
            self._groups = []

    @property
    def quick(self) -> bool:
        """Whether a block of which all is known takes no time to be judged."""
        return not self._groups

    def block(self, computed: Computed, steps: range, every: int) -> Block:
        """Judge the frames of ``steps``, of which every ``every``-th is sent."""
        first, fault = -steps.start % every, None
        steps_sent = steps[first::every]
        # what overflows is no number in the answer either
        with np.errstate(all="ignore"):
            sent = computed.some(slice(first, len(steps), every), self._judged.dtype)
            for number, sound in enumerate(sent.sound):
                if not sound:
                    try:
                        sent.invariants[:, number] = self._looked_at(steps_sent[number], sent.frame(number))
                    except InvalidField as error:
                        # its traceback would keep the fields
                        fault, steps_sent = error.with_traceback(None), steps_sent[:number]
                        break
            numbers = self._with_symmetry(sent, self._with_defect(sent.invariants))
        # [frame invariant batch]: in Python from here on
        known = zip(steps_sent, numbers.transpose(1, 2, 0).tolist(), strict=False)
        frames = [self._frame(step, sent, n, each) for n, (step, each) in enumerate(known)]
        last = {name: values.copy() for name, values in computed.frame(len(steps) - 1).items()}
        return Block(frames, last, fault)

    def _frame(self, step: int, sent: Computed, number: int, numbers: Sequence[Sequence[float]]) -> Frame:
        invariants = dict(zip(self._names, numbers, strict=True))
        error = self._calibration.error(step - self._judged.calibrated_from)
        time = step * self._judged.frame_interval
        defects = () if sent.defects is None else tuple(sent.defects[:, number].tolist())
        bounds = () if sent.bounds is None else tuple(sent.bounds[:, number].tolist())
        return Frame(step, time, sent.frame(number), invariants, error, sent.scores, defects, bounds)

    def _with_defect(self, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        """Beside the invariants [batch frame invariant] what part of the mass was won, or how much."""
        if self._mass is None:
            return numbers
        mass = numbers[:, :, self._names.index(MASS)]
        columns = [mass / self._mass[:, None] - 1]
        if self._judged.closed:
            columns.append(np.abs(mass - self._mass[:, None]) / math.prod(self._judged.grid.extent))
        return np.concatenate([numbers, np.stack(columns, axis=2)], axis=2)

    def _with_symmetry(self, sent: Computed, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        """Beside the numbers [batch frame number] how far frames are from the symmetry of their solution."""
        if not self._groups:
            return numbers
        found = [
            least_rms_error(
                self._judged.problem, {name: values[row] for name, values in sent.fields.items()}, group
            )
            for row, group in enumerate(self._groups)
        ]
        return np.concatenate([numbers, np.array(found)[:, :, None]], axis=2)

    def _looked_at(self, step: int, fields: State) -> NDArray[np.float64]:
        """The invariants [batch invariant] of a frame that may not be one."""
        for name, values in fields.items():
            if not np.isfinite(values).all():
                row = int(np.argmin(np.isfinite(values).all(axis=(1, 2))))
                raise self._judged.diverged(step, row, f"{name} is not finite in {self._judged.dtype}")
        return self._invariants(step, fields)

    def _invariants(self, step: int, fields: State) -> NDArray[np.float64]:
        problem, grid = self._judged.problem, self._judged.grid
        rows: list[list[float]] = []
        for state in rows_of(fields):
            try:
                rows.append(list(problem.invariants(state, grid).values()))
            except BrokenRule as error:
                raise self._judged.diverged(step, len(rows), error.message) from error
        return np.array(rows)


def rows_of(fields: State) -> Iterator[dict[str, NDArray[np.float64]]]:
    """Each sample of a batch by itself, in float64."""
    for row in range(len(next(iter(fields.values())))):
        yield {name: np.asarray(values[row], dtype=np.float64) for name, values in fields.items()}
