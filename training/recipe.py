"""The recipe of a data file: all that its content depends on, and how a sample is made from it."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from problems import Fields, Grid, Problem
from training.dataset import Attributes


class Recipe(BaseModel, ABC):
    """What every recipe has: a problem, a family of it, a seed and a grid.

    Attributes:
        suffix: of the file's name.
        samples_per_shard: what an interruption loses per process, at most.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    suffix: ClassVar[str]
    samples_per_shard: ClassVar[int]

    problem: str
    family: str
    # a number, or the bounds of a log-uniform draw
    parameters: Mapping[str, float | tuple[float, float]]
    seed: int
    count: int
    grid: tuple[int, int]
    extent: tuple[float, float]
    scheme: str

    @property
    def sha256(self) -> str:
        """Hash of the recipe's canonical JSON."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def canonical(self) -> str:
        """The recipe as JSON with sorted keys."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True)

    @property
    def per_sample(self) -> str:
        """What the cost of a sample depends on: the recipe but for its seed and count."""
        return self.model_copy(update={"seed": 0, "count": 0}).canonical()

    @property
    def sample_bytes(self) -> int:
        """Size of a sample in float32."""
        return 4 * int(np.prod(self.sample_shape))

    def attributes(self) -> Attributes:
        """What the file says about where it comes from."""
        return {
            "problem": self.problem,
            "scheme": self.scheme,
            "family": self.family,
            "parameters": json.dumps(self.parameters, sort_keys=True),
            "seed": self.seed,
            "first_index": 0,
            "recipe": self.canonical(),
            "recipe_sha256": self.sha256,
        }

    def draw(self, problem: Problem, index: int, grid: Grid) -> Fields:
        """The family's fields for one sample."""
        parameters = resolve_parameters(self.parameters, self.seed, index)
        return problem.sample(self.family, parameters, self.seed, index, grid)

    @property
    @abstractmethod
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of a sample."""

    @abstractmethod
    def make_input(self, index: int) -> NDArray[np.float32]:
        """What a sample starts from, as the file holds it [channel y x]; costs no solve."""

    @abstractmethod
    def make(self, index: int) -> NDArray[np.float32]:
        """One sample; depends on the recipe, without its count, and the index alone."""

    @abstractmethod
    def write(self, path: Path, samples: Iterable[NDArray[np.float32]]) -> None:
        """Write all samples, in order, to a new file."""

    @abstractmethod
    def measure_cost(self) -> float:
        """Time that a sample takes [s], measured on one of them or on a part of it."""


def resolve_parameters(
    parameters: Mapping[str, float | tuple[float, float]], seed: int, index: int
) -> dict[str, float]:
    """The parameters of one sample: numbers as they are, ranges drawn log-uniformly."""
    # a stream of its own: the problem draws the field from (seed, index)
    random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index, 1)))
    return {name: _draw(parameters[name], random) for name in sorted(parameters)}


def _draw(value: float | tuple[float, float], random: np.random.Generator) -> float:
    if not isinstance(value, tuple):
        return value
    low, high = value
    return float(low * (high / low) ** random.random())
