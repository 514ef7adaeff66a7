"""Axial Mamba Neural Operator: S6 along rows and columns of patches, with a head that balances fluxes.

The network proposes ``v = phi * exp(g)``: ``phi`` is the solution for a constant coefficient (the boundary
lift: zero on the wall, positive inside, so ``v`` obeys both whatever the network says) and ``g`` its output.
The head settles the global part by a coarse flux balance (``operators.multiscale``), and a few damped-Jacobi
sweeps of the declared discrete operator take away the rough part, which carries most of the flux (energy)
error of a patch-wise network. Both are differentiable and trained through; together they cost about a
millisecond at 128 x 128.

Sources: Cheng et al. 2024 (arXiv 2410.02113) for S6 as an operator's kernel; Liu et al. 2024 (arXiv
2401.10166) for the local depthwise convolution and the four directions; Briggs, Henson and McCormick, *A
Multigrid Tutorial* (2000), chapter 2, for relaxation as a smoother.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from operators import darcy_stencil
from operators.axial_block import AxialBlock
from operators.multiscale import balance_fluxes
from operators.operator import Operator, UnsupportedGrid
from operators.per_grid import per_grid
from operators.scan_plan import PlanName

PATCH = 4
TORSION_TERMS = 24


class AxialMnoConfig(BaseModel):
    """Options of ``AxialMno``; the defaults are the built-in Darcy model's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["axial_mno"] = "axial_mno"
    channels: int = Field(default=64, gt=0)
    inner_channels: int = Field(default=64, gt=0)
    states: int = Field(default=4, gt=0)
    rank: int = Field(default=4, gt=0)
    blocks: int = Field(default=4, gt=0)
    expansion: float = Field(default=2.0, gt=0)
    plan: PlanName = "axial"
    # coarse cells along each side for the flux balance
    intervals: int = Field(default=16, gt=0)
    # the head balances and relaxes this many times
    cycles: int = Field(default=2, ge=0)
    relaxation_sweeps: int = Field(default=4, ge=0)
    scheme: Literal["tpfa-harmonic-v1", "pdebench-ghost0-v1"] = "tpfa-harmonic-v1"
    # spacing of the patches at which ``delta`` is taken as it is, in units of the domain's width
    reference_spacing: float = Field(default=1.0 / 32.0, gt=0)


