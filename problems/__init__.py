"""The partial differential equations: fields, grids, reference solvers, residuals and error bounds.

To add one, write ``problems/<pde>.py`` and add a row to ``PROBLEMS``.
"""

from collections.abc import Mapping
from types import MappingProxyType

from problems.darcy import Darcy
from problems.fields import Fields, FieldSpec, InvalidField
from problems.grid import Grid
from problems.problem import CannotSolve, ErrorBound, Problem, Solution
from problems.variation import Variation, variation

PROBLEMS: Mapping[str, Problem] = MappingProxyType({"darcy": Darcy()})

__all__ = [
    "PROBLEMS",
    "CannotSolve",
    "ErrorBound",
    "FieldSpec",
    "Fields",
    "Grid",
    "InvalidField",
    "Problem",
    "Solution",
    "Variation",
    "variation",
]
