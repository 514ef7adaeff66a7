"""A Mamba Neural Operator for shallow water: what a coarse scheme misses of a fine one, in flux form.

One call advances a state by a block of frames. A classical step on the served grid
(``operators.shallow_water_scheme``) predicts the frames; it knows the equations and the walls, and it smears
every front over several cells. The network sees the state and the prediction and returns, for each frame, the
mass and momentum that have crossed each cell face too much or too little:

``q_f = predicted_f - div(correction_f)``, ``correction_f = activity_f * network``

* The correction is a difference of face fluxes and vanishes on the walls, so it moves mass and never makes
  any; a limiter scales the mass leaving a cell so that no depth becomes negative (Zalesak 1979).
* ``activity`` is the local variation of the prediction: still water stays still, whatever was learnt.
* Labels from a finer grid teach the network what the coarse scheme cannot resolve.

Sources: Cheng et al. 2024 (arXiv 2410.02113) for S6 as an operator's kernel; Kochkov et al. 2021 (PNAS 118)
and Um et al. 2020 (arXiv 2007.00016) for learnt corrections inside a coarse solver.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from operators import shallow_water_scheme
from operators.axial_trunk import AxialTrunk
from operators.evolution import EvolutionOperator
from operators.forward_mode import has_tangent
from operators.frame_correction import FrameCorrection
from operators.precision import without_autocast
from operators.scan_plan import PlanName
from operators.shallow_water_scheme import Walls

REST_DEPTH = 1.0
# the corrected depth stays above this [m]
LEAST_DEPTH = 1e-3
CHANNELS = 3


class ShallowWaterMnoConfig(BaseModel):
    """Options of ``ShallowWaterMno``; the defaults are the built-in model's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["shallow_water_mno"] = "shallow_water_mno"
    channels: int = Field(default=48, gt=0)
    inner_channels: int = Field(default=48, gt=0)
    states: int = Field(default=4, gt=0)
    rank: int = Field(default=4, gt=0)
    blocks: int = Field(default=2, gt=0)
    expansion: float = Field(default=2.0, gt=0)
    plan: PlanName = "axial"
    # channels that the trunk hands to the correction, on every 2 x 2 cells
    context: int = Field(default=16, gt=0)
    hidden: int = Field(default=32, gt=0)
    frames: int = Field(default=10, gt=0)
    frame_interval: float = Field(default=0.01, gt=0)
    walls: Walls = "outflow"
    scheme: Literal["hllc-muscl-v1"] = "hllc-muscl-v1"
    # spacing of the patches at which ``delta`` is taken as it is [m]
    reference_spacing: float = Field(default=0.15625, gt=0)