class AxialMno(Operator):
    """Patch stem (4 x 4 cells) -> S6 blocks -> patch-wise head -> balance and relaxation."""

    feature_layer = "norm"

    def __init__(self, config: AxialMnoConfig) -> None:
        super().__init__()
        self.config = config
        width = config.channels
        self.lift = nn.Conv2d(3, width, 2 * PATCH, stride=PATCH, padding=PATCH // 2)
        self.lift_position = nn.Linear(6, width)
        self.lift_mix = nn.Linear(width, width)
        self.blocks = nn.ModuleList(AxialBlock(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(width)
        self.project_hidden = nn.Linear(2 * width, 2 * width)
        self.project = nn.Linear(2 * width, PATCH**2)
        self.relaxation = nn.Parameter(torch.full((config.cycles, config.relaxation_sweeps), 0.95))
        with torch.no_grad():
            self.project.weight.mul_(0.1)
            self.project.bias.zero_()

    def forward(
        self, coefficient: Float[Tensor, "batch 1 y x"], spacing: tuple[float, float]
    ) -> Float[Tensor, "batch 1 y x"]:
        """See ``Operator.forward``; the grid must divide into patches and coarse cells."""
        self._check_grid(*coefficient.shape[-2:])
        log_ratio = self._log_ratio(coefficient, spacing)
        # the stencil needs float32 whatever precision the network's matrix products run in
        with torch.autocast(coefficient.device.type, enabled=False):
            proposal = torsion(coefficient, spacing) * log_ratio.exp()
            faces = darcy_stencil.transmissibilities(coefficient, spacing, self.config.scheme)
            source = spacing[0] * spacing[1]
            return self._balance_and_relax(proposal, faces, source)

    def _check_grid(self, ny: int, nx: int) -> None:
        multiple = math.lcm(PATCH, self.config.intervals)
        if ny % multiple or nx % multiple or min(ny, nx) < 2 * self.config.intervals:
            raise UnsupportedGrid(
                f"the sides of the grid must be multiples of {multiple} and at least "
                f"{2 * self.config.intervals} cells, got {ny} x {nx}"
            )

    def _log_ratio(self, k: Tensor, spacing: tuple[float, float]) -> Tensor:
        """The network: ``log(v / phi)``, [batch 1 y x]."""
        log_k = k.log()
        features = torch.cat([log_k / 3.0, torch.sigmoid(2.0 * log_k), torch.sigmoid(-2.0 * log_k)], dim=1)
        stem = self.lift(features).permute(0, 2, 3, 1)
        positions = _positions(stem.shape[1], stem.shape[2], k.dtype, k.device)
        stem = functional.silu(stem + self.lift_position(positions))
        tokens = self.lift_mix(stem)
        relative_spacing = PATCH * torch.sym_sqrt(spacing[0] * spacing[1]) / self.config.reference_spacing
        for block in self.blocks:
            tokens = block(tokens, relative_spacing)
        hidden = functional.silu(self.project_hidden(torch.cat([self.norm(tokens), stem], dim=-1)))
        # the last product stays in float32: rounding it to bfloat16 alone would cost 0.4 % of the proposal
        with torch.autocast(k.device.type, enabled=False):
            patches: Tensor = self.project(hidden.to(k.dtype))
        return functional.pixel_shuffle(patches.permute(0, 3, 1, 2), PATCH)

    def _balance_and_relax(self, u: Tensor, faces: darcy_stencil.Transmissibilities, source: float) -> Tensor:
        """Cycles of a coarse flux balance and of Jacobi sweeps with learnt damping."""
        jacobi = darcy_stencil.jacobi(faces, source)
        for sweeps in self.relaxation.unbind():
            u = balance_fluxes(u, faces, source, self.config.intervals)
            for omega in sweeps.unbind():
                u = torch.lerp(u, jacobi(u), omega)
        return u


@per_grid
def _positions(ny: int, nx: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "1 y x 6"]:
    """Even functions of the position: distances to the walls and two Fourier modes."""
    y, x = ((torch.arange(n, device=device, dtype=dtype) + 0.5) / n for n in (ny, nx))
    along_y, along_x = (
        torch.stack([4 * s * (1 - s), torch.sin(math.pi * s), torch.cos(2 * math.pi * s)], dim=-1)
        for s in (y, x)
    )
    return torch.cat([along_y[:, None].expand(ny, nx, 3), along_x[None].expand(ny, nx, 3)], dim=-1)[None]


def torsion(like: Float[Tensor, "batch 1 y x"], spacing: tuple[float, float]) -> Float[Tensor, "1 1 y x"]:
    """``_torsion`` on the grid of ``like``."""
    ny, nx = like.shape[-2:]
    return _torsion(ny, nx, spacing, like.dtype, like.device)


@per_grid
def _torsion(
    ny: int, nx: int, spacing: tuple[float, float], dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "1 1 y x"]:
    """Solution of ``-div grad phi = 1`` with phi = 0 on the wall, at the cell centres.

    The single series ``phi = x (1 - x) / 2 - sum_n 4 / (n pi)^3 sin(n pi x) cosh(n pi (y - b/2)) / cosh(n pi
    b / 2)``, n odd, on (0, 1) x (0, b) (Timoshenko and Goodier, *Theory of Elasticity*, 1970, section 109).
    """
    hy, hx = spacing
    height, width = ny * hy, nx * hx
    y = (torch.arange(ny, device=device, dtype=torch.float64) + 0.5) * (hy / width)
    x = (torch.arange(nx, device=device, dtype=torch.float64) + 0.5) * (hx / width)
    ratio = height / width
    n = math.pi * torch.arange(1, 2 * TORSION_TERMS, 2, device=device, dtype=torch.float64)[:, None]
    # cosh(n (y - b/2)) / cosh(n b/2), written so that nothing overflows
    profile = (torch.exp(-n * y) + torch.exp(-n * (ratio - y))) / (1.0 + torch.exp(-n * ratio))
    series = (4.0 / n**3 * torch.sin(n * x)).T @ profile  # [x y]
    phi = 0.5 * x * (1.0 - x) - series.T
    return (phi.clamp_min(0.0) * width**2).to(dtype)[None, None]
