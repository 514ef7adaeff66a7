"""The partial differential equations: fields, grids, reference solvers, residuals and error bounds.

To add one, write ``problems/<pde>.py`` and add a row to ``STEADY_PROBLEMS`` or ``EVOLUTION_PROBLEMS``.
"""

from collections.abc import Mapping
from types import MappingProxyType

from problems.coarsen import coarsen
from problems.darcy import Darcy
from problems.diffusion_reaction import DiffusionReaction
from problems.evolution import EvolutionProblem
from problems.fields import Fields, FieldSpec, InvalidField
from problems.grid import Grid
from problems.problem import Problem
from problems.quantity import CertifiedQuantity, Mean, Outflow, Quantity, Reading
from problems.sensitivity import Gradients, Tangents
from problems.shallow_water import ShallowWater
from problems.steady import (
    Abandoned,
    CannotSolve,
    ErrorBound,
    GoOn,
    NotCertifiable,
    Refined,
    Solution,
    SteadyProblem,
)
from problems.variation import Variation, variation

STEADY_PROBLEMS: Mapping[str, SteadyProblem] = MappingProxyType({"darcy": Darcy()})
EVOLUTION_PROBLEMS: Mapping[str, EvolutionProblem] = MappingProxyType(
    {"diffusion_reaction": DiffusionReaction(), "shallow_water": ShallowWater()}
)
PROBLEMS: Mapping[str, Problem] = MappingProxyType({**STEADY_PROBLEMS, **EVOLUTION_PROBLEMS})

__all__ = [
    "EVOLUTION_PROBLEMS",
    "PROBLEMS",
    "STEADY_PROBLEMS",
    "Abandoned",
    "CannotSolve",
    "CertifiedQuantity",
    "ErrorBound",
    "EvolutionProblem",
    "FieldSpec",
    "Fields",
    "GoOn",
    "Gradients",
    "Grid",
    "InvalidField",
    "Mean",
    "NotCertifiable",
    "Outflow",
    "Problem",
    "Quantity",
    "Reading",
    "Refined",
    "Solution",
    "SteadyProblem",
    "Tangents",
    "Variation",
    "coarsen",
    "variation",
]
