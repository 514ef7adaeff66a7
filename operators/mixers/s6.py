"""S6 and Cross-S6, the mixers of the Mamba Neural Operator.

Per channel e, state n and direction of a scan plan, with ``delta``, ``B`` and ``C`` functions of the token::

    h[t] = exp(delta[t] A) h[t-1] + Bbar[t] u[t]        Bbar = delta B (Euler) or expm1(delta A) / A B (hold)
    y[t] = C[t] . h[t] + D u[t]

``u`` and the gate are halves of ``SiLU(W x)``; the ``y`` of all directions are added, normed over the
channels, gated and projected (Cheng et al. 2024, arXiv 2410.02113; Gu and Dao 2023, arXiv 2312.00752). The
paper writes the zero-order hold for ``B`` and its code computes Euler's step, which is the default here.

Cross-S6 takes its values and its gate from the tokens, and adds what the context says to ``delta``, ``B`` and
``C``, place by place.
"""

import math
from collections.abc import Sequence
from typing import Literal, final

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from operators.mixers.mixer import CannotMix, Mixer
from operators.points import Points
from operators.scan import Direction, selective_scan
from operators.scan.path import path
from operators.scan_plan import PLANS, PlanName

# delta starts log-uniformly between these, and not below the last (Gu and Dao 2023, section 3.6)
DELTA_RANGE = (1e-3, 1e-1)
LEAST_DELTA = 1e-4
# channels for each rank of the map to ``delta``
CHANNELS_PER_RANK = 16
BACKWARD = frozenset(
    {
        Direction.REVERSE,
        Direction.COLUMN_MAJOR_REVERSE,
        Direction.ROW_REVERSE,
        Direction.COLUMN_REVERSE,
    }
)


