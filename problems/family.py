"""A family of samples: named, with parameters, drawn by seed and index."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from problems.fields import FieldSpec, validate_fields
from problems.grid import Grid

Drawn = TypeVar("Drawn", covariant=True)


def keyed_generator(seed: int, index: int, name: str) -> np.random.Generator:
    """A stream of its own for every sample of every family."""
    return np.random.default_rng([seed, index, zlib.crc32(name.encode())])


@dataclass(frozen=True)
class Family(Generic[Drawn]):
    """A named sampler: a sample depends only on (name, parameters, seed, index, grid).

    Attributes:
        name: key in the table of the problem's families.
        description: one sentence.
        parameters: the numbers that it takes, all of them required.
        draw: makes a sample from a random generator, parameters and a grid.
        generator: makes the random generator from seed, index and name.
    """

    name: str
    description: str
    parameters: tuple[FieldSpec, ...]
    draw: Callable[[np.random.Generator, Mapping[str, float], Grid], Drawn]
    generator: Callable[[int, int, str], np.random.Generator] = keyed_generator

    def sample(self, parameters: Mapping[str, float], seed: int, index: int, grid: Grid) -> Drawn:
        """Sample number ``index``."""
        validate_fields(self.parameters, parameters)
        if seed < 0 or index < 0:
            raise ValueError(f"seed and index must be at least 0, got seed {seed} and index {index}")
        return self.draw(self.generator(seed, index, self.name), parameters, grid)
