"""How far an approximation x is from the solution of ``A u = c``, guaranteed, rounding included.

Notation: ``A = G^T T G`` (``two_point_flux``), ``||v||_A^2 = sum_f T_f (G v)_f^2``, ``r = c - A x``, ``L =
G^T Lf G`` the same matrix for a = 1, ``e = A^{-1} 1`` the solution for a source of 1 in each cell. Three
statements, for every x and every c:

1. Equilibrated flux. ``||u - x||_A <= remainder`` with ``remainder^2 = sum_f (Lf (G w)_f)^2 / T_f`` and
   ``w = L^{-1} r``. Proof: the flux ``y = T G x + Lf G w`` has ``G^T y = A x + r = c = G^T (T G u)``, so ``d
   = y - T G u`` has ``G^T d = 0`` and ``sum_f d_f (G (u - x))_f = 0``. With ``y - T G x = d + T G (u - x)``,
   Pythagoras in the norm with weights 1 / T gives ``remainder^2 = ||d||_{1/T}^2 + ||u - x||_A^2``.
2. Monotonicity. If ``|s_i| <= m`` in each cell, then ``||A^{-1} s||_A <= m ||e||_A``. Proof: A is an
   M-matrix, ``A^{-1} >= 0``, so ``s^T A^{-1} s <= |s|^T A^{-1} |s| <= m^2 1^T A^{-1} 1``. With s = r it is a
   second bound of the error, sharp where r is smooth and the contrast large.
3. Whatever rounding does to the evaluation of r, and whatever w lacks of solving its equation, is a vector s
   with a known largest entry m: by 2 it costs ``m ||e||_A`` and no more. Entries of r are sums of a few face
   fluxes, so m is a few units in the last place of these.

Source: Prager, Synge, Quart. Appl. Math. 5 (1947); for finite volumes Jiranek, Strakos, Vohralik, SIAM J.
Sci. Comput. 32 (2010); M-matrices: Berman, Plemmons (1994), chapter 6.
"""

# mypy: disable-error-code="no-untyped-def"
# numba infers the types of the kernels

import math
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import final

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

from problems import poisson
from problems.compiled import compiled
from problems.grid import Grid
from problems.two_point_flux import Faces, Scheme

# units of rounding: an entry of the residual is a sum of four fluxes of three operations each
_EVALUATION = 2.0**-49
# transmissibilities themselves are correct to a few units of rounding
_COEFFICIENTS = 2.0**-49
# squares below this may have lost digits to underflow
_SMALLEST_SQUARE = 1e-280


@final
@dataclass(frozen=True)
class Assessment:
    """What is known of the error of ``values`` as a solution of ``A u = c``; ``e = A^{-1} 1``.

    Attributes:
        values: x.
        residual: c - A x.
        energy: ||x||_A, to rounding.
        work: (c, x), to ``work_slack``.
        work_slack: largest error of ``work``.
        spread: largest energy norm of a vector that is nowhere larger than x.
        remainder: ||u - x||_A <= remainder + rounding ||e||_A.
        rounding: see there.
        largest: ||u - x||_A <= largest ||e||_A.
    """

    values: Float64[np.ndarray, "y x"]
    residual: Float64[np.ndarray, "y x"]
    energy: float
    work: float
    work_slack: float
    spread: float
    remainder: float
    rounding: float
    largest: float

    @property
    def least_size(self) -> float:
        """Lower bound of ``||u||_A``: ``(c, x) / ||x||_A``, since (c, x) = (A u, x)."""
        # a power that overflows would raise
        if not (_SMALLEST_SQUARE < self.energy * self.energy < math.inf):
            return 0.0
        least = abs(self.work) - self.work_slack
        return least / self.energy if least > 0 else 0.0

    @property
    def off_by_scale(self) -> float:
        """The energy norm of the error's part along x, to rounding: ``|(r, x)| / ||x||_A``; 0: unknown."""
        if not (_SMALLEST_SQUARE < self.energy * self.energy < math.inf):
            return 0.0
        return abs(self.work - self.energy * self.energy) / self.energy

    def error(self, size: float) -> float:
        """Upper bound of ``||u - x||_A``, ``size`` one of ``||e||_A``."""
        bounds = (self.remainder + self.rounding * size, self.largest * size)
        least = min((bound for bound in bounds if not math.isnan(bound)), default=math.inf)
        return least + _COEFFICIENTS * self.energy if math.isfinite(self.energy) else math.inf


