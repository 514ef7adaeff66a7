"""The run file: one frozen TOML description of a training, without overrides."""

import json
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from operators import OperatorConfig, evolves, holds_equations
from problems import EVOLUTION_PROBLEMS
from training.metrics import SUMMARY_NAMES
from training.trajectory_metrics import summary_names

Split = Literal["train", "validation", "test", "calibration"]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class InvalidRun(ValueError):
    """A run file that cannot be used as it is."""


class Section(BaseModel):
    """A table of a TOML file: frozen, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RunSection(Section):
    """Where and how the run is carried out."""

    name: Name
    directory: Path
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: PositiveInt | None = None


class FamilySection(Section):
    """Samples of one coefficient family: ``parameters`` maps a name to a number or to a [low, high] range."""

    name: Name
    family: Name
    parameters: dict[str, float | tuple[PositiveFloat, PositiveFloat]] = {}
    train: NonNegativeInt = 0
    validation: NonNegativeInt = 0
    test: NonNegativeInt = 0
    # what the estimates of the published version are made from, else the test samples; see
    # ``training.calibrate``
    calibration: NonNegativeInt = 0

    @model_validator(mode="after")
    def _ordered_ranges(self) -> Self:
        for name, value in self.parameters.items():
            if isinstance(value, tuple) and value[0] > value[1]:
                raise ValueError(f"{name}: expected [low, high] with low <= high, got {list(value)}")
        return self


class DataSection(Section):
    """The reference data: one file per split and family in ``directory``."""

    directory: Path
    problem: Name = "darcy"
    grid: tuple[PositiveInt, PositiveInt]
    extent: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0)
    scheme: str
    source: float = 1.0
    # of an evolution problem: frames after the initial state, the grid of the reference solver (its cells are
    # averaged down to ``grid``) and the boundary conditions
    frames: PositiveInt | None = None
    label_grid: tuple[PositiveInt, PositiveInt] | None = None
    walls: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    workers: PositiveInt | None = None
    families: tuple[FamilySection, ...] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _size_of_the_problem(cls, given: Any) -> Any:
        """An evolution problem has a domain of its own."""
        if isinstance(given, dict) and "extent" not in given and given.get("problem") in EVOLUTION_PROBLEMS:
            return given | {"extent": EVOLUTION_PROBLEMS[given["problem"]].grid.extent}
        return given

    @model_validator(mode="after")
    def _usable_families(self) -> Self:
        names = [family.name for family in self.families]
        if len(set(names)) != len(names):
            raise ValueError(f"the names of the families must differ, got {names}")
        if not any(family.train for family in self.families):
            raise ValueError("at least one family needs training samples (train = ...)")
        return self


class OptimizerSection(Section):
    """AdamW with a linear warm-up, then a decay to zero at the last step."""

    learning_rate: PositiveFloat
    weight_decay: NonNegativeFloat = 0.0
    betas: tuple[Fraction, Fraction] = (0.9, 0.99)
    schedule: Literal["cosine", "linear"] = "cosine"
    warmup_steps: NonNegativeInt = 0
    steps: PositiveInt
    batch_size: PositiveInt
    clip_norm: PositiveFloat = 1.0
    ema_decay: Fraction = 0.999

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps = {self.warmup_steps} must be below steps = {self.steps}")
        return self


class LossSection(Section):
    """``relative_l2 * (relative L2 error) + energy * (relative energy error)``, the mean over samples."""

    relative_l2: NonNegativeFloat = 1.0
    energy: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _not_zero(self) -> Self:
        if self.relative_l2 + self.energy == 0:
            raise ValueError("at least one of relative_l2 and energy must be positive")
        return self


class UnrollStage(Section):
    """From ``step`` on, a rollout of ``blocks`` calls of the operator."""

    step: NonNegativeInt
    blocks: PositiveInt


class SequenceSection(Section):
    """How an evolution operator learns from trajectories: the loss is the mean over frames, see its task."""

    curriculum: tuple[UnrollStage, ...] = (UnrollStage(step=0, blocks=1),)
    # ``block``: each block of frames learns from its own errors; ``rollout``: from those of later ones too
    gradient: Literal["block", "rollout"] = "block"
    # how many frames of a block a step compares, the last one among them; all of them by default
    frames_per_block: PositiveInt | None = None
    # the earliest last given frame, and the share of the rollouts that continue it
    first_frame: NonNegativeInt = 0
    initial_share: Fraction = 0.1
    # white noise on the given frames, relative to their perturbation
    noise: NonNegativeFloat = 0.0
    # compute a block's activations anew on the way back
    checkpoint_blocks: bool = False
    # standardise the channels by the moments of the training data
    normalize: bool = False

    @model_validator(mode="after")
    def _growing(self) -> Self:
        steps = [stage.step for stage in self.curriculum]
        if not steps or steps[0] != 0 or any(a >= b for a, b in pairwise(steps)):
            raise ValueError(f"the steps of the curriculum must rise from 0, got {steps}")
        return self

    def blocks_at(self, step: int) -> int:
        """Calls of the operator in a rollout at ``step``."""
        return next(stage.blocks for stage in reversed(self.curriculum) if stage.step <= step)

    @property
    def most_blocks(self) -> int:
        """Calls in the longest rollout."""
        return max(stage.blocks for stage in self.curriculum)


class AugmentationSection(Section):
    """Exact symmetries applied to training samples."""

    d4: bool = True


class CheckpointSection(Section):
    """When the state is saved, besides at the end and on SIGTERM or SIGINT."""

    minutes: PositiveFloat = 5.0
    steps: PositiveInt | None = None


class LogSection(Section):
    """Steps between two lines of the log, and between two validations."""

    every: PositiveInt = 50
    validate_every: PositiveInt = 500


class EvaluationSection(Section):
    """How the test splits are evaluated."""

    batch_size: PositiveInt = 16
    pictures: PositiveInt = 3


class PublishSection(Section):
    """The model that the run becomes a version of."""

    model: Name
    description: str = ""
    alias: Name | None = None
    store: str | None = None
    # what a service does with inputs outside of the bounds of the training data; see ``Card``
    hard_range: Literal["flag", "refuse"] = "flag"


# family name -> metric, as in the evaluation -> largest acceptable value
Limits = dict[str, dict[str, float]]


class Run(Section):
    """A whole training run."""

    run: RunSection
    data: DataSection
    operator: OperatorConfig
    optimizer: OptimizerSection
    loss: LossSection = LossSection()
    sequence: SequenceSection | None = None
    augmentation: AugmentationSection = AugmentationSection()
    checkpoint: CheckpointSection = CheckpointSection()
    log: LogSection = LogSection()
    evaluation: EvaluationSection = EvaluationSection()
    acceptance: Limits = {}
    publish: PublishSection | None = None

    @model_validator(mode="after")
    def _limits_name_test_families(self) -> Self:
        tested = {family.name for family in self.data.families if family.test}
        if unknown := sorted(set(self.acceptance) - tested):
            raise ValueError(f"acceptance names {unknown}, but only {sorted(tested)} have test samples")
        named = {name for limits in self.acceptance.values() for name in limits}
        evolution = EVOLUTION_PROBLEMS.get(self.data.problem)
        known = SUMMARY_NAMES if evolution is None else summary_names(evolution)
        if unknown := sorted(named - set(known)):
            raise ValueError(f"acceptance names {unknown}, expected names like {known[0]}")
        return self

    @model_validator(mode="after")
    def _operator_fits_problem(self) -> Self:
        evolution = self.data.problem in EVOLUTION_PROBLEMS
        if evolves(self.operator) != evolution:
            kind = "an evolution" if evolution else "a steady"
            raise ValueError(f"operator.kind {self.operator.kind}: {self.data.problem} is {kind} problem")
        if evolution and self.sequence is None:
            raise ValueError("an evolution problem needs a [sequence] section")
        if not evolution and self.sequence is not None:
            raise ValueError(f"{self.data.problem} is steady: leave [sequence] out")
        if evolution and "loss" in self.model_fields_set:
            raise ValueError("[loss] is for steady problems; an evolution problem has one loss: leave it out")
        return self

    @model_validator(mode="after")
    def _operator_agrees_with_data(self) -> Self:
        for name, data in self._facts_of_the_data().items():
            chosen = getattr(self.operator, name, data)
            if chosen != data:
                raise ValueError(f"operator.{name} is {chosen}, but the data's is {data}")
        return self

    def _facts_of_the_data(self) -> dict[str, str | float | int]:
        """What an operator may have built in."""
        problem = EVOLUTION_PROBLEMS.get(self.data.problem)
        if problem is None:
            return {"scheme": self.data.scheme}
        return {
            "scheme": self.data.scheme,
            "walls": self.data.walls or problem.walls[0],
            "frame_interval": problem.frame_interval,
            "fields": len(problem.inputs),
        }

    @model_validator(mode="after")
    def _rollouts_fit_into_the_data(self) -> Self:
        if self.sequence is None:
            return self
        history, block = getattr(self.operator, "history", 1), getattr(self.operator, "frames", 1)
        last = self.data.frames or EVOLUTION_PROBLEMS[self.data.problem].frame_count
        needed = self.sequence.first_frame + self.sequence.most_blocks * block
        if needed > last:
            raise ValueError(
                f"sequence.curriculum: {self.sequence.most_blocks} blocks of {block} frames after frame "
                f"{self.sequence.first_frame} end at frame {needed}, but data.frames is {last}"
            )
        if self.sequence.first_frame < history - 1:
            raise ValueError(
                f"sequence.first_frame: with a history of {history} frames the last given one is at least "
                f"{history - 1}, got {self.sequence.first_frame}"
            )
        if self.sequence.normalize and holds_equations(self.operator):
            raise ValueError(f"operator.kind {self.operator.kind} takes physical units: leave normalize out")
        return self

    @property
    def checkpoint_path(self) -> Path:
        """The file that training saves to and resumes from."""
        return self.run.directory / "checkpoint.safetensors"

    def training_recipe(self) -> str:
        """What determines the weights, as JSON: a resumed run must agree with its checkpoint in it."""
        included = {"data", "operator", "optimizer", "loss", "sequence", "augmentation"}
        families = {"__all__": {"calibration"}}
        excluded: dict[str, Any] = {"data": {"directory": True, "workers": True, "families": families}}
        # what a problem does not have must not tell its checkpoints from older ones
        sections = self.model_dump(mode="json", include=included, exclude=excluded, exclude_none=True)
        return json.dumps({"seed": self.run.seed, **sections}, sort_keys=True)


def parse_run(text: str) -> Run:
    """The run that a TOML text describes.

    Raises:
        InvalidRun: not TOML, an unknown key, or a value that is out of bounds.
    """
    try:
        return Run.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise InvalidRun(f"expected TOML: {error}") from error
    except ValidationError as error:
        raise InvalidRun(one_line(error)) from error


def one_line(error: ValidationError) -> str:
    """What is wrong with a file, place by place."""
    return "; ".join(f"{'.'.join(map(str, item['loc'])) or 'run'}: {item['msg']}" for item in error.errors())