@final
class S6Config(BaseModel):
    """Options of ``S6``; the defaults are the paper's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["s6"] = "s6"
    # states of a channel
    states: int = Field(default=16, gt=0)
    # width of the scanned sequence over that of the tokens
    ratio: float = Field(default=2.0, gt=0)
    plan: PlanName = "bi_raster"
    # how B is discretized: Euler's step, or the hold that the paper writes
    hold: Literal["euler", "zero_order"] = "euler"
    # whether a token's own part counts in both directions of a pair; once: those back read what came before
    # it
    diagonal: Literal["twice", "once"] = "twice"
    # one set of parameters for all directions
    tied: bool = False
    # spacing at which ``delta`` is taken as it is, in the unit of the points; None: on every grid
    reference_spacing: float | None = Field(default=None, gt=0)


@final
class S6(Mixer):
    """Mixes tokens by selective scans along the directions of a plan."""

    def __init__(self, config: S6Config, channels: int, *, cross: bool = False) -> None:
        super().__init__()
        self.config = config
        self.directions = PLANS[config.plan]
        self.rank, inner = math.ceil(channels / CHANNELS_PER_RANK), int(config.ratio * channels)
        selected, sets = self.rank + 2 * config.states, 1 if config.tied else len(self.directions)
        self.project_in = nn.Linear(channels, 2 * inner, bias=False)
        self.select = nn.Parameter(torch.empty(sets, selected, inner))
        self.select_context = nn.Parameter(torch.empty(sets, selected, inner)) if cross else None
        self.delta_weight = nn.Parameter(torch.empty(sets, inner, self.rank))
        self.delta_bias = nn.Parameter(torch.empty(sets, inner))
        self.log_A = nn.Parameter(torch.empty(sets, inner, config.states))
        self.D = nn.Parameter(torch.ones(sets, inner))
        self.norm = nn.LayerNorm(inner)
        self.project_out = nn.Linear(inner, channels, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as Mamba does: ``A = -(1..N)``, ``delta`` log-uniform in ``DELTA_RANGE``."""
        for weight in (self.select, self.select_context):
            if weight is not None:
                nn.init.uniform_(weight, -(weight.shape[-1] ** -0.5), weight.shape[-1] ** -0.5)
        nn.init.uniform_(self.delta_weight, -(self.rank**-0.5), self.rank**-0.5)
        low, high = (math.log(value) for value in DELTA_RANGE)
        delta = torch.empty_like(self.delta_bias).uniform_(low, high).exp().clamp_min(LEAST_DELTA)
        # the inverse of softplus
        self.delta_bias.copy_(delta + torch.log(-torch.expm1(-delta)))
        states = torch.arange(1, self.config.states + 1, dtype=self.log_A.dtype)
        self.log_A.copy_(states.log().expand_as(self.log_A))

    def forward(
        self,
        tokens: Float[Tensor, "batch token channel"],
        points: Points,
        context: Float[Tensor, "batch context_token channel"] | None = None,
        context_points: Points | None = None,  # noqa: ARG002
    ) -> Float[Tensor, "batch token channel"]:
        """See ``Mixer.forward``; a context has to lie at the tokens' own points."""
        u, gate = functional.silu(self.project_in(tokens)).chunk(2, dim=-1)
        delta, B, C = self._select(u, self._read(context, tokens.shape[1]))
        A = -self._of_all(self.log_A).exp()
        relative = self._relative_spacing(points)
        # a graph that is open in its grid has no number to compare
        if torch.compiler.is_exporting() or relative != 1.0:
            A, B = relative * A, relative * B
        scanned = self._scan(u.contiguous(), delta, A, B, C, points.grid)
        out: Tensor = self.project_out(self.norm(scanned) * gate)
        return out

    def _read(self, context: Tensor | None, tokens: int) -> Tensor | None:
        """What the context is scanned for, by the projection of the tokens."""
        if (context is None) != (self.select_context is None):
            expected = "no context" if self.select_context is None else "a context"
            raise CannotMix(
                f"expected {expected}: S6 was built for {'cross' if context is None else 'self'}-mixing"
            )
        if context is None:
            return None
        if context.shape[1] != tokens:
            raise CannotMix(
                f"Cross-S6 reads its context place by place: expected {tokens} tokens, got "
                f"{context.shape[1]}; "
                "interpolate the context to the tokens' points, or use attention"
            )
        weight = self.project_in.weight.chunk(2)[0]
        return functional.silu(functional.linear(context, weight))

    def _select(self, u: Tensor, read: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """``delta`` [batch direction token channel] before its softplus, ``B`` and ``C`` [.. state]."""
        selection = torch.einsum("bte,kse->bkts", u, self.select)
        if read is not None and self.select_context is not None:
            selection = selection + torch.einsum("bte,kse->bkts", read, self.select_context)
        low_rank, B, C = torch.split(selection, [self.rank, self.config.states, self.config.states], dim=-1)
        delta = torch.einsum("bktr,ker->bkte", low_rank, self.delta_weight)
        count = len(self.directions)
        delta, B, C = (values.expand(-1, count, -1, -1) for values in (delta, B, C))
        return delta, B, C

    def _of_all(self, parameter: Tensor) -> Tensor:
        """A parameter of each direction."""
        return parameter.expand(len(self.directions), *parameter.shape[1:])

    def _relative_spacing(self, points: Points) -> float:
        if self.config.reference_spacing is None:
            return 1.0
        spacing: float = torch.sym_sqrt(points.spacing[0] * points.spacing[1])
        return spacing / self.config.reference_spacing

    def _scan(
        self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, grid: tuple[int, int]
    ) -> Float[Tensor, "batch token inner"]:
        D, bias = self._of_all(self.D), self._of_all(self.delta_bias)
        if self.config.diagonal == "twice":
            return self._along(self.directions, u, delta, A, B, C, D, bias, grid)
        ahead = [k for k, direction in enumerate(self.directions) if direction not in BACKWARD]
        y = self._along(
            [self.directions[k] for k in ahead],
            u,
            delta[:, ahead],
            A[ahead],
            B[:, ahead],
            C[:, ahead],
            D[ahead],
            bias[ahead],
            grid,
        )
        for k, direction in enumerate(self.directions):
            if direction in BACKWARD:
                one = slice(k, k + 1)
                tokens, before = _successions(direction, grid, u.shape[1], u.device)
                # read at each token what was known before it: its own part is in the other direction
                read = torch.zeros_like(C[:, one]).index_copy(2, before, C[:, one][:, :, tokens])
                known = self._along(
                    [direction], u, delta[:, one], A[one], B[:, one], read, 0 * D[one], bias[one], grid
                )
                y = y.index_add(1, tokens, known[:, before]) + u * D[k]
        return y

    def _along(
        self,
        directions: Sequence[Direction],
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        bias: Tensor,
        grid: tuple[int, int],
    ) -> Float[Tensor, "batch token inner"]:
        """The sum of what the directions give, each with its own parameters."""
        if self.config.hold == "euler":
            return selective_scan(u, delta, A, B, C, D, None, bias, directions=directions, grid=grid)
        held = held_scan(u, functional.softplus(delta + bias[:, None]), A, B, C, directions, grid)
        return held + u * D.sum(0)


def _successions(
    direction: Direction, grid: tuple[int, int], tokens: int, device: torch.device
) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
    """The tokens that have one before them in their sequence, and that one."""
    walk = path(direction, grid, tokens)
    order = walk.tokens(device) if walk.resets else walk.tokens(device).reshape(1, -1)
    return order[:, 1:].flatten(), order[:, :-1].flatten()


def held_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    directions: Sequence[Direction],
    grid: tuple[int, int],
) -> Float[Tensor, "batch token channel"]:
    """The scan with a zero-order hold for B.

    Each state of each channel becomes a channel of its own, whose value is ``expm1(delta A) / (delta A) B
    u``: Euler's step on that is the hold on ``u``. So every backend can do it, with a memory that grows with
    the number of states.
    """
    batch, tokens, channels = u.shape
    states, y = A.shape[-1], torch.zeros_like(u)
    ones = u.new_ones(batch, 1, tokens, 1)
    for k, direction in enumerate(directions):
        step = delta[:, k, :, :, None] * A[k]
        # expm1(s) / s, which is 1 at 0
        hold = torch.where(step == 0, 1.0, torch.expm1(step) / torch.where(step == 0, 1.0, step))
        values = (hold * B[:, k, :, None, :] * u[..., None]).reshape(batch, tokens, channels * states)
        steps = (
            delta[:, k, :, :, None].expand(-1, -1, -1, states).reshape(batch, 1, tokens, channels * states)
        )
        states_of_all = selective_scan(
            values,
            steps,
            A[k].reshape(1, channels * states, 1),
            ones,
            ones,
            dt_softplus=False,
            directions=(direction,),
            grid=grid,
        ).reshape(batch, tokens, channels, states)
        y = y + torch.einsum("bten,btn->bte", states_of_all, C[:, k])
    return y
