"""Oracles that share no code with ``problems``."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg


def assemble(a, extent, scheme):
    """The matrix of a scheme, cell by cell and face by face, and the right-hand side for a source of 1."""
    ny, nx = a.shape
    hy, hx = extent[0] / ny, extent[1] / nx
    a, rows, columns, values = np.asarray(a).tolist(), [], [], []
    for i in range(ny):
        for j in range(nx):
            for di, dj, ratio in ((0, 1, hy / hx), (0, -1, hy / hx), (1, 0, hx / hy), (-1, 0, hx / hy)):
                y, x, here = i + di, j + dj, a[i][j]
                inside = 0 <= y < ny and 0 <= x < nx
                if scheme == "tpfa-harmonic-v1":
                    mean = 1 / (0.5 / here + 0.5 / a[y][x]) if inside else 2 * here
                else:
                    mean = (here + a[y][x]) / 2 if inside else here
                rows.append(i * nx + j)
                columns.append(i * nx + j)
                values.append(ratio * mean)
                if inside:
                    rows.append(i * nx + j)
                    columns.append(y * nx + x)
                    values.append(-ratio * mean)
    # entries of the same place add up
    matrix = scipy.sparse.csc_array((values, (rows, columns)), shape=(ny * nx, ny * nx))
    return matrix, np.full(ny * nx, hy * hx)


def solve(a, extent=(1.0, 1.0), scheme="tpfa-harmonic-v1"):
    """Pressure for a source of 1 by SciPy's direct solver."""
    matrix, right_hand_side = assemble(a, extent, scheme)
    return scipy.sparse.linalg.spsolve(matrix, right_hand_side).reshape(a.shape)


def sine_series(y, x, extent=(1.0, 1.0), terms=400):
    """The solution of ``-laplace u = 1``, u = 0 around the rectangle."""
    odd = np.arange(1, terms, 2)
    along_y, along_x = (
        np.sin(np.pi * np.outer(y / extent[0], odd)),
        np.sin(np.pi * np.outer(x / extent[1], odd)),
    )
    eigenvalue = np.pi**2 * ((odd / extent[0])[:, None] ** 2 + (odd / extent[1]) ** 2)
    return along_y @ (16 / np.pi**2 / np.outer(odd, odd) / eigenvalue) @ along_x.T


def two_layers(y, x, left, right, terms=400):
    """The solution of ``-div(a grad u) = 1`` on the unit square, a = left for x < 1/2, right beyond.

    1 = sum over odd k of 4 / (pi k) sin(pi k y), and for each k an ordinary differential equation in x whose
    solution is a constant and two exponentials in each layer; the walls, and continuity of u and of a du/dx
    at x = 1/2, fix the four factors.
    """
    u = np.zeros((y.size, x.size))
    for k in range(1, terms, 2):
        m = np.pi * k
        small = np.exp(-m / 2)
        constant = [4 / (m * left * m**2), 4 / (m * right * m**2)]
        # factors of exp(-m x), exp(-m (1/2 - x)) on the left, exp(-m (x - 1/2)), exp(-m (1 - x)) on the right
        system = [
            [1, small, 0, 0],
            [0, 0, small, 1],
            [small, 1, -1, -small],
            [-left * small, left, right, -right * small],
        ]
        a, b, c, d = np.linalg.solve(system, [-constant[0], -constant[1], constant[1] - constant[0], 0])
        on_left = constant[0] + a * np.exp(-m * x) + b * np.exp(-m * (0.5 - x))
        on_right = constant[1] + c * np.exp(-m * (x - 0.5)) + d * np.exp(-m * (1 - x))
        u += np.outer(np.sin(m * y), np.where(x < 0.5, on_left, on_right))
    return u


@pytest.fixture
def oracle():
    return SimpleNamespace(assemble=assemble, solve=solve, sine_series=sine_series, two_layers=two_layers)
