"""Darcy flow for batches of fields on any device of torch: solutions and guaranteed bounds, in float64.

The solver is conjugate gradients preconditioned by the Poisson equation: about 20 steps at contrast 10; many
more at high contrast, where ``residual`` says how far it got.

The bound is that of ``error_bound`` for an answer as it is; ``assessment`` says why it holds. What multigrid
does there, to tell how large the error and the solution are at least, some steps of conjugate gradients do
here: plain and scaled, of which each sample takes those that prove more.
"""

import math
from dataclasses import dataclass
from typing import final

import torch

from problems.error_bound import WHOLE
from problems.grid import Grid
from problems.two_point_flux_torch import (
    Batch,
    Matrices,
    Numbers,
    conjugate_gradients,
    differences,
    discretize,
    gather,
    inner,
)

MAXIMUM_ITERATIONS = 400
# steps towards the error of an answer, of each kind
STEPS = 4
_EVALUATION = 2.0**-48
_SLACK = 1e-8
_CONVERSION = 2.0**-50
# squares below this may have lost digits to underflow
_SMALLEST_SQUARE = 1e-280


@final
@dataclass(frozen=True)
class BatchSolution:
    """What the solver found for a batch.

    Attributes:
        pressure: the solutions [Pa].
        residual: relative residual of each, ||b - A u||_2 / ||b||_2, recomputed from the solution; infinite
            where float64 does not carry the problem.
        iterations: iterations of the whole batch.
    """

    pressure: Batch
    residual: Numbers
    iterations: int


@final
@dataclass(frozen=True)
class BatchBound:
    """How far each answer of a batch is from the exact solution, relative to that; see ``ErrorBound``.

    Attributes:
        lower: guaranteed lower bound of the energy error.
        upper: guaranteed upper bound of the energy error.
        l2_estimate: estimate of the L2 error, without guarantee.
    """

    lower: Numbers
    upper: Numbers
    l2_estimate: Numbers


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
    matrices, unit = discretize(permeability, source, grid, scheme)
    right_hand_side = torch.ones_like(permeability)
    x, iterations = conjugate_gradients(matrices, right_hand_side, tolerance, MAXIMUM_ITERATIONS)
    left = right_hand_side - matrices.apply(x)
    residual = left.flatten(1).norm(dim=1) / math.sqrt(grid.shape[0] * grid.shape[1])
    beyond = _beyond_float64(permeability, source, unit)
    return BatchSolution(x * unit[:, None, None], torch.where(beyond, math.inf, residual), iterations)


def bound_batch(
    permeability: Batch,
    source: Numbers,
    pressure: Batch,
    grid: Grid,
    scheme: str = "tpfa-harmonic-v1",
    rounding: float = 0.0,
) -> BatchBound:
    """Guaranteed bounds of the relative energy error of each pressure, once rounded by ``rounding``.

    They are 0 and infinite where ``Darcy`` says ``CannotSolve``: the contrast or the unit of pressure is
    beyond float64.

    Raises:
        ValueError: the scheme or a shape is not what it should be.
    """
    if pressure.shape != permeability.shape:
        raise ValueError(
            f"pressure must have the shape {list(permeability.shape)}, got {list(pressure.shape)}"
        )
    matrices, unit = discretize(permeability, source, grid, scheme)
    x = pressure / unit[:, None, None]
    sides = _sides(matrices, x)
    leaving = (rounding + _CONVERSION) * _spread(matrices, x).sqrt() / sides.size
    lower, upper = (sides.lower - leaving).nan_to_num(0.0).clamp(min=0.0), sides.upper + leaving
    # without a source only 0 is right
    none = torch.where(pressure.flatten(1).any(dim=1), math.inf, 0.0).to(upper)
    lower = torch.where(beyond := _beyond_float64(permeability, source, unit), 0.0, lower)
    rest = (torch.where(n.isnan() | beyond, math.inf, n) for n in (upper, sides.l2_estimate))
    found = BatchBound(lower, *rest)
    return BatchBound(*(torch.where(source == 0, none, n) for n in vars(found).values()))


def _beyond_float64(permeability: Batch, source: Numbers, unit: Numbers) -> torch.Tensor:
    """Where nothing is known, since permeabilities over the largest, or the unit, have lost digits."""
    tiny = torch.finfo(torch.float64).tiny
    unusual = (source != 0) & ~((unit.abs() >= tiny) & unit.isfinite())
    return unusual | ~(permeability.amin(dim=(1, 2)) / permeability.amax(dim=(1, 2)) >= tiny)


@final
@dataclass(frozen=True)
class _Sides:
    """Bounds of relative energy errors, estimates of relative L2 errors, and the least size of u."""

    lower: torch.Tensor
    upper: torch.Tensor
    l2_estimate: torch.Tensor
    size: torch.Tensor