class ShallowWaterMno(EvolutionOperator):
    """Coarse prediction of a block of frames, corrected by S6 tokens and a local network."""

    feature_layer = "trunk"
    holds_equations = True
    history = 1
    fields = CHANNELS

    def __init__(self, config: ShallowWaterMnoConfig) -> None:
        super().__init__()
        self.config = config
        self.frames = config.frames
        self.trunk = AxialTrunk(2 * CHANNELS + 1, config)
        self.project_context = nn.Linear(config.channels, 4 * config.context)
        # of every frame the cells and the jumps; for every cell three fluxes along y and three along x
        self.correction = FrameCorrection(
            4 * CHANNELS + 1, config.context, config.hidden, 8 * CHANNELS, config.frames
        )

    def forward(
        self,
        history: Float[Tensor, "batch 1 3 y x"],
        extent: tuple[float, float],
        chosen: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch frame 3 y x"]:
        """See ``EvolutionOperator.forward``; channels are h [m], hu and hv [m^2/s]."""
        state = history[:, -1]
        spacing = extent[0] / state.shape[-2], extent[1] / state.shape[-1]
        # the scheme needs float32 whatever precision the network's matrix products run in
        with without_autocast(state.device.type):
            predicted = self.predict(state, spacing)
        tokens = self.trunk(_features(state, predicted[:, -1]), spacing)
        context = functional.pixel_shuffle(self.project_context(tokens).permute(0, 3, 1, 2), 2)
        frames = list(range(self.frames) if chosen is None else chosen)
        predicted = predicted[:, frames] if chosen is not None else predicted
        flux_y, flux_x = self._fluxes(predicted, context, frames)
        return predicted - _divergence(*_limited(predicted[:, :, 0], flux_y, flux_x))

    def _fluxes(
        self, predicted: Tensor, context: Tensor, frames: Sequence[int]
    ) -> tuple[Float[Tensor, "batch frame 3 y1 x"], Float[Tensor, "batch frame 3 y x1"]]:
        """Corrections of the time-integrated fluxes over cell size, through inner faces only [m], [m^2/s]."""
        perturbation = predicted - _rest(predicted)
        jumps = activity(perturbation.flatten(0, 1)).reshape(*predicted.shape[:2], 1, *context.shape[-2:])
        features = torch.cat([functional.pixel_unshuffle(perturbation, 2), jumps], dim=2)
        fluxes = jumps * self.correction(features, context, frames).to(predicted.dtype)
        faces = functional.pixel_shuffle(fluxes, 2)
        return faces[:, :, :CHANNELS, :-1], faces[:, :, CHANNELS:, :, :-1]

    def predict(
        self, state: Float[Tensor, "batch 3 y x"], spacing: tuple[float, float]
    ) -> Float[Tensor, "batch frame 3 y x"]:
        """The coarse scheme's frames, without the network."""
        interval, (hy, hx) = self.config.frame_interval, spacing
        ratios = interval / hy, interval / hx
        compiled = state.device.type == "cpu" and state.dtype == torch.float32
        differentiated = (torch.is_grad_enabled() and state.requires_grad) or has_tangent(state)
        if compiled and not differentiated:
            # numba is loaded only where it computes
            from operators import shallow_water_kernel

            marched = shallow_water_kernel.frames(
                state.detach().numpy(), self.frames, ratios, self.config.walls
            )
            return torch.from_numpy(marched)
        return shallow_water_scheme.frames(state, self.frames, ratios, self.config.walls)


def _rest(like: Tensor) -> Tensor:
    rest = like.new_zeros(CHANNELS, 1, 1)
    rest[0] = REST_DEPTH
    return rest


def _features(state: Tensor, predicted: Tensor) -> Tensor:
    # the constant is padded by zeros, which tells the walls
    return torch.cat([state - _rest(state), predicted - state, torch.ones_like(state[:, :1])], dim=1)


def activity(states: Float[Tensor, "batch 3 y x"]) -> Float[Tensor, "batch 1 y2 x2"]:
    """Largest jump of depth and momentum within a few cells, on blocks of 2 x 2 cells: 0 in still water."""
    jump_y = functional.pad(states.diff(dim=-2).abs().sum(1, keepdim=True), (0, 0, 0, 1))
    jump_x = functional.pad(states.diff(dim=-1).abs().sum(1, keepdim=True), (0, 1))
    return functional.max_pool2d(functional.max_pool2d(jump_y + jump_x, 2), 3, stride=1, padding=1)


def _limited(depth: Tensor, flux_y: Tensor, flux_x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale the fluxes of mass and momentum so that no cell gives away more water than it has."""
    mass_y, mass_x = flux_y[:, :, 0], flux_x[:, :, 0]
    leaving = (
        functional.pad(mass_y.clamp_min(0.0), (0, 0, 0, 1))
        + functional.pad((-mass_y).clamp_min(0.0), (0, 0, 1, 0))
        + functional.pad(mass_x.clamp_min(0.0), (0, 1))
        + functional.pad((-mass_x).clamp_min(0.0), (1, 0))
    )
    share = ((depth - LEAST_DEPTH).clamp_min(0.0) / leaving.clamp_min(1e-12)).clamp_max(1.0)
    share_y = torch.where(mass_y > 0, share[:, :, :-1], share[:, :, 1:])
    share_x = torch.where(mass_x > 0, share[..., :-1], share[..., 1:])
    return flux_y * share_y[:, :, None], flux_x * share_x[:, :, None]


def _divergence(flux_y: Tensor, flux_x: Tensor) -> Tensor:
    """What leaves a cell minus what enters it; nothing passes the walls."""
    return functional.pad(flux_y, (0, 0, 1, 1)).diff(dim=-2) + functional.pad(flux_x, (1, 1)).diff(dim=-1)
