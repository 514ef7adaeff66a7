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

Full multigrid solves on the coarsest grid, interpolates, does one V-cycle, and so on up to the finest: a
start with an error of about a percent, for the price of less than three cycles.

Source: Trottenberg, Oosterlee, Schueller, *Multigrid* (2001), sections 2.6, 2.8 and 7.7; Alcouffe et al. 1981
for the coarse faces.
"""

# mypy: disable-error-code="no-untyped-def"
# numba infers the types of the kernels

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal, final

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


@final
class Multigrid:
    """The levels of one matrix, ready for V-cycles; for one solver at a time."""

    def __init__(self, faces: Faces, scheme: Scheme) -> None:
        ny, nx = faces.x.shape[0], faces.y.shape[1]
        self._layout = _layout((ny, nx), scheme.wall_distance)
        coarsest_y, coarsest_x, _ = (int(n) for n in self._layout.levels[-2])
        self._faces = faces
        self._hierarchies = np.zeros((5, int(self._layout.levels[-1, 2])), np.float32)
        self._band = np.zeros((coarsest_y * coarsest_x, coarsest_x + 1))
        self._row, self._flat = np.zeros(nx + 2, np.float32), np.zeros(coarsest_y * coarsest_x)
        _build(self._layout.levels, self._hierarchies, self._band, self._row, faces.x, faces.y)

    @property
    def _levels(self) -> tuple[NDArray[Any], ...]:
        layout = self._layout
        return (
            layout.levels,
            layout.ghosts,
            layout.masks,
            self._hierarchies,
            self._band,
            self._row,
            self._flat,
        )

    @cached_property
    def _exact(self) -> NDArray[np.float64]:
        """Transmissibilities across x and y with rims, not rounded."""
        ny, nx = self._faces.x.shape[0], self._faces.y.shape[1]
        exact = np.zeros((2, ny + 2, nx + 2))
        _load(self._faces.x, self._faces.y, exact[0], exact[1])
        return exact

    def cycle(self, residual: Float64[np.ndarray, "y x"]) -> Float64[np.ndarray, "y x"]:
        """One V-cycle: an approximation to ``A^{-1} r``, up to rounding in single precision."""
        correction = np.empty_like(residual)
        _precondition(*self._levels, residual, correction)
        return correction

    def full_multigrid(self) -> Float64[np.ndarray, "y x"]:
        """An approximation to the solution for a right-hand side of 1 in each cell."""
        solutions = np.zeros_like(self._hierarchies[0])
        _full_multigrid(*self._levels, solutions)
        ny, nx = self._faces.x.shape[0] + 2, self._faces.y.shape[1] + 2
        return np.asarray(solutions[: ny * nx].reshape(ny, nx)[1:-1, 1:-1], np.float64)

    def march(self, vectors: NDArray[np.float64], scalars: NDArray[np.float64], limit: int) -> int:
        """Steps of the conjugate gradients with these vectors, at most ``limit``; returns their number."""
        return int(_march(*self._levels, self._exact[0], self._exact[1], vectors, scalars, limit))

    def residual_norm(self, vectors: NDArray[np.float64]) -> float:
        """``||b - A x||_2``, from x."""
        return float(_distance(self._exact[0], self._exact[1], vectors[1], vectors[0], vectors[4]))


@final
class ConjugateGradients:
    """Preconditioned conjugate gradients for one right-hand side, step by step."""

    def __init__(
        self,
        multigrid: Multigrid,
        residual: Float64[np.ndarray, "y x"],
        start: Float64[np.ndarray, "y x"] | None = None,
    ) -> None:
        """Begins at ``start``, or at 0, whose residual is ``residual``."""
        ny, nx = residual.shape
        self._multigrid = multigrid
        # right-hand side, solution, residual, direction, its product with the matrix
        self._vectors = np.zeros((5, ny + 2, nx + 2))
        self._vectors[0, 1:-1, 1:-1] = residual
        self._vectors[2, 1:-1, 1:-1] = residual
        if start is not None:
            self._vectors[1, 1:-1, 1:-1] = start
        square = float(np.sum(residual**2))
        # threshold and present value of (r, r), (r, z), squared energy that the last step removed
        self._scalars = np.array([0.0, square, 1.0, 0.0])
        self.initial_norm = math.sqrt(square)
        self.steps = 0

    def advance(self, steps: int, tolerance: float = 0.0) -> bool:
        """Steps until ``||r||_2`` is ``tolerance`` times the initial one; whether it got there."""
        threshold = self.initial_norm * self.initial_norm * tolerance * tolerance
        self._scalars[0] = threshold
        self.steps += self._multigrid.march(self._vectors, self._scalars, steps)
        return bool(self._scalars[1] <= threshold)

    @property
    def removed(self) -> float:
        """By how much the last step lowered the squared energy norm of the error."""
        return float(self._scalars[3])

    @property
    def values(self) -> Float64[np.ndarray, "y x"]:
        """The solution so far."""
        return self._vectors[1, 1:-1, 1:-1].copy()

    @property
    def relative_residual(self) -> float:
        """``||r||_2`` over the initial one, r recomputed from the solution; for a start at 0."""
        return self._multigrid.residual_norm(self._vectors) / self.initial_norm


@final
class Factorization:
    """A sparse factorization of ``A``.

    Raises:
        Singular: it has none in float64.
    """

    def __init__(self, faces: Faces) -> None:
        matrix, options = assemble(faces), {"SymmetricMode": True}
        try:
            self._factor = scipy.sparse.linalg.splu(
                matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=options
            )
        except RuntimeError as error:
            raise Singular(f"the matrix is singular ({error})") from error

    def solve(self, right_hand_side: Float64[np.ndarray, "y x"]) -> Float64[np.ndarray, "y x"]:
        """The solution of ``A u = b``."""
        return np.asarray(self._factor.solve(right_hand_side.ravel())).reshape(right_hand_side.shape)


def solve(
    faces: Faces, right_hand_side: Float64[np.ndarray, "y x"], scheme: Scheme, tolerance: float
) -> LinearSolution:
    """Solves ``A u = b`` to a relative residual, by multigrid if that converges, else directly."""
    if suits(right_hand_side.shape):
        iteration = ConjugateGradients(Multigrid(faces, scheme), right_hand_side)
        if iteration.advance(MAXIMUM_ITERATIONS, tolerance):
            residual = iteration.relative_residual
            return LinearSolution(iteration.values, iteration.steps, residual, "multigrid-cg")
    values = solve_directly(faces, right_hand_side)
    defect = right_hand_side - apply(faces, values)
    return LinearSolution(values, 0, float(np.sqrt(np.sum(defect**2) / np.sum(right_hand_side**2))), "direct")


def solve_directly(faces: Faces, right_hand_side: Float64[np.ndarray, "y x"]) -> Float64[np.ndarray, "y x"]:
    """Solves ``A u = b`` by a sparse factorization.

    Raises:
        Singular: it has none in float64.
    """
    return Factorization(faces).solve(right_hand_side)


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


@compiled()
def _on(level, levels, hierarchy):
    """The part of a hierarchy that belongs to a level, with its rim."""
    offset, end = levels[level, 2], levels[level + 1, 2]
    return hierarchy[offset:end].reshape((levels[level, 0] + 2, levels[level, 1] + 2))


@compiled()
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


@compiled()
def _in_series(before, face, behind):
    """Transmissibility of half of a face, a whole one and half of another in a row."""
    return _TWO * before * face * behind / (_TWO * before * behind + face * (before + behind))


@compiled()
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


@compiled()
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


@compiled()
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


@compiled()
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
def _cycle(finest, levels, ghosts, masks, hierarchies, band, row, flat):
    """One V-cycle: from ``b`` on the level ``finest`` to ``u`` there."""
    tx, ty, inverse, b, u = hierarchies[0], hierarchies[1], hierarchies[2], hierarchies[3], hierarchies[4]
    coarsest = levels.shape[0] - 2
    for k in range(finest, coarsest):
        level = _level(k, levels, tx, ty, inverse, b, u)
        _descend(level, masks, ghosts[k + 1], _on(k + 1, levels, b), row)
    _solve_coarsest(band, _on(coarsest, levels, b), _on(coarsest, levels, u), flat)
    for k in range(coarsest - 1, finest - 1, -1):
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
def _redirect(p, z, scale, beta):
    for i in range(1, p.shape[0] - 1):
        for j in range(1, p.shape[1] - 1):
            p[i, j] = scale * z[i, j] + beta * p[i, j]


@compiled()
def _advance(x, r, p, product, alpha):
    """``x += alpha p``, ``r -= alpha A p``; returns (r, r)."""
    total = 0.0
    for i in range(1, x.shape[0] - 1):
        for j in range(1, x.shape[1] - 1):
            x[i, j] += alpha * p[i, j]
            value = r[i, j] - alpha * product[i, j]
            r[i, j] = value
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
def _build(levels, hierarchies, band, row, faces_x, faces_y):
    """Fills all levels from the finest transmissibilities and factorizes the coarsest matrix."""
    tx, ty, inverse = hierarchies[0], hierarchies[1], hierarchies[2]
    _load(faces_x, faces_y, _on(0, levels, tx), _on(0, levels, ty))
    coarsest = levels.shape[0] - 2
    for k in range(coarsest):
        _invert_diagonal(_on(k, levels, tx), _on(k, levels, ty), _on(k, levels, inverse))
        _coarsen(_on(k, levels, tx), _on(k, levels, ty), _on(k + 1, levels, tx), _on(k + 1, levels, ty), row)
    _factorise(_on(coarsest, levels, tx), _on(coarsest, levels, ty), band)


@compiled()
def _full_multigrid(levels, ghosts, masks, hierarchies, band, row, flat, solutions):
    """Solutions on all levels for a right-hand side of 1 on the finest."""
    coarsest = levels.shape[0] - 2
    # restriction adds the four cells below
    _fill(_on(coarsest, levels, hierarchies[3]), np.float32(4.0**coarsest))
    coarse = _on(coarsest, levels, solutions)
    _solve_coarsest(band, _on(coarsest, levels, hierarchies[3]), coarse, flat)
    for k in range(coarsest - 1, -1, -1):
        x, b, u = (
            _on(k, levels, solutions),
            _on(k, levels, hierarchies[3]),
            _on(k, levels, hierarchies[4]),
        )
        _fill(x, np.float32(0.0))
        for i in range(1, x.shape[0] - 1):
            _prolong_row(coarse, x, i, ghosts[k + 1], row)
        tx, ty = _on(k, levels, hierarchies[0]), _on(k, levels, hierarchies[1])
        _leave(tx, ty, x, np.float32(4.0**k), b)
        _cycle(k, levels, ghosts, masks, hierarchies, band, row, flat)
        _add(x, u)
        coarse = x


@compiled()
def _fill(u, value):
    for i in range(1, u.shape[0] - 1):
        for j in range(1, u.shape[1] - 1):
            u[i, j] = value


@compiled()
def _add(x, u):
    for i in range(1, x.shape[0] - 1):
        for j in range(1, x.shape[1] - 1):
            x[i, j] += u[i, j]


@compiled()
def _leave(tx, ty, x, right_hand_side, b):
    """``right_hand_side - A x`` into ``b``."""
    for i in range(1, x.shape[0] - 1):
        for j in range(1, x.shape[1] - 1):
            b[i, j] = right_hand_side - (
                tx[i, j] * (x[i, j] - x[i, j - 1])
                + tx[i, j + 1] * (x[i, j] - x[i, j + 1])
                + ty[i, j] * (x[i, j] - x[i - 1, j])
                + ty[i + 1, j] * (x[i, j] - x[i + 1, j])
            )


@compiled()
def _round(r, scale, rounded):
    """``scale r`` in single precision."""
    for i in range(1, r.shape[0] - 1):
        for j in range(1, r.shape[1] - 1):
            rounded[i, j] = scale * r[i, j]


@compiled()
def _precondition(levels, ghosts, masks, hierarchies, band, row, flat, residual, correction):
    """One V-cycle from ``residual`` to ``correction``, arrays without rims."""
    rounded, z = _on(0, levels, hierarchies[3]), _on(0, levels, hierarchies[4])
    total = 0.0
    for i in range(residual.shape[0]):
        for j in range(residual.shape[1]):
            total += residual[i, j] * residual[i, j]
    scale = math.ldexp(1.0, -math.frexp(math.sqrt(total))[1]) if 0.0 < total < math.inf else 1.0
    for i in range(residual.shape[0]):
        for j in range(residual.shape[1]):
            rounded[i + 1, j + 1] = scale * residual[i, j]
    _cycle(0, levels, ghosts, masks, hierarchies, band, row, flat)
    for i in range(residual.shape[0]):
        for j in range(residual.shape[1]):
            correction[i, j] = z[i + 1, j + 1] / scale


@compiled()
def _march(levels, ghosts, masks, hierarchies, band, row, flat, exact_x, exact_y, vectors, scalars, limit):
    """Steps of the conjugate gradients until (r, r) is at most ``scalars[0]``; returns their number."""
    x, r, p, product = vectors[1], vectors[2], vectors[3], vectors[4]
    rounded, z = _on(0, levels, hierarchies[3]), _on(0, levels, hierarchies[4])
    square, rz = scalars[1], scalars[2]
    steps = 0
    while square > scalars[0] and steps < limit:
        # single precision reaches neither far up nor far down; a power of two rounds nothing
        scale = math.ldexp(1.0, -math.frexp(math.sqrt(square))[1])
        _round(r, scale, rounded)
        _cycle(0, levels, ghosts, masks, hierarchies, band, row, flat)
        previous, rz = rz, _dot(r, z) / scale
        _redirect(p, z, 1.0 / scale, rz / previous)
        alpha = rz / _multiply(exact_x, exact_y, p, product)
        square = _advance(x, r, p, product, alpha)
        scalars[3] = alpha * rz
        steps += 1
    scalars[1], scalars[2] = square, rz
    return steps
