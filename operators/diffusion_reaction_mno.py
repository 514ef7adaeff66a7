"""A Mamba Neural Operator for diffusion-reaction: what a split step on the served grid misses of a fine one.

One call advances (u, v) by a block of frames. A Strang-split step (``operators.diffusion_reaction_scheme``)
predicts the frames; the network sees state and prediction and adds, for each frame, what the splitting and
the cells have lost:

``q_f = predicted_f + size * network``

with ``size`` a constant of 1 % of the fields' usual size, so that an untrained network does little harm.

Sources: as ``operators.shallow_water_mno``; FitzHugh 1961 and Nagumo et al. 1962 for the equations.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from operators import diffusion_reaction_scheme
from operators.axial_trunk import AxialTrunk
from operators.evolution import EvolutionOperator
from operators.frame_correction import FrameCorrection
from operators.precision import without_autocast
from operators.scan_plan import PlanName

CHANNELS = 2
SIZE = 1e-2


class DiffusionReactionMnoConfig(BaseModel):
    """Options of ``DiffusionReactionMno``; the defaults are the built-in model's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["diffusion_reaction_mno"] = "diffusion_reaction_mno"
    channels: int = Field(default=32, gt=0)
    inner_channels: int = Field(default=32, gt=0)
    states: int = Field(default=4, gt=0)
    rank: int = Field(default=4, gt=0)
    blocks: int = Field(default=2, gt=0)
    expansion: float = Field(default=2.0, gt=0)
    plan: PlanName = "axial"
    # channels that the trunk hands to the correction, on every 2 x 2 cells
    context: int = Field(default=8, gt=0)
    hidden: int = Field(default=24, gt=0)
    frames: int = Field(default=10, gt=0)
    frame_interval: float = Field(default=0.05, gt=0)
    walls: Literal["zero_flux"] = "zero_flux"
    # spacing of the patches at which ``delta`` is taken as it is [m]
    reference_spacing: float = Field(default=0.0625, gt=0)


class DiffusionReactionMno(EvolutionOperator):
    """Split-step prediction of a block of frames, corrected by S6 tokens and a local network."""

    feature_layer = "trunk"
    holds_equations = True
    history = 1
    fields = CHANNELS

    def __init__(self, config: DiffusionReactionMnoConfig) -> None:
        super().__init__()
        self.config = config
        self.frames = config.frames
        self.trunk = AxialTrunk(2 * CHANNELS + 1, config)
        self.project_context = nn.Linear(config.channels, 4 * config.context)
        self.correction = FrameCorrection(
            4 * CHANNELS, config.context, config.hidden, 4 * CHANNELS, config.frames
        )

    def forward(
        self,
        history: Float[Tensor, "batch 1 2 y x"],
        extent: tuple[float, float],
        chosen: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch frame 2 y x"]:
        """See ``EvolutionOperator.forward``; channels are u and v."""
        state = history[:, -1]
        spacing = extent[0] / state.shape[-2], extent[1] / state.shape[-1]
        # the prediction is 0.2 % off: it needs float32 whatever precision the network runs in
        with without_autocast(state.device.type):
            predicted = self.predict(state, extent)
        # the constant is padded by zeros, which tells the walls
        features = torch.cat([state, predicted[:, -1] - state, torch.ones_like(state[:, :1])], dim=1)
        tokens = self.trunk(features, spacing)
        context = functional.pixel_shuffle(self.project_context(tokens).permute(0, 3, 1, 2), 2)
        frames = list(range(self.frames) if chosen is None else chosen)
        predicted = predicted[:, frames] if chosen is not None else predicted
        correction = self.correction(functional.pixel_unshuffle(predicted, 2), context, frames)
        return predicted + SIZE * functional.pixel_shuffle(correction.to(predicted.dtype), 2)

    def predict(
        self, state: Float[Tensor, "batch 2 y x"], extent: tuple[float, float]
    ) -> Float[Tensor, "batch frame 2 y x"]:
        """The split step's frames, without the network."""
        return diffusion_reaction_scheme.frames(state, self.frames, self.config.frame_interval, extent)
