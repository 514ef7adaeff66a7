"""The rows of a comparison: what each of them trains, and what is kept of it."""

from __future__ import annotations

import hashlib
import math
from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, final

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError

from operators import OperatorConfig
from operators.presets import Task, preset
from problems import EVOLUTION_PROBLEMS
from training.comparison.config import (
    Comparison,
    InvalidComparison,
    OperatorSection,
    ProblemSection,
    merged,
)
from training.config import (
    AugmentationSection,
    CheckpointSection,
    LogSection,
    Run,
    RunSection,
    SequenceSection,
    one_line,
)
from training.files import replace_atomically


@final
@dataclass(frozen=True)
class Entry:
    """One training of a comparison: an operator, a problem, a seed, and a learning rate.

    Attributes:
        trial: whether it is one of the search of the learning rate.
    """

    comparison: Comparison
    operator: OperatorSection
    problem: ProblemSection
    seed: int
    learning_rate: float
    trial: bool = False

    @property
    def name(self) -> str:
        """For messages and for its directory."""
        rate = f"rate_{self.learning_rate:g}" if self.trial else f"seed_{self.seed}"
        return f"{self.problem.name}/{self.operator.name}/{rate}"

    @property
    def run(self) -> Run:
        """The run that trains it.

        Raises:
            InvalidComparison: the operator's options, or those of the problem, do not fit.
        """
        section, given = self.problem, self.comparison
        steps = given.search.steps if self.trial else section.budget.steps
        evolution = section.data.problem in EVOLUTION_PROBLEMS
        try:
            return Run(
                run=RunSection(
                    name="row",
                    directory=given.comparison.directory / "trainings" / self.name,
                    seed=self.seed,
                    device=given.comparison.device,
                    threads=given.comparison.threads,
                ),
                data=section.data,
                operator=operator_config(self.operator, section),
                optimizer=section.budget.optimizer(self.learning_rate, steps),
                **({"sequence": _sequence(section)} if evolution else {"loss": section.loss}),
                augmentation=AugmentationSection(d4=section.d4),
                checkpoint=CheckpointSection(minutes=1),
                log=LogSection(every=min(50, steps), validate_every=steps),
                evaluation=given.evaluation,
            )
        except ValidationError as error:
            raise InvalidComparison(f"{self.name}: {one_line(error)}") from error

    @property
    def text(self) -> str:
        """The run as a TOML file, as ``mno train`` takes it."""
        run = self.run
        # a problem in time has one loss, which its file leaves out
        left_out = {"loss"} if run.sequence is not None else set()
        return tomli_w.dumps(run.model_dump(mode="json", exclude_none=True, exclude=left_out))

    @property
    def recipe(self) -> str:
        """Hash of all that its record depends on: its training, and of a row where else it is tested."""
        text = self.run.training_recipe()
        if not self.trial and self.problem.grids:
            text += f"\ntested on {self.problem.grids}, {self.problem.grid_samples} samples each"
        return hashlib.sha256(text.encode()).hexdigest()


def _sequence(problem: ProblemSection) -> SequenceSection:
    """One block after the given frames, from the beginning of a trajectory."""
    return SequenceSection(first_frame=problem.history - 1, normalize=problem.normalize)


def task_of(problem: ProblemSection) -> Task:
    """What an operator learns on the problem."""
    data, evolution = problem.data, EVOLUTION_PROBLEMS.get(problem.data.problem)
    spacing = data.extent[1] / data.grid[1]
    if evolution is None:
        if problem.history or problem.frames != 1:
            raise InvalidComparison(f"{problem.name}: {data.problem} is steady: leave history and frames out")
        return Task(spacing=spacing)
    if problem.history < 1:
        raise InvalidComparison(f"{problem.name}.history: expected the number of given frames, got none")
    return Task(
        fields=len(evolution.inputs),
        history=problem.history,
        frames=problem.frames,
        walls=data.walls or evolution.walls[0],
        spacing=spacing,
    )


def operator_config(operator: OperatorSection, problem: ProblemSection) -> OperatorConfig:
    """The preset, sized for the problem, with the changes that the file makes.

    Raises:
        InvalidComparison: an option that the preset's parts do not have.
    """
    chosen = preset(operator.preset, task_of(problem))
    values = chosen.model_dump()
    trunk: dict[str, Any] = merged(values["trunk"], operator.trunk)
    if operator.layers is not None or operator.mixer:
        trunk = _with_mixers(operator, trunk)
    head = merged(values["head"], operator.head)
    if operator.march is not None and head.get("march") is not None:
        head |= {"march": operator.march}
    values |= {"trunk": trunk, "head": head}
    try:
        return type(chosen).model_validate(values)
    except ValidationError as error:
        raise InvalidComparison(f"operators.{operator.name}: {one_line(error)}") from error