def assess(
    faces: Faces,
    grid: Grid,
    scheme: Scheme,
    values: Float64[np.ndarray, "y x"],
    right_hand_side: Float64[np.ndarray, "y x"],
) -> Assessment:
    """The assessment of ``values``."""
    x = _with_rim(values)
    residual, terms = np.empty(grid.shape), np.empty(grid.shape)
    _residual(faces.x, faces.y, x, right_hand_side, residual, terms)
    evaluation = _EVALUATION * float(terms.max())
    energy, spread, work, terms_of_work = _sums(faces.x, faces.y, x, right_hand_side)
    count = _relative_slack(residual.size)
    remainder, rounding = _remainder(faces, grid, scheme, residual)
    return Assessment(
        values,
        residual,
        math.sqrt(energy) * (1 + count),
        work,
        count * terms_of_work,
        math.sqrt(spread) * (1 + count),
        remainder * (1 + count),
        rounding + evaluation,
        max(float(residual.max()), -float(residual.min())) + evaluation,
    )


def _remainder(
    faces: Faces, grid: Grid, scheme: Scheme, residual: Float64[np.ndarray, "y x"]
) -> tuple[float, float]:
    """Norm of the flux that carries the residual, and the largest entry that it fails to carry."""
    potential, defect = _with_rim(poisson.solve(residual, grid, scheme)), np.empty(grid.shape)
    ratios = _ratios(grid, scheme)
    _defect(potential, residual, defect, *ratios)
    return math.sqrt(_weighted_squares(faces.x, faces.y, potential, *ratios)), float(defect.max())


def _ratios(grid: Grid, scheme: Scheme) -> tuple[float, float, float]:
    """Constant coefficients of the faces across x, across y, and how many times larger they are at a wall."""
    hy, hx = grid.spacing
    return hy / hx, hx / hy, 1.0 / scheme.wall_distance


# 8 MiB each on the largest grids
@lru_cache(maxsize=4)
def constant_solution(grid: Grid, scheme: Scheme) -> Float64[np.ndarray, "y x"]:
    """``L^{-1} 1``."""
    return poisson.solve(ones(grid.shape), grid, scheme)


def project(
    faces: Faces, v: Float64[np.ndarray, "y x"], right_hand_side: Float64[np.ndarray, "y x"]
) -> tuple[float, float]:
    """The multiple of v that comes closest to ``A^{-1} c``, and its energy norm, rounded down.

    ``|(c, v)| / ||v||_A`` is a lower bound of ``||A^{-1} c||_A``; 0 if v is of no use.
    """
    energy, _, work, terms = _sums(faces.x, faces.y, _with_rim(v), right_hand_side)
    if not _SMALLEST_SQUARE < energy < math.inf or not math.isfinite(work):
        return 0.0, 0.0
    slack = _relative_slack(v.size)
    least = max(abs(work) - slack * terms, 0.0) / (math.sqrt(energy) * (1 + slack))
    return work / energy, least


def best_in_plane(
    faces: Faces, direction: Float64[np.ndarray, "y x"], assessed: Assessment
) -> tuple[float, float]:
    """Which multiples of a direction and of x together come closest to the error of x, about; 0 if any do."""
    wide, x = _with_rim(direction), _with_rim(assessed.values)
    square, product, along, work = _products(faces.x, faces.y, wide, x, assessed.residual)
    own = assessed.energy * assessed.energy
    determinant = square * own - product * product
    if not 0 < determinant < math.inf:
        return 0.0, 0.0
    return (along * own - work * product) / determinant, (work * square - along * product) / determinant


