"""Darcy flow for batches of fields on any device of torch: solutions and guaranteed bounds, in float64.

The same matrices as ``two_point_flux``. Conjugate gradients preconditioned by the Poisson equation of a
constant permeability, whose inverse is a product with two matrices of sines along each direction: on a GPU
these cost next to nothing. About 20 iterations at contrast 10; many more at high contrast, where ``residual``
says how far it got. The bound is that of ``error_bound`` for no solver step; ``assessment`` says why it
holds.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float64

from problems.grid import Grid
from problems.two_point_flux import SCHEMES

Batch = Float64[torch.Tensor, "batch y x"]
Numbers = Float64[torch.Tensor, " batch"]

MAXIMUM_ITERATIONS = 400
_EVALUATION = 2.0**-48
_SLACK = 1e-8
_CONVERSION = 2.0**-50


@dataclass(frozen=True)
class BatchSolution:
    """What the solver found for a batch.

    Attributes:
        pressure: the solutions [Pa].
        residual: relative residual of each, ||b - A u||_2 / ||b||_2, recomputed from the solution.
        iterations: iterations of the whole batch.
    """

    pressure: Batch
    residual: Numbers
    iterations: int


@dataclass(frozen=True)
class _Matrices:
    """``A`` of each sample over its largest permeability, and what solves the constant one.

    Attributes:
        x: transmissibilities of the faces across x, walls included.
        y: the same across y.
        constant_x: those of a = 1, one row.
        constant_y: the same across y, one column.
        sines_x: orthonormal sine transform along x, one wave a row.
        sines_y: the same along y.
        eigenvalues: of the constant matrix.
    """

    x: torch.Tensor
    y: torch.Tensor
    constant_x: torch.Tensor
    constant_y: torch.Tensor
    sines_x: torch.Tensor
    sines_y: torch.Tensor
    eigenvalues: torch.Tensor


def solve_batch(
    permeability: Batch,
    source: Numbers,
    grid: Grid,
    scheme: str = "tpfa-harmonic-v1",
    tolerance: float = 1e-10,
) -> BatchSolution:
    """Pressures to a relative residual of ``tolerance``, as far as ``MAXIMUM_ITERATIONS`` go.

    Raises:
        ValueError: the scheme or a shape is not what it should be.
    """
    matrices, unit = _discretize(permeability, source, grid, scheme)
    right_hand_side = torch.ones_like(permeability)
    x, iterations = _conjugate_gradients(matrices, right_hand_side, tolerance)
    left = right_hand_side - _apply(matrices, x)
    size = math.sqrt(grid.shape[0] * grid.shape[1])
    return BatchSolution(x * unit[:, None, None], left.flatten(1).norm(dim=1) / size, iterations)


def bound_batch(
    permeability: Batch,
    source: Numbers,
    pressure: Batch,
    grid: Grid,
    scheme: str = "tpfa-harmonic-v1",
    rounding: float = 0.0,
) -> tuple[Numbers, Numbers]:
    """Guaranteed lower and upper bounds of the relative energy error of each pressure, once rounded.

    Raises:
        ValueError: the scheme or a shape is not what it should be.
    """
    if pressure.shape != permeability.shape:
        raise ValueError(
            f"pressure must have the shape {list(permeability.shape)}, got {list(pressure.shape)}"
        )
    matrices, unit = _discretize(permeability, source, grid, scheme)
    x = pressure / unit[:, None, None]
    lower, upper, size = _sides(matrices, x)
    leaving = (rounding + _CONVERSION) * _spread(matrices, x).sqrt() / size
    lower, upper = (lower - leaving).nan_to_num(0.0).clamp(min=0.0), upper + leaving
    # without a source only 0 is right
    none = torch.where(pressure.flatten(1).any(dim=1), math.inf, 0.0).to(upper)
    upper = torch.where(upper.isnan(), math.inf, upper)
    return torch.where(source == 0, none, lower), torch.where(source == 0, none, upper)


def _discretize(
    permeability: Batch, source: Numbers, grid: Grid, scheme: str
) -> tuple[_Matrices, torch.Tensor]:
    """Matrices, and the pressure that 1 stands for [Pa] where the source is 1 per cell."""
    if scheme not in SCHEMES:
        raise ValueError(f"unknown scheme {scheme}, expected one of {', '.join(SCHEMES)}")
    if permeability.ndim != 3 or permeability.shape[1:] != grid.shape:
        expected = f"[batch, {grid.shape[0]}, {grid.shape[1]}]"
        raise ValueError(f"permeability must have the shape {expected}, got {list(permeability.shape)}")
    if source.shape != permeability.shape[:1]:
        raise ValueError(f"source must hold {permeability.shape[0]} numbers, got {list(source.shape)}")
    largest = permeability.amax(dim=(1, 2))
    x, y = _faces(permeability / largest[:, None, None], grid, scheme)
    one = permeability.new_ones(1, *grid.shape)
    constant_x, constant_y = _faces(one, grid, scheme)
    sines = (_sines(n, SCHEMES[scheme].sine_transform, permeability.device) for n in grid.shape)
    sines_y, sines_x = sines
    eigenvalues = _eigenvalues(grid, scheme, permeability.device)
    matrices = _Matrices(x, y, constant_x[:, :1], constant_y[:, :, :1], sines_x, sines_y, eigenvalues)
    return matrices, source * (grid.cell_area / largest)


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


def _solve_poisson(matrices: _Matrices, right_hand_side: torch.Tensor) -> torch.Tensor:
    sines_y, sines_x = matrices.sines_y, matrices.sines_x
    waves = (sines_y @ right_hand_side @ sines_x.T) / matrices.eigenvalues
    return sines_y.T @ waves @ sines_x


def _differences(u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``G u``, 0 outside the walls."""
    x = torch.nn.functional.pad(u, (1, 1)).diff(dim=2)
    return x, torch.nn.functional.pad(u, (0, 0, 1, 1)).diff(dim=1)


