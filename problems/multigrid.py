"""Conjugate gradients preconditioned by geometric multigrid, for the matrices of ``two_point_flux``.

One V-cycle is one preconditioning step: a red-black Gauss-Seidel sweep down, its mirror image up, so that the
preconditioner is symmetric. Coarse cells are 2 x 2 fine ones. The transmissibility of a coarse face adds,
over its two fine rows, the series of what lies between the coarse centres. Prolongation is bilinear, with the
ghost value outside the wall that makes u = 0 where the scheme has it (odd reflection); restriction is its
transpose. The coarsest grid, the first that is small or has an odd side, is solved by a banded Cholesky
factorisation.

A V-cycle alone converges slowly and diverges at contrast 1e6; inside conjugate gradients it is robust. Binary
media of contrast 1e3 and more take too many iterations all the same: past ``MAXIMUM_ITERATIONS`` the sparse
direct solver takes over.

The V-cycle computes in float32, which halves its memory traffic and costs no iteration; the conjugate
gradients around it, and so the answer and its residual, are float64. Arrays have a rim of one cell on each
side, so that no kernel needs a branch at a wall.

Source: Trottenberg, Oosterlee, Schueller, *Multigrid* (2001), sections 2.8 and 7.7; Alcouffe et al. 1981 for
the coarse faces.
"""

# mypy: disable-error-code="no-untyped-def"
# numba infers the types of the kernels

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import scipy
from jaxtyping import Float64
from numpy.typing import NDArray

from problems.compiled import compiled
from problems.two_point_flux import Faces, Scheme, apply, assemble

MAXIMUM_ITERATIONS = 40
# floating-point operations of the coarsest grid's factorisation beyond which the direct solver is the
# better choice
_MAXIMUM_COARSE_WORK = 4_000_000
_SMALLEST_SIDE = 4
# literals would turn single precision into double
_ONE, _TWO, _THREE = np.float32(1), np.float32(2), np.float32(3)
_ONE_16, _THREE_16 = np.float32(1 / 16), np.float32(3 / 16)


class Singular(ArithmeticError):
    """The matrix cannot be factorised in float64."""


@dataclass(frozen=True)
class LinearSolution:
    """Answer of a linear solver.

    Attributes:
        values: the solution.
        iterations: conjugate gradient iterations, 0 for the direct solver.
        residual: ||b - A u||_2 / ||b||_2, computed from ``values``.
        method: what made it.
    """

    values: Float64[np.ndarray, "y x"]
    iterations: int
    residual: float
    method: Literal["multigrid-cg", "direct"]


def solve(
    faces: Faces, right_hand_side: Float64[np.ndarray, "y x"], scheme: Scheme, tolerance: float
) -> LinearSolution:
    """Solves ``A u = b`` to a relative residual, by multigrid if that converges, else directly."""
    if suits(right_hand_side.shape):
        values, iterations, residual = _iterate(faces, right_hand_side, scheme, tolerance, MAXIMUM_ITERATIONS)
        if iterations <= MAXIMUM_ITERATIONS:
            return LinearSolution(values, iterations, residual, "multigrid-cg")
    values = solve_directly(faces, right_hand_side)
    defect = right_hand_side - apply(faces, values)
    return LinearSolution(values, 0, float(np.sqrt(np.sum(defect**2) / np.sum(right_hand_side**2))), "direct")


def solve_directly(faces: Faces, right_hand_side: Float64[np.ndarray, "y x"]) -> Float64[np.ndarray, "y x"]:
    """Solves ``A u = b`` by a sparse factorisation.

    Raises:
        Singular: it has none in float64.
    """
    matrix, options = assemble(faces), {"SymmetricMode": True}
    try:
        factor = scipy.sparse.linalg.splu(
            matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=options
        )
    except RuntimeError as error:
        raise Singular(f"the matrix is singular ({error})") from error
    return np.asarray(factor.solve(right_hand_side.ravel())).reshape(right_hand_side.shape)


def correct(faces: Faces, residual: Float64[np.ndarray, "y x"], scheme: Scheme) -> Float64[np.ndarray, "y x"]:
    """The first step of the conjugate gradients for this residual: a V-cycle times its best step length."""
    return _iterate(faces, residual, scheme, 0.0, 1)[0]


def suits(shape: tuple[int, ...]) -> bool:
    """Whether halving leads to a grid that is small enough to be factorised."""
    ny, nx = _shapes(shape)[-1]
    return ny * nx * nx * nx <= _MAXIMUM_COARSE_WORK