def _with_mixers(operator: OperatorSection, trunk: dict[str, Any]) -> dict[str, Any]:
    """The trunk with other mixers, and fewer of them."""
    if "mixers" in trunk:
        mixers = trunk["mixers"][: operator.layers]
        if operator.layers is not None and operator.layers > len(mixers):
            raise InvalidComparison(
                f"operators.{operator.name}.layers: the preset has {len(mixers)}, got {operator.layers}"
            )
        return trunk | {"mixers": [merged(mixer, operator.mixer) for mixer in mixers]}
    if operator.layers is not None:
        raise InvalidComparison(
            f"operators.{operator.name}.layers: only stacks of mixers have them; say how many in trunk"
        )
    names = [name for name in ("cross_mixer", "mixer") if name in trunk]
    if not names:
        raise InvalidComparison(f"operators.{operator.name}.mixer: the preset's trunk has no mixers")
    return trunk | {name: merged(trunk[name], operator.mixer) for name in names}


def trials(comparison: Comparison, operator: OperatorSection, problem: ProblemSection) -> tuple[Entry, ...]:
    """The trainings of an operator's search on a problem; none where there is one rate to choose from."""
    search = comparison.search
    if len(search.learning_rates) == 1:
        return ()
    return tuple(
        Entry(comparison, operator, problem, search.seed, rate, trial=True) for rate in search.learning_rates
    )


@final
class Spectrum(BaseModel):
    """Power spectra averaged over test samples, of one channel at one moment.

    Attributes:
        wavenumber: cycles per length [1/m].
        reference: of the reference solutions.
        error: of the answers minus them.
    """

    # an answer that blew up has them
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    wavenumber: tuple[float, ...]
    reference: tuple[float, ...]
    error: tuple[float, ...]


class Record(BaseModel, ABC):
    """What is kept of something that was computed.

    Attributes:
        recipe: hash of all that it depends on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    recipe: str


@final
class Trial(Record):
    """What the search found at one rate: the error on the validation split, infinite where it diverged."""

    learning_rate: float
    error: float


@final
class Row(Record):
    """What an operator did on the test split of a problem, trained from a seed.

    Attributes:
        operator: its name in the comparison file, or that of a baseline, which has no seed and no rate.
        parameters: that were learnt.
        metric: the error that the table shows, averaged over the test samples.
        error: its value.
        errors: family -> statistics of all metrics over the samples.
        by_frame: mean error of each predicted frame; empty for a steady problem.
        elsewhere: other grid -> the error there, without training; None where the operator cannot.
        spectrum: of the errors.
        steps: of the optimizer.
        seconds: of training, on the clock.
        code: commit that made it.
        machine: what it ran on.
    """

    operator: str
    problem: str
    seed: int | None
    learning_rate: float | None
    parameters: int
    metric: str
    error: float
    errors: dict[str, dict[str, float]]
    by_frame: tuple[float, ...] = ()
    elsewhere: dict[str, float | None] = {}
    spectrum: Spectrum | None = None
    steps: int = 0
    seconds: float = 0.0
    code: str
    machine: str


Kind = TypeVar("Kind", bound=Record)


def write_record(path: Path, record: Record) -> None:
    """Put a record where the next start of the comparison finds it."""
    with replace_atomically(path) as temporary:
        temporary.write_text(record.model_dump_json(indent=1) + "\n")


def read_record(path: Path, kind: type[Kind], recipe: str) -> Kind | None:
    """The record at ``path``; None where there is none.

    Raises:
        InvalidComparison: it was made from another recipe.
    """
    if not path.is_file():
        return None
    record = kind.model_validate_json(path.read_text())
    if record.recipe != recipe:
        raise InvalidComparison(
            f"{path} was made from another comparison file: restore the file, move the record away, or "
            "choose another directory"
        )
    return record


def trial_path(entry: Entry) -> Path:
    """Where its trial lies."""
    return entry.comparison.comparison.directory / "search" / f"{entry.name}.json"


def row_path(entry: Entry) -> Path:
    """Where its row lies."""
    return entry.comparison.rows_directory / f"{entry.name}.json"


def known_trial(entry: Entry) -> Trial | None:
    """Its trial, if it was made."""
    return read_record(trial_path(entry), Trial, entry.recipe)


def known_row(entry: Entry) -> Row | None:
    """Its row, if it was made."""
    return read_record(row_path(entry), Row, entry.recipe)


def best_rate(found: Sequence[Trial]) -> float:
    """The rate with the least error; the lowest one if training diverged at all of them."""
    # an error that is not a number is smaller than none
    return min(
        found, key=lambda trial: (math.isnan(trial.error), trial.error, trial.learning_rate)
    ).learning_rate