def energy_norm(faces: Faces, v: Float64[np.ndarray, "y x"]) -> float:
    """``||v||_A``, rounded up."""
    return math.sqrt(_sums(faces.x, faces.y, _with_rim(v), v)[0]) * (1 + _relative_slack(v.size))


def _relative_slack(count: int) -> float:
    """What rounding may change, relatively, in a sum of a few times ``count`` positive numbers."""
    return 8 * count * sys.float_info.epsilon


def carried_size(faces: Faces, grid: Grid, scheme: Scheme) -> float:
    """An upper bound of ``||e||_A`` without any approximation to e: the remainder of x = 0."""
    potential, ratios = _with_rim(constant_solution(grid, scheme)), _ratios(grid, scheme)
    squares = _weighted_squares(faces.x, faces.y, potential, *ratios)
    # the potential itself is rounded, by less than this
    return math.sqrt(squares) * (1 + 1e-9)


def flux(faces: Faces, grid: Grid, scheme: Scheme, assessed: Assessment) -> Faces:
    """``T G x + Lf G w``, the flux that leaves nothing of the equation."""
    potential = _with_rim(poisson.solve(assessed.residual, grid, scheme))
    carried = Faces(np.empty_like(faces.x), np.empty_like(faces.y))
    x, ratios = _with_rim(assessed.values), _ratios(grid, scheme)
    _carry(faces.x, faces.y, x, potential, *ratios, carried.x, carried.y)
    return carried


@lru_cache(maxsize=4)
def ones(shape: tuple[int, int]) -> Float64[np.ndarray, "y x"]:
    """A right-hand side of 1 in each cell."""
    return np.ones(shape)


def _with_rim(values: Float64[np.ndarray, "y x"]) -> NDArray[np.float64]:
    """The values inside a rim of zeros, one cell wide."""
    wide = np.zeros((values.shape[0] + 2, values.shape[1] + 2))
    wide[1:-1, 1:-1] = values
    return wide


# sums of products of differences: reordering them could cancel what the differences kept
_EXACT = {"contract"}


@compiled(fastmath=_EXACT)
def _residual(tx, ty, x, right_hand_side, residual, terms):
    """``c - A x``, and the sum of the absolute values of what is added up."""
    for i in range(residual.shape[0]):
        for j in range(residual.shape[1]):
            here = x[i + 1, j + 1]
            left, right = tx[i, j] * (here - x[i + 1, j]), tx[i, j + 1] * (here - x[i + 1, j + 2])
            below, above = ty[i, j] * (here - x[i, j + 1]), ty[i + 1, j] * (here - x[i + 2, j + 1])
            residual[i, j] = right_hand_side[i, j] - ((left + right) + (below + above))
            terms[i, j] = abs(right_hand_side[i, j]) + abs(left) + abs(right) + abs(below) + abs(above)


@compiled()
def _sums(tx, ty, x, right_hand_side):
    """``sum T (G x)^2``, ``sum T (|x_i| + |x_j|)^2``, ``(c, x)`` and the sum of its absolute terms."""
    ny, nx = right_hand_side.shape
    energy, spread, work, terms = 0.0, 0.0, 0.0, 0.0
    for i in range(ny):
        for j in range(nx):
            here, left, below = x[i + 1, j + 1], x[i + 1, j], x[i, j + 1]
            energy += tx[i, j] * (here - left) ** 2 + ty[i, j] * (here - below) ** 2
            spread += tx[i, j] * (abs(here) + abs(left)) ** 2 + ty[i, j] * (abs(here) + abs(below)) ** 2
            work += right_hand_side[i, j] * here
            terms += abs(right_hand_side[i, j] * here)
        last = tx[i, nx] * x[i + 1, nx] ** 2
        energy += last
        spread += last
    for j in range(nx):
        last = ty[ny, j] * x[ny, j + 1] ** 2
        energy += last
        spread += last
    return energy, spread, work, terms


