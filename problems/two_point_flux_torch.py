"""The matrices of ``two_point_flux`` for batches of fields on any device of torch, in float64.

The Poisson equation of a constant permeability is a product with two matrices of sines along each direction:
on a GPU these cost next to nothing, and it preconditions conjugate gradients. Plain, that takes about 20
steps at contrast 10 however rough the medium; scaled by ``a^(-1/2)`` it takes as many for smooth media of
contrast 1e4, and is of no use for binary ones (Concus, Golub, SIAM J. Numer. Anal. 10, 1973).
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import final

import torch
from jaxtyping import Float64

from problems.grid import Grid
from problems.two_point_flux import SCHEMES

Batch = Float64[torch.Tensor, "batch y x"]
Numbers = Float64[torch.Tensor, " batch"]


@final
@dataclass(frozen=True)
class Matrices:
    """``A`` of each sample over its largest permeability, and what solves the constant one.

    Attributes:
        x: transmissibilities of the faces across x, walls included.
        y: the same across y.
        constant_x: those of a = 1, one row.
        constant_y: the same across y, one column.
        sines_x: orthonormal sine transform along x, one wave a row.
        sines_y: the same along y.
        eigenvalues: of the constant matrix.
        scale: ``a^(-1/2)``, of the permeability over its largest value.
    """

    x: torch.Tensor
    y: torch.Tensor
    constant_x: torch.Tensor
    constant_y: torch.Tensor
    sines_x: torch.Tensor
    sines_y: torch.Tensor
    eigenvalues: torch.Tensor
    scale: torch.Tensor

    def solve_poisson(self, right_hand_side: Batch) -> Batch:
        """``L^{-1} r``."""
        waves = (self.sines_y @ right_hand_side @ self.sines_x.T) / self.eigenvalues
        return self.sines_y.T @ waves @ self.sines_x

    def apply(self, u: Batch) -> Batch:
        """``A u``."""
        x, y = differences(u)
        return gather(self.x * x, self.y * y)

    def energy(self, u: Batch) -> Numbers:
        """``||u||_A^2``."""
        x, y = differences(u)
        return inner(self.x, x**2) + inner(self.y, y**2)


def discretize(permeability: Batch, source: Numbers, grid: Grid, scheme: str) -> tuple[Matrices, Numbers]:
    """Matrices, and the pressure that 1 stands for [Pa] where the source is 1 per cell.

    Raises:
        ValueError: the scheme or a shape is not what it should be.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"unknown scheme {scheme}, expected one of {', '.join(SCHEMES)}")
    if permeability.ndim != 3 or permeability.shape[1:] != grid.shape:
        expected = f"[batch, {grid.shape[0]}, {grid.shape[1]}]"
        raise ValueError(f"permeability must have the shape {expected}, got {list(permeability.shape)}")
    if source.shape != permeability.shape[:1]:
        raise ValueError(f"source must hold {permeability.shape[0]} numbers, got {list(source.shape)}")
    largest = permeability.amax(dim=(1, 2))
    relative = permeability / largest[:, None, None]
    x, y = _faces(relative, grid, scheme)
    constant_x, constant_y = _faces(permeability.new_ones(1, *grid.shape), grid, scheme)
    sines = (_sines(n, SCHEMES[scheme].sine_transform, permeability.device) for n in grid.shape)
    sines_y, sines_x = sines
    matrices = Matrices(
        x,
        y,
        constant_x[:, :1],
        constant_y[:, :, :1],
        sines_x,
        sines_y,
        _eigenvalues(grid, scheme, permeability.device),
        relative.rsqrt(),
    )
    return matrices, source * (grid.cell_area / largest)