def _sides(matrices: Matrices, answer: torch.Tensor) -> _Sides:
    """What is known of answers to ``A u = 1``."""
    x, y = differences(answer)
    x, y = matrices.x * x, matrices.y * y
    residual = 1 - gather(x, y)
    evaluation = _EVALUATION * (1 + _gather_sizes(x, y).amax(dim=(1, 2)))
    remainder, lost = _remainder(matrices, residual)
    rounding, largest = lost + evaluation, residual.abs().amax(dim=(1, 2)) + evaluation
    one = torch.ones_like(answer)
    most = _remainder(matrices, one)[0] * (1 + _SLACK)
    remaining = torch.minimum(remainder + rounding * most, largest * most)
    plain, scaled = (
        conjugate_gradients(matrices, residual, 0.0, STEPS, scale)[0].nan_to_num(0.0, 0.0, 0.0)
        for scale in (None, matrices.scale)
    )
    solver_step, _ = _better(matrices, residual, plain, scaled)
    # what is wrong with the answer as a whole, solver steps find late at high contrast
    together = _in_plane(matrices, solver_step, answer, residual)
    step, proved = _better(matrices, residual, solver_step, together)
    least = (proved - rounding * most).clamp(min=0.0)
    size = _least_size(matrices, answer, answer + step)
    # ||u||^2 = known + ||u - x||^2
    energy, work = matrices.energy(answer), answer.sum(dim=(1, 2))
    known, slack = 2 * work - energy, _SLACK * (energy + 2 * answer.abs().sum(dim=(1, 2)))
    ends = least, remaining
    lowest = torch.minimum(*(_square_ratio(end, known + slack) for end in ends)).sqrt()
    highest = torch.maximum(*(_square_ratio(end, known - slack) for end in ends)).sqrt()
    lower = torch.maximum(torch.where(lowest.isfinite(), lowest, 0.0), least / most)
    upper = torch.minimum(torch.minimum(highest, remaining / size), largest)
    # as in ``error_bound``
    told = torch.where((least >= WHOLE * remaining)[:, None, None], step, solver_step)
    estimate = told.flatten(1).norm(dim=1) / (answer + told).flatten(1).norm(dim=1)
    return _Sides(lower * (1 - _SLACK) - _EVALUATION, upper * (1 + _SLACK) + _EVALUATION, estimate, size)


def _better(
    matrices: Matrices, residual: torch.Tensor, first: torch.Tensor, second: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of two approximations to the error that leaves a residual, what proves more, and how much it does."""
    by_first, by_second = (_projection(matrices, each, residual) for each in (first, second))
    better = by_second > by_first
    return torch.where(better[:, None, None], second, first), torch.maximum(by_first, by_second)


def _in_plane(
    matrices: Matrices, first: torch.Tensor, second: torch.Tensor, right_hand_side: torch.Tensor
) -> torch.Tensor:
    """Of all sums of multiples of two vectors, about the one that comes closest to ``A^{-1} c``."""
    (x, y), (of_x, of_y) = differences(first), differences(second)
    squares = matrices.energy(first), matrices.energy(second)
    product = inner(matrices.x * x, of_x) + inner(matrices.y * y, of_y)
    works = inner(right_hand_side, first), inner(right_hand_side, second)
    determinant = squares[0] * squares[1] - product * product
    shares = works[0] * squares[1] - works[1] * product, works[1] * squares[0] - works[0] * product
    of_first, of_second = ((share / determinant).nan_to_num(0.0, 0.0, 0.0)[:, None, None] for share in shares)
    return of_first * first + of_second * second


def _spread(matrices: Matrices, u: torch.Tensor) -> torch.Tensor:
    """Largest squared energy norm of a vector that is nowhere larger than u."""
    x = torch.nn.functional.pad(u.abs(), (1, 1))
    y = torch.nn.functional.pad(u.abs(), (0, 0, 1, 1))
    along_x, along_y = x[:, :, 1:] + x[:, :, :-1], y[:, 1:] + y[:, :-1]
    return inner(matrices.x, along_x**2) + inner(matrices.y, along_y**2)


def _projection(matrices: Matrices, v: torch.Tensor, right_hand_side: torch.Tensor) -> torch.Tensor:
    """``|(c, v)| / ||v||_A``, rounded down; 0 if v is of no use."""
    product = right_hand_side * v
    work = product.sum(dim=(1, 2)).abs() - _SLACK * product.abs().sum(dim=(1, 2))
    energy = matrices.energy(v)
    usable = (energy > _SMALLEST_SQUARE) & energy.isfinite() & work.isfinite()
    return torch.where(usable, work.clamp(min=0.0) / energy.sqrt() * (1 - _SLACK), 0.0)


def _least_size(matrices: Matrices, *candidates: torch.Tensor) -> torch.Tensor:
    """Lower bound of ``||u||_A``."""
    one = torch.ones_like(candidates[0])
    constant = matrices.solve_poisson(one[:1]).expand_as(one)
    sizes = [_projection(matrices, candidate, one) for candidate in (*candidates, constant)]
    return torch.stack(sizes).amax(dim=0)


def _remainder(matrices: Matrices, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Norm of the flux that carries the residual, and the largest entry that it fails to carry."""
    x, y = differences(matrices.solve_poisson(residual))
    x, y = matrices.constant_x * x, matrices.constant_y * y
    squares = (x**2 / matrices.x).sum(dim=(1, 2)) + (y**2 / matrices.y).sum(dim=(1, 2))
    terms = _gather_sizes(x, y) + residual.abs()
    defect = (residual - gather(x, y)).abs() + _EVALUATION * terms
    return squares.sqrt() * (1 + _SLACK), defect.amax(dim=(1, 2))


def _gather_sizes(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x, y = x.abs(), y.abs()
    return x[:, :, :-1] + x[:, :, 1:] + y[:, :-1] + y[:, 1:]


def _square_ratio(error: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    squared = error**2
    return torch.where((known + squared > 0) & known.isfinite(), squared / (known + squared), math.inf)
