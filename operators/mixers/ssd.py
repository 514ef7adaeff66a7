"""State-space duality: a selective scan with one decay for each head, computed as products of matrices.

Per head and direction of a scan plan, with a value ``x_t`` of P channels and a state of P x N numbers::

    h[t] = a[t] h[t-1] + delta[t] x[t] B[t]^T      a[t] = exp(delta[t] A), A < 0 a number of the head
    y[t] = h[t] C[t] + D x[t]

so that ``y = M x`` with ``M[t, s] = (C[t] . B[s]) a[s+1] ... a[t] delta[s]``: within a chunk that is a masked
product as in attention, between chunks the states are carried on (Dao and Gu 2024, arXiv 2405.21060, section
6). It needs no kernel of its own on any device, and is another model than S6, whose decays differ by channel
and state.
"""

import math
from typing import Final, Literal, final

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from operators.mixers.mixer import CannotMix, Mixer
from operators.points import Points
from operators.scan import Direction
from operators.scan.path import path
from operators.scan_plan import PLANS, PlanName

# tokens of a chunk: products within a chunk against states carried between them
CHUNK: Final = 64
DELTA_RANGE: Final = (1e-3, 1e-1)


@final
class SsdConfig(BaseModel):
    """Options of ``Ssd``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["ssd"] = "ssd"
    states: int = Field(default=16, gt=0)
    # channels of a head, which share a decay
    head_size: int = Field(default=16, gt=0)
    # width of the scanned sequence over that of the tokens
    ratio: float = Field(default=2.0, gt=0)
    plan: PlanName = "bi_raster"


@final
class Ssd(Mixer):
    """Mixes tokens by scans with a decay for each head, along the directions of a plan."""

    def __init__(self, config: SsdConfig, channels: int, *, cross: bool = False) -> None:
        super().__init__()
        inner = int(config.ratio * channels)
        if cross:
            raise CannotMix("the scan with a decay a head reads no context: expected S6 or attention")
        if inner % config.head_size:
            raise CannotMix(f"expected a width of heads of {config.head_size} channels, got {inner}")
        self.config = config
        self.directions, self.heads = PLANS[config.plan], inner // config.head_size
        count, selected = len(self.directions), self.heads + 2 * config.states
        self.project_in = nn.Linear(channels, 2 * inner, bias=False)
        self.select = nn.Linear(inner, count * selected, bias=False)
        self.delta_bias = nn.Parameter(torch.empty(count, self.heads))
        self.log_A = nn.Parameter(torch.empty(count, self.heads))
        self.D = nn.Parameter(torch.ones(count, self.heads))
        self.norm = nn.LayerNorm(inner)
        self.project_out = nn.Linear(inner, channels, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as Mamba-2 does: ``A`` uniform in -16..-1, ``delta`` log-uniform in ``DELTA_RANGE``."""
        low, high = (math.log(value) for value in DELTA_RANGE)
        delta = torch.empty_like(self.delta_bias).uniform_(low, high).exp()
        # the inverse of softplus
        self.delta_bias.copy_(delta + torch.log(-torch.expm1(-delta)))
        self.log_A.copy_(torch.empty_like(self.log_A).uniform_(1, 16).log())

    def forward(
        self,
        tokens: Float[Tensor, "batch token channel"],
        points: Points,
        context: Float[Tensor, "batch context_token channel"] | None = None,
        context_points: Points | None = None,  # noqa: ARG002
    ) -> Float[Tensor, "batch token channel"]:
        """See ``Mixer.forward``."""
        if context is not None:
            raise CannotMix("the scan with a decay a head reads no context: expected none")
        u, gate = functional.silu(self.project_in(tokens)).chunk(2, dim=-1)
        values = u.reshape(*u.shape[:2], self.heads, self.config.head_size)
        selection = self.select(u).chunk(len(self.directions), dim=-1)
        mixed = torch.zeros_like(values)
        for k, direction in enumerate(self.directions):
            delta, B, C = torch.split(
                selection[k], [self.heads, self.config.states, self.config.states], dim=-1
            )
            delta = functional.softplus(delta + self.delta_bias[k])
            decay = -delta * self.log_A[k].exp()
            scanned = _along(direction, points, delta[..., None] * values, decay, B, C)
            mixed = mixed + scanned + self.D[k][:, None] * values
        out: Tensor = self.project_out(self.norm(mixed.flatten(-2)) * gate)
        return out


