"""Neural operators: tensors in, tensors out; no files, no network.

To add an architecture, write ``operators/<name>.py`` and add a row to ``OperatorConfig`` and ``_OPERATORS``.
"""

from collections.abc import Callable, Mapping
from typing import Any

from operators.axial_mno import AxialMno, AxialMnoConfig
from operators.operator import Operator, UnsupportedGrid
from operators.surrogate import Surrogate

# the configurations a run file or a card may hold; a union over ``kind`` once there are several
OperatorConfig = AxialMnoConfig

_OPERATORS: Mapping[str, Callable[[Any], Operator]] = {"axial_mno": AxialMno}


def build_operator(config: OperatorConfig) -> Operator:
    """The operator that ``config`` describes, freshly initialised."""
    return _OPERATORS[config.kind](config)


def surrogate_from_config(config: OperatorConfig) -> Surrogate:
    """A surrogate around a freshly initialised operator."""
    return Surrogate(build_operator(config))


__all__ = [
    "Operator",
    "OperatorConfig",
    "Surrogate",
    "UnsupportedGrid",
    "build_operator",
    "surrogate_from_config",
]