@compiled()
def _products(tx, ty, d, x, residual):
    """``sum T (G d)^2``, ``sum T (G d)(G x)``, ``(r, d)`` and ``(r, x)``."""
    ny, nx = residual.shape
    square, product, along, work = 0.0, 0.0, 0.0, 0.0
    for i in range(ny):
        for j in range(nx):
            here, there = d[i + 1, j + 1], x[i + 1, j + 1]
            of_x, of_y = tx[i, j] * (here - d[i + 1, j]), ty[i, j] * (here - d[i, j + 1])
            square += of_x * (here - d[i + 1, j]) + of_y * (here - d[i, j + 1])
            product += of_x * (there - x[i + 1, j]) + of_y * (there - x[i, j + 1])
            along += residual[i, j] * here
            work += residual[i, j] * there
        last = tx[i, nx] * d[i + 1, nx]
        square += last * d[i + 1, nx]
        product += last * x[i + 1, nx]
    for j in range(nx):
        last = ty[ny, j] * d[ny, j + 1]
        square += last * d[ny, j + 1]
        product += last * x[ny, j + 1]
    return square, product, along, work


@compiled()
def _weighted_squares(tx, ty, w, ratio_x, ratio_y, wall):
    """``sum_f (Lf (G w)_f)^2 / T_f``."""
    ny, nx = tx.shape[0], ty.shape[1]
    inside_x, inside_y, at_x, at_y = 0.0, 0.0, 0.0, 0.0
    for i in range(ny):
        at_x += w[i + 1, 1] ** 2 / tx[i, 0] + w[i + 1, nx] ** 2 / tx[i, nx]
        for j in range(1, nx):
            inside_x += (w[i + 1, j + 1] - w[i + 1, j]) ** 2 / tx[i, j]
    for i in range(1, ny):
        for j in range(nx):
            inside_y += (w[i + 1, j + 1] - w[i, j + 1]) ** 2 / ty[i, j]
    for j in range(nx):
        at_y += w[1, j + 1] ** 2 / ty[0, j] + w[ny, j + 1] ** 2 / ty[ny, j]
    return ratio_x**2 * (inside_x + wall**2 * at_x) + ratio_y**2 * (inside_y + wall**2 * at_y)


@compiled(fastmath=_EXACT)
def _defect(w, right_hand_side, defect, ratio_x, ratio_y, wall):
    """``r - L w``, with what its own evaluation may hide added to its absolute value."""
    ny, nx = right_hand_side.shape
    for i in range(ny):
        below_factor = wall if i == 0 else 1.0
        above_factor = wall if i == ny - 1 else 1.0
        for j in range(nx):
            left_factor = wall if j == 0 else 1.0
            right_factor = wall if j == nx - 1 else 1.0
            here = w[i + 1, j + 1]
            left = ratio_x * left_factor * (here - w[i + 1, j])
            right = ratio_x * right_factor * (here - w[i + 1, j + 2])
            below = ratio_y * below_factor * (here - w[i, j + 1])
            above = ratio_y * above_factor * (here - w[i + 2, j + 1])
            terms = abs(right_hand_side[i, j]) + abs(left) + abs(right) + abs(below) + abs(above)
            found = right_hand_side[i, j] - ((left + right) + (below + above))
            defect[i, j] = abs(found) + _EVALUATION * terms


@compiled()
def _carry(tx, ty, x, w, ratio_x, ratio_y, wall, flux_x, flux_y):
    ny, nx = tx.shape[0], ty.shape[1]
    for i in range(ny):
        for j in range(nx + 1):
            factor = ratio_x * (wall if j == 0 or j == nx else 1.0)
            flux_x[i, j] = factor * (w[i + 1, j + 1] - w[i + 1, j])
            flux_x[i, j] += tx[i, j] * (x[i + 1, j + 1] - x[i + 1, j])
    for i in range(ny + 1):
        factor = ratio_y * (wall if i == 0 or i == ny else 1.0)
        for j in range(nx):
            flux_y[i, j] = factor * (w[i + 1, j + 1] - w[i, j + 1])
            flux_y[i, j] += ty[i, j] * (x[i + 1, j + 1] - x[i, j + 1])