def _gather(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """``G^T`` of a flux."""
    return x[:, :, :-1] - x[:, :, 1:] + y[:, :-1] - y[:, 1:]


def _apply(matrices: _Matrices, u: torch.Tensor) -> torch.Tensor:
    x, y = _differences(u)
    return _gather(matrices.x * x, matrices.y * y)


def _inner(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum(dim=(1, 2))


def _conjugate_gradients(
    matrices: _Matrices, right_hand_side: torch.Tensor, tolerance: float
) -> tuple[torch.Tensor, int]:
    x, residual = torch.zeros_like(right_hand_side), right_hand_side.clone()
    direction = torch.zeros_like(residual)
    goal = tolerance**2 * _inner(residual, residual)
    product_before = torch.ones_like(goal)
    for iteration in range(MAXIMUM_ITERATIONS):
        # what has arrived rests, so that a sample does not depend on the others of its batch
        going = _inner(residual, residual) > goal
        if not going.any():
            return x, iteration
        better = _solve_poisson(matrices, residual)
        product = _inner(residual, better)
        direction = better + (product / product_before)[:, None, None] * direction
        # where nothing is left, 0 / 0 would spoil what rests
        direction = torch.where(going[:, None, None], direction, 0.0)
        image = _apply(matrices, direction)
        step = torch.where(going, product / _inner(direction, image), 0.0)[:, None, None]
        x = x + step * direction
        residual = residual - step * image
        product_before = product
    return x, MAXIMUM_ITERATIONS


def _energy(matrices: _Matrices, u: torch.Tensor) -> torch.Tensor:
    x, y = _differences(u)
    return _inner(matrices.x, x**2) + _inner(matrices.y, y**2)


def _spread(matrices: _Matrices, u: torch.Tensor) -> torch.Tensor:
    """Largest squared energy norm of a vector that is nowhere larger than u."""
    x = torch.nn.functional.pad(u.abs(), (1, 1))
    y = torch.nn.functional.pad(u.abs(), (0, 0, 1, 1))
    along_x, along_y = x[:, :, 1:] + x[:, :, :-1], y[:, 1:] + y[:, :-1]
    return _inner(matrices.x, along_x**2) + _inner(matrices.y, along_y**2)


def _projection(matrices: _Matrices, v: torch.Tensor, right_hand_side: torch.Tensor) -> torch.Tensor:
    """``|(c, v)| / ||v||_A``, rounded down; 0 if v is of no use."""
    product = right_hand_side * v
    work = product.sum(dim=(1, 2)).abs() - _SLACK * product.abs().sum(dim=(1, 2))
    energy = _energy(matrices, v)
    usable = (energy > 1e-280) & energy.isfinite() & work.isfinite()
    return torch.where(usable, work.clamp(min=0.0) / energy.sqrt() * (1 - _SLACK), 0.0)


def _least_size(matrices: _Matrices, *candidates: torch.Tensor) -> torch.Tensor:
    """Lower bound of ``||u||_A``."""
    one = torch.ones_like(candidates[0])
    constant = _solve_poisson(matrices, one[:1]).expand_as(one)
    sizes = [_projection(matrices, candidate, one) for candidate in (*candidates, constant)]
    return torch.stack(sizes).amax(dim=0)


def _remainder(matrices: _Matrices, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Norm of the flux that carries the residual, and the largest entry that it fails to carry."""
    x, y = _differences(_solve_poisson(matrices, residual))
    x, y = matrices.constant_x * x, matrices.constant_y * y
    squares = (x**2 / matrices.x).sum(dim=(1, 2)) + (y**2 / matrices.y).sum(dim=(1, 2))
    terms = _gather_sizes(x, y) + residual.abs()
    defect = (residual - _gather(x, y)).abs() + _EVALUATION * terms
    return squares.sqrt() * (1 + _SLACK), defect.amax(dim=(1, 2))


def _gather_sizes(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x, y = x.abs(), y.abs()
    return x[:, :, :-1] + x[:, :, 1:] + y[:, :-1] + y[:, 1:]


def _sides(matrices: _Matrices, answer: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Bounds of the relative energy error of answers to ``A u = 1``, and the least size of u."""
    x, y = _differences(answer)
    x, y = matrices.x * x, matrices.y * y
    residual = 1 - _gather(x, y)
    evaluation = _EVALUATION * (1 + _gather_sizes(x, y).amax(dim=(1, 2)))
    remainder, lost = _remainder(matrices, residual)
    rounding, largest = lost + evaluation, residual.abs().amax(dim=(1, 2)) + evaluation
    most = _remainder(matrices, torch.ones_like(answer))[0] * (1 + _SLACK)
    remaining = torch.minimum(remainder + rounding * most, largest * most)
    direction = _solve_poisson(matrices, residual)
    least = (_projection(matrices, direction, residual) - rounding * most).clamp(min=0.0)
    step = _inner(residual, direction) / _energy(matrices, direction)
    size = _least_size(matrices, answer, answer + step[:, None, None] * direction)
    # ||u||^2 = known + ||u - x||^2
    energy, work = _energy(matrices, answer), answer.sum(dim=(1, 2))
    known = 2 * work - energy - _SLACK * (energy + 2 * answer.abs().sum(dim=(1, 2)))
    highest = torch.maximum(_square_ratio(least, known), _square_ratio(remaining, known)).sqrt()
    upper = torch.minimum(torch.minimum(highest, remaining / size), largest)
    return least / most * (1 - _SLACK), upper * (1 + _SLACK) + _EVALUATION, size


def _square_ratio(error: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    squared = error**2
    return torch.where((known + squared > 0) & known.isfinite(), squared / (known + squared), math.inf)
