"""Neural operators: tensors in, tensors out; no files, no network.

To add an architecture, write ``operators/<name>.py`` and add a row to ``OperatorConfig`` and to
``_STEADY`` or ``_EVOLUTION``.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import Field

from operators.autoregressive import Autoregressive, AutoregressiveConfig
from operators.axial_mno import AxialMno, AxialMnoConfig
from operators.diffusion_reaction_mno import DiffusionReactionMno, DiffusionReactionMnoConfig
from operators.evolution import EvolutionOperator, EvolutionSurrogate
from operators.latent_march import LatentMarch, LatentMarchConfig
from operators.neural_operator import (
    EvolutionNeuralOperator,
    EvolutionNeuralOperatorConfig,
    SteadyNeuralOperator,
    SteadyNeuralOperatorConfig,
)
from operators.one_shot import OneShot, OneShotConfig
from operators.operator import Operator, UnsupportedGrid
from operators.shallow_water_mno import ShallowWaterMno, ShallowWaterMnoConfig
from operators.surrogate import Surrogate

# the configurations a run file or a card may hold
OperatorConfig = Annotated[
    AxialMnoConfig
    | ShallowWaterMnoConfig
    | DiffusionReactionMnoConfig
    | OneShotConfig
    | LatentMarchConfig
    | AutoregressiveConfig
    | SteadyNeuralOperatorConfig
    | EvolutionNeuralOperatorConfig,
    Field(discriminator="kind"),
]
AnySurrogate = Surrogate | EvolutionSurrogate

_STEADY: Mapping[str, Callable[[Any], Operator]] = {
    "axial_mno": AxialMno,
    "steady_neural_operator": SteadyNeuralOperator,
}
_EVOLUTION: Mapping[str, type[EvolutionOperator]] = {
    "shallow_water_mno": ShallowWaterMno,
    "diffusion_reaction_mno": DiffusionReactionMno,
    "one_shot": OneShot,
    "latent_march": LatentMarch,
    "autoregressive": Autoregressive,
    "evolution_neural_operator": EvolutionNeuralOperator,
}


def evolves(config: OperatorConfig) -> bool:
    """Whether it is the configuration of an evolution operator."""
    return config.kind in _EVOLUTION


def holds_equations(config: OperatorConfig) -> bool:
    """Whether the operator computes with physical units, so that nothing may be standardised around it."""
    return evolves(config) and _EVOLUTION[config.kind].holds_equations


def surrogate_from_config(config: OperatorConfig) -> AnySurrogate:
    """A surrogate around a freshly initialised operator."""
    if config.kind in _STEADY:
        return Surrogate(_STEADY[config.kind](config))
    operator = _EVOLUTION[config.kind](config)
    return EvolutionSurrogate(operator, operator.fields)


__all__ = [
    "AnySurrogate",
    "EvolutionOperator",
    "EvolutionSurrogate",
    "Operator",
    "OperatorConfig",
    "Surrogate",
    "UnsupportedGrid",
    "evolves",
    "holds_equations",
    "surrogate_from_config",
]
