"""One architecture, exchangeable parts: a trunk that lifts and mixes, and a head that reads off.

``v_0 = lift(a, x)``, ``v_(l+1) = layer_l(v_l)``, ``u = head(v_L)`` (Kovachki et al. 2023, arXiv 2108.08481,
equation 5). Which mixers, norms and heads make the operators of the literature is said in
``operators.presets``.
"""

from collections.abc import Sequence
from typing import Literal, final

from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from operators.evolution import EvolutionOperator
from operators.heads import HeadConfig, head_from_config
from operators.mixers import CannotMix
from operators.operator import Operator, UnsupportedGrid
from operators.patch_frames import frame_numbers
from operators.points import grid_points
from operators.trunks import TrunkConfig, trunk_from_config


@final
class SteadyNeuralOperatorConfig(BaseModel):
    """Options of ``SteadyNeuralOperator``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["steady_neural_operator"] = "steady_neural_operator"
    trunk: TrunkConfig
    head: HeadConfig


@final
class SteadyNeuralOperator(Operator):
    """Coefficient to solution, token by token."""

    feature_layer = "trunk"

    def __init__(self, config: SteadyNeuralOperatorConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = trunk_from_config(config.trunk, values=1)
        self.head = head_from_config(config.head, config.trunk.channels, frames=1, fields=1)

    def forward(
        self, coefficient: Float[Tensor, "batch 1 y x"], spacing: tuple[float, float]
    ) -> Float[Tensor, "batch 1 y x"]:
        """See ``Operator.forward``."""
        ny, nx = coefficient.shape[-2:]
        points = grid_points((ny, nx), spacing, coefficient)
        try:
            read = self.head(self.trunk(coefficient.flatten(2).mT, points), points)
        except CannotMix as error:
            raise UnsupportedGrid(str(error)) from error
        solution: Tensor = read.squeeze(2).mT.unflatten(-1, (ny, nx))
        return solution


@final
class EvolutionNeuralOperatorConfig(BaseModel):
    """Options of ``EvolutionNeuralOperator``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["evolution_neural_operator"] = "evolution_neural_operator"
    # channels of a frame
    fields: int = Field(gt=0)
    # the boundary conditions that it learns; a run compares them with its data's
    walls: str
    history: int = Field(default=1, gt=0)
    frames: int = Field(gt=0)
    # ``frames``: what the head reads are the frames; ``increments``: what they differ by from the last known
    # one
    predicts: Literal["frames", "increments"] = "frames"
    trunk: TrunkConfig
    head: HeadConfig


@final
class EvolutionNeuralOperator(EvolutionOperator):
    """The last known frames to the next ones; all that is known at a point is the value of its token."""

    feature_layer = "trunk"

    def __init__(self, config: EvolutionNeuralOperatorConfig) -> None:
        super().__init__()
        self.config = config
        self.history, self.frames, self.fields = config.history, config.frames, config.fields
        self.trunk = trunk_from_config(config.trunk, values=config.history * config.fields)
        self.head = head_from_config(config.head, config.trunk.channels, config.frames, config.fields)

    def forward(
        self,
        history: Float[Tensor, "batch time field y x"],
        extent: tuple[float, float],
        chosen: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch frame field y x"]:
        """See ``EvolutionOperator.forward``; all frames are computed, whichever are chosen."""
        ny, nx = history.shape[-2:]
        points = grid_points((ny, nx), (extent[0] / ny, extent[1] / nx), history)
        known = history[:, -self.history :].flatten(1, 2).flatten(2).mT
        try:
            read = self.head(self.trunk(known, points), points)
        except CannotMix as error:
            raise UnsupportedGrid(str(error)) from error
        wanted = list(frame_numbers(self.frames, chosen))
        frames: Tensor = read[:, :, wanted].movedim(1, -1).unflatten(-1, (ny, nx))
        return frames if self.config.predicts == "frames" else history[:, -1:] + frames