def conjugate_gradients(
    matrices: Matrices,
    right_hand_side: Batch,
    tolerance: float,
    most: int,
    scale: torch.Tensor | None = None,
) -> tuple[Batch, int]:
    """Steps from 0 until each residual is ``tolerance`` times its right-hand side, at most ``most``.

    Args:
        matrices: the systems.
        right_hand_side: of each.
        tolerance: relative, in the Euclidean norm.
        most: steps.
        scale: what the Poisson equation is scaled by on both sides; None: nothing.

    Returns:
        The solutions, and the number of steps.
    """
    x, residual = torch.zeros_like(right_hand_side), right_hand_side.clone()
    direction = torch.zeros_like(residual)
    goal = tolerance**2 * inner(residual, residual)
    product_before = torch.ones_like(goal)
    for step in range(most):
        # what has arrived rests, so that a sample does not depend on the others of its batch
        going = inner(residual, residual) > goal
        if not going.any():
            return x, step
        if scale is None:
            better = matrices.solve_poisson(residual)
        else:
            better = scale * matrices.solve_poisson(scale * residual)
        product = inner(residual, better)
        direction = better + (product / product_before)[:, None, None] * direction
        # where nothing is left, 0 / 0 would spoil what rests
        direction = torch.where(going[:, None, None], direction, 0.0)
        image = matrices.apply(direction)
        length = torch.where(going, product / inner(direction, image), 0.0)[:, None, None]
        x = x + length * direction
        residual = residual - length * image
        product_before = product
    return x, most


def differences(u: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """``G u``, 0 outside the walls."""
    x = torch.nn.functional.pad(u, (1, 1)).diff(dim=2)
    return x, torch.nn.functional.pad(u, (0, 0, 1, 1)).diff(dim=1)


def gather(x: torch.Tensor, y: torch.Tensor) -> Batch:
    """``G^T`` of a flux."""
    return x[:, :, :-1] - x[:, :, 1:] + y[:, :-1] - y[:, 1:]


def inner(a: torch.Tensor, b: torch.Tensor) -> Numbers:
    """The inner product of each sample."""
    return (a * b).sum(dim=(1, 2))


def _faces(a: torch.Tensor, grid: Grid, scheme: str) -> tuple[torch.Tensor, torch.Tensor]:
    (hy, hx), wall = grid.spacing, SCHEMES[scheme].wall_distance
    mean = _MEANS[scheme]
    x = torch.cat([a[:, :, :1] / wall, mean(a[:, :, :-1], a[:, :, 1:]), a[:, :, -1:] / wall], dim=2)
    y = torch.cat([a[:, :1] / wall, mean(a[:, :-1], a[:, 1:]), a[:, -1:] / wall], dim=1)
    return x * (hy / hx), y * (hx / hy)


def _harmonic(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return 2.0 * (a / (a + b)) * b


def _arithmetic(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return 0.5 * (a + b)


_MEANS = {"tpfa-harmonic-v1": _harmonic, "pdebench-ghost0-v1": _arithmetic}


@lru_cache(maxsize=16)
def _sines(n: int, kind: int, device: torch.device) -> torch.Tensor:
    wave = torch.arange(1, n + 1, dtype=torch.float64)
    if kind == 1:
        sines = torch.sin(math.pi / (n + 1) * torch.outer(wave, wave)) * math.sqrt(2 / (n + 1))
    else:
        sines = torch.sin(math.pi / n * torch.outer(wave, wave - 0.5)) * math.sqrt(2 / n)
        sines[-1] *= math.sqrt(0.5)
    return sines.to(device)


@lru_cache(maxsize=16)
def _eigenvalues(grid: Grid, scheme: str, device: torch.device) -> torch.Tensor:
    (ny, nx), (hy, hx) = grid.shape, grid.spacing
    walls = 2 * SCHEMES[scheme].wall_distance - 1

    def along(n: int, ratio: float) -> torch.Tensor:
        wave = torch.arange(1, n + 1, dtype=torch.float64)
        return ratio * 4 * torch.sin(0.5 * math.pi / (n + walls) * wave) ** 2

    return (along(ny, hx / hy)[:, None] + along(nx, hy / hx)).to(device)
