"""The comparison file: one frozen TOML description of operators x problems x seeds, without overrides."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError, model_validator

from operators.presets import PRESETS
from training.config import (
    DataSection,
    EvaluationSection,
    InvalidRun,
    LossSection,
    Name,
    OptimizerSection,
    Section,
    one_line,
)

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Grid = tuple[PositiveInt, PositiveInt]
Options = Mapping[str, Any]


class InvalidComparison(InvalidRun):
    """A comparison file that cannot be used as it is."""


class ComparisonSection(Section):
    """Where and how the comparison is carried out.

    Attributes:
        directory: of its checkpoints, rows and report.
        seeds: of weights and batches; the data are the same for all.
        workers: rows that are made at a time, each on ``threads`` threads.
    """

    name: Name
    directory: Path
    seeds: tuple[Seed, ...] = Field(min_length=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: PositiveInt = 1
    threads: PositiveInt = 1

    @model_validator(mode="after")
    def _different_seeds(self) -> Self:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"the seeds must differ, got {list(self.seeds)}")
        return self


class SearchSection(Section):
    """The search of the learning rate: for each operator and problem, every rate for ``steps`` steps.

    The rate with the smallest error on the validation split is taken for all seeds.
    """

    learning_rates: tuple[PositiveFloat, ...] = Field(min_length=1)
    steps: PositiveInt
    seed: Seed = 2**31


class BudgetSection(Section):
    """What every operator is given on a problem: ``OptimizerSection`` without the rate, which is searched."""

    steps: PositiveInt
    batch_size: PositiveInt
    weight_decay: float = 0.0
    schedule: Literal["cosine", "linear"] = "cosine"
    warmup_steps: NonNegativeInt = 0
    clip_norm: PositiveFloat = 1.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99

    def optimizer(self, learning_rate: float, steps: int) -> OptimizerSection:
        """The optimizer of one training."""
        return OptimizerSection(learning_rate=learning_rate, **(self.model_dump() | {"steps": steps}))


class OperatorSection(Section):
    """A preset of ``operators.presets``, and what differs from it.

    Attributes:
        trunk: options of the preset's trunk, table by table.
        head: options of the preset's head.
        layers: of a stack of mixers, so many of the first ones.
        mixer: options of all mixers of the trunk.
        march: width of the state that the head marches, where it marches one: for problems in time.
    """

    name: Name
    preset: Name
    trunk: Options = Field(default_factory=dict)
    head: Options = Field(default_factory=dict)
    mixer: Options = Field(default_factory=dict)
    layers: PositiveInt | None = None
    march: PositiveInt | None = None

    @model_validator(mode="after")
    def _known_preset(self) -> Self:
        if self.preset not in PRESETS:
            raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {self.preset!r}")
        return self


class ProblemSection(Section):
    """A problem with its data and its budget.

    Attributes:
        history: frames that are given; 0 of a steady problem.
        frames: that are predicted from them, all in one call; 1 of a steady problem.
        grids: other grids that the operators are tested on, without having seen them.
        grid_samples: test samples of each family on each of them.
    """

    name: Name
    data: DataSection
    budget: BudgetSection
    history: NonNegativeInt = 0
    frames: PositiveInt = 1
    normalize: bool = True
    d4: bool = True
    loss: LossSection = LossSection()
    grids: tuple[Grid, ...] = ()
    grid_samples: PositiveInt = 16


class Comparison(Section):
    """A whole comparison."""

    comparison: ComparisonSection
    search: SearchSection
    operators: tuple[OperatorSection, ...] = Field(min_length=1)
    problems: tuple[ProblemSection, ...] = Field(min_length=1)
    evaluation: EvaluationSection = EvaluationSection()

    @model_validator(mode="after")
    def _different_names(self) -> Self:
        for what, sections in (("operators", self.operators), ("problems", self.problems)):
            names = [section.name for section in sections]
            if len(set(names)) != len(names):
                raise ValueError(f"the names of the {what} must differ, got {names}")
        return self

    @property
    def rows_directory(self) -> Path:
        """Where the finished rows lie, a file each."""
        return self.comparison.directory / "rows"


def parse_comparison(text: str) -> Comparison:
    """The comparison that a TOML text describes.

    Raises:
        InvalidComparison: not TOML, an unknown key, or a value that is out of bounds.
    """
    try:
        return Comparison.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise InvalidComparison(f"expected TOML: {error}") from error
    except ValidationError as error:
        raise InvalidComparison(one_line(error)) from error


def grid_name(grid: Grid) -> str:
    """Cells along y and x, as in ``64x64``."""
    return f"{grid[0]}x{grid[1]}"


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes``, table by table."""
    found = dict(base)
    for name, value in changes.items():
        inner = found.get(name)
        found[name] = (
            merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
        )
    return found