def _along(
    direction: Direction, points: Points, values: Tensor, decay: Tensor, B: Tensor, C: Tensor
) -> Float[Tensor, "batch token head part"]:
    """``ssd`` in the order of a direction."""
    batch, tokens = values.shape[:2]
    walk = path(direction, points.grid, tokens)
    order = walk.tokens(values.device).flatten()
    # a row or column whose state is its own is a sequence like those of another sample
    length = walk.length if walk.resets else tokens
    ordered, decay, B, C = (
        each[:, order].reshape(-1, length, *each.shape[2:]) for each in (values, decay, B, C)
    )
    scanned = ssd(ordered, decay, B, C).reshape(batch, tokens, *values.shape[2:])
    return scanned[:, order.argsort()]


def ssd(
    values: Float[Tensor, "batch token head part"],
    decay: Float[Tensor, "batch token head"],
    B: Float[Tensor, "batch token state"],
    C: Float[Tensor, "batch token state"],
    chunk: int = CHUNK,
) -> Float[Tensor, "batch token head part"]:
    """``y[t] = sum_(s<=t) (C[t] . B[s]) exp(decay[s+1] + ... + decay[t]) values[s]``; ``decay`` <= 0."""
    tokens = values.shape[1]
    missing = -tokens % chunk
    if missing:
        # what is appended comes after everything that is asked for
        values, decay, B, C = (
            functional.pad(each, (0, 0) * (each.ndim - 2) + (0, missing)) for each in (values, decay, B, C)
        )
    values, decay, B, C = (
        each.reshape(each.shape[0], -1, chunk, *each.shape[2:]) for each in (values, decay, B, C)
    )
    decay = decay.transpose(2, 3)  # [batch chunk head token]
    passed = decay.cumsum(-1)
    within = torch.einsum("bcqn,bcsn,bchqs,bcshp->bcqhp", C, B, _decays(decay), values)
    ends = torch.einsum("bcsn,bchs,bcshp->bchpn", B, (passed[..., -1:] - passed).exp(), values)
    begins = _carried(ends, passed[..., -1])
    between = torch.einsum("bcqn,bchpn,bchq->bcqhp", C, begins, passed.exp())
    return (within + between).flatten(1, 2)[:, :tokens]


def _decays(decay: Float[Tensor, "batch chunk head token"]) -> Float[Tensor, "batch chunk head token token"]:
    """What is left at token q of what came at token s <= q of the same chunk."""
    size = decay.shape[-1]
    below = torch.ones(size, size, dtype=torch.bool, device=decay.device).tril()
    # sums of what lies between, which differences of running sums would round
    steps = decay[..., None].expand(*decay.shape, size).masked_fill(~below.tril(-1), 0.0)
    # masked twice: an infinity that is masked after it was computed has no gradient
    return steps.cumsum(-2).masked_fill(~below, 0.0).exp().masked_fill(~below, 0.0)


def _carried(
    ends: Float[Tensor, "batch chunk head part state"], passed: Float[Tensor, "batch chunk head"]
) -> Float[Tensor, "batch chunk head part state"]:
    """The state before each chunk, of what each chunk adds."""
    state, begins = torch.zeros_like(ends[:, 0]), []
    for end, left in zip(ends.unbind(1), passed.exp().unbind(1), strict=True):
        begins.append(state)
        state = left[..., None, None] * state + end
    return torch.stack(begins, dim=1)
