"""A guaranteed bound of the energy error of any answer to ``A u = b``, from one Poisson solve.

Notation: ``A = G^T T G`` (``two_point_flux``), ``u`` its exact solution, ``x`` any answer, ``r = b - A x``,
``||v||_A^2 = sum_f T_f (G v)_f^2``, ``L = G^T Lf G`` the same matrix for a = 1, ``w = L^{-1} r`` by a sine
transform. Then::

    ||u - x||_A  <=  remainder,      remainder^2 = sum_f (Lf (G w)_f)^2 / T_f

Proof. The flux ``y = T G x + Lf G w`` satisfies ``G^T y = A x + r = b = G^T (T G u)``, so ``d = y - T G u``
has ``G^T d = 0`` and ``sum_f d_f (G (u - x))_f = 0``. With ``y - T G x = d + T G (u - x)``, Pythagoras in the
norm with weights 1 / T gives ``remainder^2 = ||d||_{1/T}^2 + ||u - x||_A^2``. No constant is unknown,
whatever x is.

To make it relative, ``||u||_A >= |(b, v)| / ||v||_A`` for every v, as (b, v) = (A u, v): taken are x, x after
a solver step, and L^{-1} b, which is never zero.

If the values leave rounded, to x + e with ``|e_i| <= rho |x_i|``, then ``||e||_A <= rho (sum_f T_f (|x_i| +
|x_j|)^2)^{1/2}`` is added. The same expression covers the rounding of the residual itself, which sums a few
face fluxes in float64.

Source: Prager, Synge, Quart. Appl. Math. 5 (1947); for finite volumes Jiranek, Strakos, Vohralik, SIAM J.
Sci. Comput. 32 (2010).
"""

# mypy: disable-error-code="no-untyped-def"
# numba infers the types of the kernels

from functools import lru_cache

import numpy as np
import scipy
from jaxtyping import Float64

from problems import multigrid, two_point_flux
from problems.compiled import compiled
from problems.grid import Grid
from problems.steady import ErrorBound
from problems.two_point_flux import Faces, Scheme

# a few units in the last place of float64, for the evaluation of the residual
_EVALUATION = 2.0**-50


def bound(
    faces: Faces, answer: Float64[np.ndarray, "y x"], grid: Grid, scheme: Scheme, rounding: float
) -> ErrorBound:
    """Bound of the relative error of ``answer`` to ``A u = b``, source 1, once rounded by ``rounding``."""
    right_hand_side = two_point_flux.right_hand_side(1.0, grid)
    residual = right_hand_side - two_point_flux.apply(faces, answer)
    correction = _correction(faces, residual, grid, scheme)
    better = answer + correction
    upper = _remainder(faces, residual, grid, scheme) + (rounding + _EVALUATION) * _energy_norm_of_rounding(
        faces, answer
    )
    candidates = (answer, better, _constant_coefficient_solution(grid, scheme))
    size = max(_lower_bound_of_energy(faces, v, right_hand_side) for v in candidates)
    l2_estimate = np.sqrt(np.sum(correction**2) / np.sum(better**2))
    return ErrorBound("guaranteed", "energy", 0.0, upper / size, float(l2_estimate), 0)


def _correction(
    faces: Faces, residual: Float64[np.ndarray, "y x"], grid: Grid, scheme: Scheme
) -> Float64[np.ndarray, "y x"]:
    if multigrid.suits(grid.shape):
        correction = multigrid.correct(faces, residual, scheme)
        # its single precision does not reach beyond a contrast of 1e12
        if np.isfinite(correction).all():
            return correction
    direction = _solve_poisson(residual, grid, scheme)
    energy = _sum_of_squares(faces.x, faces.y, direction, -1.0)
    return direction * (float(np.sum(residual * direction)) / energy if energy > 0 else 0.0)


def _remainder(faces: Faces, residual: Float64[np.ndarray, "y x"], grid: Grid, scheme: Scheme) -> float:
    potential, squared = _solve_poisson(residual, grid, scheme), _squared_constant_faces(grid, scheme)
    return float(np.sqrt(_sum_of_squares(squared.x / faces.x, squared.y / faces.y, potential, -1.0)))


def _energy_norm_of_rounding(faces: Faces, answer: Float64[np.ndarray, "y x"]) -> float:
    """Largest energy norm of a perturbation that is nowhere larger than the answer."""
    return float(np.sqrt(_sum_of_squares(faces.x, faces.y, np.abs(answer), 1.0)))


def _lower_bound_of_energy(
    faces: Faces, v: Float64[np.ndarray, "y x"], right_hand_side: Float64[np.ndarray, "y x"]
) -> float:
    """``|(b, v)| / ||v||_A``."""
    energy = _sum_of_squares(faces.x, faces.y, v, -1.0)
    return abs(float(np.sum(right_hand_side * v))) / float(np.sqrt(energy)) if energy > 0 else 0.0


def _solve_poisson(
    right_hand_side: Float64[np.ndarray, "y x"], grid: Grid, scheme: Scheme
) -> Float64[np.ndarray, "y x"]:
    """``L^{-1} b``."""
    spectrum = scipy.fft.dstn(right_hand_side, scheme.sine_transform, norm="ortho")
    spectrum /= _eigenvalues(grid, scheme)
    return np.asarray(scipy.fft.idstn(spectrum, scheme.sine_transform, norm="ortho", overwrite_x=True))


@lru_cache(maxsize=16)
def _eigenvalues(grid: Grid, scheme: Scheme) -> Float64[np.ndarray, "y x"]:
    """Eigenvalues of L, in the order of the sine transform."""
    (ny, nx), (hy, hx) = grid.shape, grid.spacing
    # the wave of number k vanishes on two planes that lie n - 1 + 2 wall_distance cells apart
    walls = 2 * scheme.wall_distance - 1
    along_y = (hx / hy) * 4 * np.sin(0.5 * np.pi * np.arange(1, ny + 1) / (ny + walls)) ** 2
    along_x = (hy / hx) * 4 * np.sin(0.5 * np.pi * np.arange(1, nx + 1) / (nx + walls)) ** 2
    return np.asarray(along_y[:, None] + along_x)


@lru_cache(maxsize=16)
def _squared_constant_faces(grid: Grid, scheme: Scheme) -> Faces:
    """``Lf^2``."""
    constant = two_point_flux.transmissibilities(np.ones(grid.shape), grid, scheme)
    return Faces(constant.x**2, constant.y**2)


@lru_cache(maxsize=16)
def _constant_coefficient_solution(grid: Grid, scheme: Scheme) -> Float64[np.ndarray, "y x"]:
    return _solve_poisson(two_point_flux.right_hand_side(1.0, grid), grid, scheme)


@compiled()
def _sum_of_squares(weight_x, weight_y, u, sign):
    """Sum over the faces of ``weight (u_behind + sign u_before)^2``, with u = 0 outside the walls."""
    ny, nx = u.shape
    total = 0.0
    for i in range(ny):
        total += weight_x[i, 0] * u[i, 0] ** 2 + weight_x[i, nx] * u[i, nx - 1] ** 2
        for j in range(nx - 1):
            total += weight_x[i, j + 1] * (u[i, j + 1] + sign * u[i, j]) ** 2
    for j in range(nx):
        total += weight_y[0, j] * u[0, j] ** 2 + weight_y[ny, j] * u[ny - 1, j] ** 2
    for i in range(ny - 1):
        for j in range(nx):
            total += weight_y[i + 1, j] * (u[i + 1, j] + sign * u[i, j]) ** 2
    return total