def _shapes(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Cells (ny, nx) of the levels, the finest first."""
    ny, nx = shape
    shapes = [(ny, nx)]
    while ny % 2 == 0 and nx % 2 == 0 and min(ny, nx) > _SMALLEST_SIDE:
        ny, nx = ny // 2, nx // 2
        shapes.append((ny, nx))
    return shapes


@dataclass(frozen=True)
class _Layout:
    """What the kernels know about a grid.

    Attributes:
        levels: rows (ny, nx, offset) of the levels in a hierarchy; the last row's offset is its size.
        ghosts: outer over inner value at a wall, for each level, of a linear function that vanishes where
            the scheme has u = 0.
        masks: 1 in cells of even and of odd x.
    """

    levels: NDArray[np.int64]
    ghosts: NDArray[np.float32]
    masks: NDArray[np.float32]


@lru_cache(maxsize=32)
def _layout(shape: tuple[int, int], wall_distance: float) -> _Layout:
    shapes = _shapes(shape)
    offsets = np.cumsum([0] + [(ny + 2) * (nx + 2) for ny, nx in shapes])
    levels = np.array([(*size, offset) for size, offset in zip([*shapes, (0, 0)], offsets, strict=True)])
    # from the wall to u = 0 in cells of each level
    outside = (wall_distance - 0.5) / 2.0 ** np.arange(len(shapes))
    ghosts = ((outside - 0.5) / (outside + 0.5)).astype(np.float32)
    masks = np.arange(shape[1] + 2) % 2 == [[0], [1]]
    return _Layout(levels, ghosts, masks.astype(np.float32))


def _iterate(
    faces: Faces, right_hand_side: Float64[np.ndarray, "y x"], scheme: Scheme, tolerance: float, limit: int
) -> tuple[Float64[np.ndarray, "y x"], int, float]:
    """Solution, iterations (``limit + 1``: tolerance not reached) and relative residual."""
    ny, nx = right_hand_side.shape
    layout = _layout((ny, nx), scheme.wall_distance)
    coarsest_y, coarsest_x, _ = (int(n) for n in layout.levels[-2])
    hierarchies = np.zeros((5, int(layout.levels[-1, 2])), np.float32)
    vectors = np.zeros((7, ny + 2, nx + 2))
    vectors[0, 1:-1, 1:-1] = right_hand_side
    band = np.zeros((coarsest_y * coarsest_x, coarsest_x + 1))
    row, flat = np.zeros(nx + 2, np.float32), np.zeros(coarsest_y * coarsest_x)
    iterations, residual = _conjugate_gradients(
        faces.x,
        faces.y,
        layout.levels,
        layout.ghosts,
        layout.masks,
        hierarchies,
        vectors,
        band,
        row,
        flat,
        tolerance,
        limit,
    )
    return vectors[1, 1:-1, 1:-1].copy(), iterations, residual


@compiled()
def _on(level, levels, hierarchy):
    """The part of a hierarchy that belongs to a level, with its rim."""
    offset, end = levels[level, 2], levels[level + 1, 2]
    return hierarchy[offset:end].reshape((levels[level, 0] + 2, levels[level, 1] + 2))


@compiled(forceinline=True)
def _level(k, levels, tx, ty, inverse, b, u):
    """What a sweep on level k works with."""
    return (
        _on(k, levels, tx),
        _on(k, levels, ty),
        _on(k, levels, inverse),
        _on(k, levels, b),
        _on(k, levels, u),
    )


@compiled()
def _load(faces_x, faces_y, tx, ty):
    """Copies transmissibilities into arrays with rims; ``t[i, j]`` belongs to the face before cell (i, j)."""
    ny, nx = faces_x.shape[0], faces_y.shape[1]
    for i in range(ny):
        for j in range(nx + 1):
            tx[i + 1, j + 1] = faces_x[i, j]
    for i in range(ny + 1):
        for j in range(nx):
            ty[i + 1, j + 1] = faces_y[i, j]


@compiled()
def _invert_diagonal(tx, ty, inverse):
    for i in range(1, tx.shape[0] - 1):
        for j in range(1, tx.shape[1] - 1):
            inverse[i, j] = _ONE / (tx[i, j] + tx[i, j + 1] + ty[i, j] + ty[i + 1, j])


@compiled(forceinline=True)
def _in_series(before, face, behind):
    """Transmissibility of half of a face, a whole one and half of another in a row."""
    return _TWO * before * face * behind / (_TWO * before * behind + face * (before + behind))


@compiled(forceinline=True)
def _at_wall(face, inside):
    """Transmissibility of a wall face and half of the face inside it in a row."""
    return _TWO * face * inside / (_TWO * inside + face)


@compiled()
def _coarsen(tx, ty, coarse_tx, coarse_ty, row):
    ny, nx = coarse_tx.shape[0] - 2, coarse_tx.shape[1] - 2
    for i in range(1, ny + 1):
        k = 2 * i
        # counting from 0 lets the compiler vectorise
        for j in range(2 * nx - 1):
            row[j + 2] = _in_series(tx[k - 1, j + 1], tx[k - 1, j + 2], tx[k - 1, j + 3]) + _in_series(
                tx[k, j + 1], tx[k, j + 2], tx[k, j + 3]
            )
        row[1] = _at_wall(tx[k - 1, 1], tx[k - 1, 2]) + _at_wall(tx[k, 1], tx[k, 2])
        end = 2 * nx
        row[end + 1] = _at_wall(tx[k - 1, end + 1], tx[k - 1, end]) + _at_wall(tx[k, end + 1], tx[k, end])
        for j in range(nx + 1):
            coarse_tx[i, j + 1] = row[2 * j + 1]
    for i in range(1, ny + 2):
        k = 2 * i - 1
        for j in range(1, 2 * nx + 1):
            if i == 1:
                row[j] = _at_wall(ty[1, j], ty[2, j])
            elif i == ny + 1:
                row[j] = _at_wall(ty[k, j], ty[k - 1, j])
            else:
                row[j] = _in_series(ty[k - 1, j], ty[k, j], ty[k + 1, j])
        for j in range(nx):
            coarse_ty[i, j + 1] = row[2 * j + 1] + row[2 * j + 2]


@compiled()
def _factorise(tx, ty, band):
    """Cholesky factor of a level: ``band[i, nx - i + j]`` is L[i, j], the diagonal inverted."""
    ny, nx = tx.shape[0] - 2, tx.shape[1] - 2
    for i in range(ny * nx):
        y, x = i // nx + 1, i % nx + 1
        band[i, nx] = tx[y, x] + tx[y, x + 1] + ty[y, x] + ty[y + 1, x]
        if y > 1:
            band[i, 0] -= ty[y, x]
        if x > 1:
            band[i, nx - 1] -= tx[y, x]
        first = max(0, i - nx)
        for j in range(first, i + 1):
            total = band[i, nx - i + j]
            for k in range(first, j):
                total -= band[i, nx - i + k] * band[j, nx - j + k]
            band[i, nx - i + j] = total * band[j, nx] if j < i else 1.0 / np.sqrt(total)


@compiled()
def _solve_coarsest(band, b, u, flat):
    ny, nx = b.shape[0] - 2, b.shape[1] - 2
    for i in range(ny * nx):
        total = np.float64(b[i // nx + 1, i % nx + 1])
        for j in range(max(0, i - nx), i):
            total -= band[i, nx - i + j] * flat[j]
        flat[i] = total * band[i, nx]
    for i in range(ny * nx - 1, -1, -1):
        value = flat[i] * band[i, nx]
        u[i // nx + 1, i % nx + 1] = value
        for j in range(max(0, i - nx), i):
            flat[j] -= band[i, nx - i + j] * value


@compiled(forceinline=True)
def _relax_row(tx, ty, inverse, b, u, i, mask, row):
    """Gauss-Seidel on the cells of row i where ``mask`` is 1."""
    # computing every cell and keeping half of them is what vectorises
    nx = u.shape[1] - 2
    for j in range(nx):
        row[j + 1] = inverse[i, j + 1] * (
            b[i, j + 1]
            + tx[i, j + 1] * u[i, j]
            + tx[i, j + 2] * u[i, j + 2]
            + ty[i, j + 1] * u[i - 1, j + 1]
            + ty[i + 1, j + 1] * u[i + 1, j + 1]
        )
    for j in range(nx):
        u[i, j + 1] += mask[j + 1] * (row[j + 1] - u[i, j + 1])


@compiled(forceinline=True)
def _restrict_row(tx, ty, u, i, mask, ghost, coarse, row):
    """Adds the residual of row i to the coarse right-hand side by the transpose of the bilinear prolongation.

    After a red and a black sweep from zero, it is ``sum_f T_f u_neighbor`` in red cells, where ``mask`` is 1,
    and 0 in black ones.
    """
    ny, nx = coarse.shape[0] - 2, coarse.shape[1] - 2
    for j in range(2 * nx):
        row[j + 1] = mask[j + 1] * (
            tx[i, j + 1] * u[i, j]
            + tx[i, j + 2] * u[i, j + 2]
            + ty[i, j + 1] * u[i - 1, j + 1]
            + ty[i + 1, j + 1] * u[i + 1, j + 1]
        )
    row[0], row[2 * nx + 1] = ghost * row[1], ghost * row[2 * nx]
    near = (i + 1) // 2
    far = near - 1 if i % 2 == 1 else near + 1
    near_weight, far_weight = _THREE_16, _ONE_16
    if far < 1 or far > ny:
        # the rim stands for ghost times what is inside
        near_weight, far_weight = _THREE_16 + ghost * _ONE_16, np.float32(0.0)
    # (1, 3, 3, 1) is (1, 1) three times, and that vectorises
    for j in range(2 * nx + 1):
        row[j] = row[j] + row[j + 1]
    for j in range(2 * nx):
        row[j] = row[j] + row[j + 1]
    for j in range(nx):
        total = row[2 * j] + row[2 * j + 1]
        coarse[near, j + 1] += near_weight * total
        coarse[far, j + 1] += far_weight * total


@compiled()
def _descend(level, masks, ghost, coarse_b, row):
    """A red and a black sweep from u = 0 and the restriction of the residual, in one pass over memory."""
    tx, ty, inverse, b, u = level
    ny, nx = u.shape[0] - 2, u.shape[1] - 2
    for i in range(coarse_b.shape[0]):
        for j in range(coarse_b.shape[1]):
            coarse_b[i, j] = 0.0
    for i in range(1, ny + 3):
        if i <= ny:
            for j in range(1, nx + 1):
                u[i, j] = b[i, j] * inverse[i, j]
        if 1 <= i - 1 <= ny:
            _relax_row(tx, ty, inverse, b, u, i - 1, masks[i % 2], row)
        if i - 2 >= 1:
            _restrict_row(tx, ty, u, i - 2, masks[i % 2], ghost, coarse_b, row)


@compiled(forceinline=True)
def _prolong_row(coarse, u, i, ghost, row):
    """Adds the bilinear interpolation of ``coarse`` to row i."""
    nx = coarse.shape[1] - 2
    near = (i + 1) // 2
    far = near - 1 if i % 2 == 1 else near + 1
    near_weight, far_weight = _THREE_16, _ONE_16
    if far < 1 or far > coarse.shape[0] - 2:
        near_weight, far_weight = _THREE_16 + ghost * _ONE_16, np.float32(0.0)
    for j in range(nx + 2):
        row[j] = near_weight * coarse[near, j] + far_weight * coarse[far, j]
    row[0], row[nx + 1] = ghost * row[1], ghost * row[nx]
    for j in range(nx):
        u[i, 2 * j + 1] += _THREE * row[j + 1] + row[j]
        u[i, 2 * j + 2] += _THREE * row[j + 1] + row[j + 2]


@compiled()
def _ascend(level, masks, ghost, coarse_u, row):
    """The prolongation of the coarse correction, a black and a red sweep, in one pass over memory."""
    tx, ty, inverse, b, u = level
    ny = u.shape[0] - 2
    for i in range(1, ny + 3):
        if i <= ny:
            _prolong_row(coarse_u, u, i, ghost, row)
        if 1 <= i - 1 <= ny:
            _relax_row(tx, ty, inverse, b, u, i - 1, masks[i % 2], row)
        if i - 2 >= 1:
            _relax_row(tx, ty, inverse, b, u, i - 2, masks[i % 2], row)


@compiled()
def _cycle(levels, ghosts, masks, tx, ty, inverse, b, u, band, row, flat):
    """One V-cycle: from ``b`` on the finest level to ``u`` there."""
    coarsest = levels.shape[0] - 2
    for k in range(coarsest):
        level = _level(k, levels, tx, ty, inverse, b, u)
        _descend(level, masks, ghosts[k + 1], _on(k + 1, levels, b), row)
    _solve_coarsest(band, _on(coarsest, levels, b), _on(coarsest, levels, u), flat)
    for k in range(coarsest - 1, -1, -1):
        level = _level(k, levels, tx, ty, inverse, b, u)
        _ascend(level, masks, ghosts[k + 1], _on(k + 1, levels, u), row)


@compiled()
def _dot(a, b):
    total = 0.0
    for i in range(1, a.shape[0] - 1):
        for j in range(1, a.shape[1] - 1):
            total += a[i, j] * b[i, j]
    return total


@compiled()
def _multiply(tx, ty, p, product):
    """``A p`` into ``product``; returns (p, A p)."""
    total = 0.0
    for i in range(1, p.shape[0] - 1):
        for j in range(1, p.shape[1] - 1):
            value = (
                tx[i, j] * (p[i, j] - p[i, j - 1])
                + tx[i, j + 1] * (p[i, j] - p[i, j + 1])
                + ty[i, j] * (p[i, j] - p[i - 1, j])
                + ty[i + 1, j] * (p[i, j] - p[i + 1, j])
            )
            product[i, j] = value
            total += p[i, j] * value
    return total


@compiled()
def _redirect(p, z, beta):
    for i in range(1, p.shape[0] - 1):
        for j in range(1, p.shape[1] - 1):
            p[i, j] = z[i, j] + beta * p[i, j]


@compiled()
def _advance(x, r, p, product, alpha, rounded):
    """``x += alpha p``, ``r -= alpha A p``; returns (r, r)."""
    total = 0.0
    for i in range(1, x.shape[0] - 1):
        for j in range(1, x.shape[1] - 1):
            x[i, j] += alpha * p[i, j]
            value = r[i, j] - alpha * product[i, j]
            r[i, j] = value
            rounded[i, j] = value
            total += value * value
    return total


@compiled()
def _distance(tx, ty, x, right_hand_side, product):
    """``||b - A x||``."""
    _multiply(tx, ty, x, product)
    total = 0.0
    for i in range(1, x.shape[0] - 1):
        for j in range(1, x.shape[1] - 1):
            total += (right_hand_side[i, j] - product[i, j]) ** 2
    return np.sqrt(total)


@compiled()
def _build(levels, tx, ty, inverse, band, row):
    """Fills all levels from the finest transmissibilities and factorises the coarsest matrix."""
    coarsest = levels.shape[0] - 2
    for k in range(coarsest):
        _invert_diagonal(_on(k, levels, tx), _on(k, levels, ty), _on(k, levels, inverse))
        _coarsen(_on(k, levels, tx), _on(k, levels, ty), _on(k + 1, levels, tx), _on(k + 1, levels, ty), row)
    _factorise(_on(coarsest, levels, tx), _on(coarsest, levels, ty), band)


@compiled()
def _conjugate_gradients(
    faces_x, faces_y, levels, ghosts, masks, hierarchies, vectors, band, row, flat, tolerance, limit
):
    """From ``vectors[0] = b`` the solution ``vectors[1]``; returns iterations and relative residual."""
    tx, ty, inverse, b, u = hierarchies[0], hierarchies[1], hierarchies[2], hierarchies[3], hierarchies[4]
    right_hand_side, x, r, p, product = vectors[0], vectors[1], vectors[2], vectors[3], vectors[4]
    exact_x, exact_y = vectors[5], vectors[6]
    _load(faces_x, faces_y, _on(0, levels, tx), _on(0, levels, ty))
    _load(faces_x, faces_y, exact_x, exact_y)
    _build(levels, tx, ty, inverse, band, row)
    rounded, z = _on(0, levels, b), _on(0, levels, u)
    # x, p and their product are still zero: this copies b
    _redirect(r, right_hand_side, 0.0)
    start = square = _advance(x, r, p, product, 0.0, rounded)
    iterations, rz = 0, 1.0
    while square > start * tolerance * tolerance and iterations < limit:
        _cycle(levels, ghosts, masks, tx, ty, inverse, b, u, band, row, flat)
        previous, rz = rz, _dot(r, z)
        _redirect(p, z, rz / previous)
        alpha = rz / _multiply(exact_x, exact_y, p, product)
        square = _advance(x, r, p, product, alpha, rounded)
        iterations += 1
    if not square <= start * tolerance * tolerance:
        iterations = limit + 1
    return iterations, _distance(exact_x, exact_y, x, right_hand_side, product) / np.sqrt(start)
