"""S6, the selective state-space mixer, over the points of a grid.

Per channel and direction ``h_t = exp(delta_t A) h_(t-1) + delta_t B_t u_t``, ``y_t = C_t h_t + D u_t`` with
``delta``, ``B`` and ``C`` functions of the input (Gu and Dao 2023, arXiv 2312.00752, equations 2 and
algorithm 2; the step for ``B`` is Euler's, as in their code). The directions of a scan plan share the input
and the gate; their outputs are summed (Cheng et al. 2024, arXiv 2410.02113, use the two raster directions).

``delta`` is a length: it is multiplied by the tokens' spacing over a reference spacing, so that on another
grid the recurrence is another quadrature of the same integral.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from operators.scan import selective_scan
from operators.scan_plan import ScanPlan

# delta starts between these two values, log-uniformly (Gu and Dao 2023, section 3.6)
DELTA_RANGE = (1e-2, 0.5)


class S6(nn.Module):
    """Mixes the tokens of a grid along the directions of a scan plan."""

    def __init__(self, channels: int, inner_channels: int, states: int, rank: int, plan: ScanPlan) -> None:
        """Create the mixer.

        Args:
            channels: width of the tokens.
            inner_channels: width of the scanned sequence.
            states: states per channel.
            rank: rank of the map from tokens to ``delta``.
            plan: directions of the scan.
        """
        super().__init__()
        self.plan, self.states, self.rank = plan, states, rank
        directions = len(plan)
        self.project_in = nn.Linear(channels, 2 * inner_channels)
        self.local = nn.Conv2d(inner_channels, inner_channels, 3, padding=1, groups=inner_channels)
        self.project_selection = nn.Linear(inner_channels, directions * (rank + 2 * states), bias=False)
        self.delta_weight = nn.Parameter(torch.empty(directions, inner_channels, rank))
        self.delta_bias = nn.Parameter(torch.empty(directions, inner_channels))
        self.log_A = nn.Parameter(torch.empty(directions, inner_channels, states))
        self.D = nn.Parameter(torch.ones(directions, inner_channels))
        self.project_out = nn.Linear(inner_channels, channels)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as Mamba does: ``A = -(1..N)``, ``delta`` log-uniform in ``DELTA_RANGE``."""
        nn.init.uniform_(self.delta_weight, -(self.rank**-0.5), self.rank**-0.5)
        low, high = (math.log(value) for value in DELTA_RANGE)
        delta = torch.empty_like(self.delta_bias).uniform_(low, high).exp()
        self.delta_bias.copy_(delta + torch.log(-torch.expm1(-delta)))
        self.log_A.copy_(torch.arange(1, self.states + 1, dtype=torch.float32).log().expand_as(self.log_A))
        self.D.fill_(1.0 / len(self.plan))

    def forward(
        self, tokens: Float[Tensor, "batch y x channel"], relative_spacing: float
    ) -> Float[Tensor, "batch y x channel"]:
        """Mix; ``relative_spacing`` is the tokens' spacing over the reference spacing."""
        batch, ny, nx, _ = tokens.shape
        # two products in place of one: their results lie where the convolution and the scan read them
        (weight_u, weight_gate), (bias_u, bias_gate) = (p.chunk(2) for p in self.project_in.parameters())
        u, gate = (
            functional.linear(tokens, weight_u, bias_u),
            functional.linear(tokens, weight_gate, bias_gate),
        )
        u = self.local(u.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        u = functional.silu(u).reshape(batch, ny * nx, -1)
        delta, B, C = self._select(u)
        A = -self.log_A.exp()
        # a graph that is open in its grid has no number to compare
        if torch.compiler.is_exporting() or relative_spacing != 1.0:
            A, B = relative_spacing * A, relative_spacing * B
        y = selective_scan(
            u,
            delta,
            A,
            B,
            C,
            self.D,
            gate.reshape(batch, ny * nx, -1),
            self.delta_bias,
            directions=self.plan,
            grid=(ny, nx),
        )
        mixed: Tensor = self.project_out(y)
        return mixed.reshape(batch, ny, nx, -1)

    def _select(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The input-dependent ``delta`` [batch direction length channel], ``B`` and ``C`` [.. state]."""
        batch, length, _ = u.shape
        selection = self.project_selection(u).reshape(batch, length, len(self.plan), -1)
        low_rank, B, C = selection.split([self.rank, self.states, self.states], dim=-1)
        # one product with a block-diagonal matrix: far faster than a batch of very thin ones
        weight = torch.block_diag(*self.delta_weight.mT.unbind())  # type: ignore[no-untyped-call]
        delta = torch.matmul(low_rank.flatten(2), weight).reshape(batch, length, len(self.plan), -1)
        return delta.transpose(1, 2), B.transpose(1, 2), C.transpose(1, 2)
