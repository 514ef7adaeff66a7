"""What every problem has: names, fields, samplers; steady and evolution problems add their solvers."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from problems.family import Family
from problems.fields import Fields, FieldSpec
from problems.grid import Grid


class Problem(ABC):
    """A partial differential equation.

    Attributes:
        name: key in ``PROBLEMS``.
        title: name for people.
        equation: the equation, in plain text.
        boundary_conditions: the same for its walls.
        inputs: fields that vary in space; of an evolution problem its initial state.
        parameters: uniform numbers.
        outputs: fields of the solution; of an evolution problem its state, as in ``inputs``.
        schemes: ids of the discrete operators, the default one first.
        families: samplers of the inputs by name.
    """

    name: str
    title: str
    equation: str
    boundary_conditions: str
    inputs: tuple[FieldSpec, ...]
    parameters: tuple[FieldSpec, ...]
    outputs: tuple[FieldSpec, ...]
    schemes: tuple[str, ...]
    families: Mapping[str, Family[Any]]

    @abstractmethod
    def sample(
        self, family: str, parameters: Mapping[str, float], seed: int, index: int, grid: Grid
    ) -> Fields:
        """Inputs and parameters number ``index`` of a family; depends on nothing but the arguments."""
