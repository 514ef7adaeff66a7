"""The differentiable stencil against matrices assembled face by face."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import operators
from operators import darcy_stencil
from operators.axial_mno import torsion
from operators.multiscale import balance_fluxes

SPACING = (0.05, 0.08)
ROOT = Path(operators.__file__).parents[1]


def _dense(k: np.ndarray, scheme: str) -> np.ndarray:
    """The matrix, written out cell by cell and face by face."""
    ny, nx = k.shape
    hy, hx = SPACING
    matrix = np.zeros((ny * nx, ny * nx))
    for i in range(ny):
        for j in range(nx):
            for di, dj, ratio in ((1, 0, hx / hy), (-1, 0, hx / hy), (0, 1, hy / hx), (0, -1, hy / hx)):
                here, row = k[i, j], i * nx + j
                if 0 <= i + di < ny and 0 <= j + dj < nx:
                    there = k[i + di, j + dj]
                    mean = 2 / (1 / here + 1 / there) if scheme == "tpfa-harmonic-v1" else (here + there) / 2
                    matrix[row, row] += mean * ratio
                    matrix[row, (i + di) * nx + j + dj] -= mean * ratio
                else:
                    matrix[row, row] += (2 if scheme == "tpfa-harmonic-v1" else 1) * here * ratio
    return matrix


@pytest.fixture
def k() -> np.ndarray:
    return np.exp(np.random.default_rng(0).standard_normal((5, 7)))


def _tensor(field: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(field)[None, None]


@pytest.mark.parametrize("scheme", darcy_stencil.SCHEMES)
def test_matches_the_matrix(k: np.ndarray, scheme: str) -> None:
    matrix, u = _dense(k, scheme), np.random.default_rng(1).standard_normal(k.shape)
    faces = darcy_stencil.transmissibilities(_tensor(k), SPACING, scheme)
    np.testing.assert_allclose(
        darcy_stencil.apply(faces, _tensor(u)).flatten(), matrix @ u.ravel(), rtol=1e-12
    )
    np.testing.assert_allclose(darcy_stencil.diagonal(faces).flatten(), np.diag(matrix), rtol=1e-12)
    energy = np.sqrt(u.ravel() @ matrix @ u.ravel())
    np.testing.assert_allclose(darcy_stencil.energy_norm(faces, _tensor(u)), energy, rtol=1e-12)


@pytest.mark.parametrize("scheme", darcy_stencil.SCHEMES)
def test_jacobi_sweep_matches_the_matrix(k: np.ndarray, scheme: str) -> None:
    matrix, u = _dense(k, scheme), np.random.default_rng(1).standard_normal(k.size)
    expected = u + (0.3 - matrix @ u) / np.diag(matrix)
    sweep = darcy_stencil.jacobi(darcy_stencil.transmissibilities(_tensor(k), SPACING, scheme), 0.3)
    np.testing.assert_allclose(sweep(_tensor(u.reshape(k.shape))).flatten(), expected, rtol=1e-12)


def _balanced(field: np.ndarray, k: np.ndarray, scheme: str, intervals: int) -> np.ndarray:
    """The balanced field by its definition: dense, a row and a column a hat, all products explicit."""
    hats = []
    for cells in k.shape:
        width = cells // intervals
        rise = np.arange(width) / (width - 1)
        side = np.zeros((intervals + 1, cells))
        for e in range(intervals):
            side[e, e * width : (e + 1) * width] += 1 - rise
            side[e + 1, e * width : (e + 1) * width] += rise
        hats.append(side)
    test = np.einsum("py,qx->pqyx", *hats).reshape(-1, k.size)
    trial = test * field.ravel()
    matrix = test @ _dense(k, scheme) @ trial.T
    load = test @ np.full(k.size, SPACING[0] * SPACING[1])
    return (np.linalg.solve(matrix, load) @ trial).reshape(k.shape)


@pytest.mark.parametrize("scheme", darcy_stencil.SCHEMES)
@pytest.mark.parametrize(
    ("shape", "intervals"), [((6, 12), 1), ((6, 12), 2), ((6, 12), 3), ((20, 30), 10), ((32, 32), 16)]
)
def test_balance_is_what_its_definition_says(scheme: str, shape: tuple[int, int], intervals: int) -> None:
    random = np.random.default_rng(3)
    k, field = np.exp(random.standard_normal(shape)), 0.5 + random.random(shape)
    faces = darcy_stencil.transmissibilities(_tensor(k), SPACING, scheme)
    found = balance_fluxes(_tensor(field), faces, SPACING[0] * SPACING[1], intervals)[0, 0].numpy()
    np.testing.assert_allclose(found, _balanced(field, k, scheme, intervals), rtol=1e-9)


def test_balance_recovers_the_solution_from_a_coarse_multiple_of_it() -> None:
    scheme, cell = "tpfa-harmonic-v1", SPACING[0] * SPACING[1]
    k = np.exp(np.random.default_rng(4).standard_normal((8, 16)))
    solution = np.linalg.solve(_dense(k, scheme), np.full(k.size, cell)).reshape(k.shape)
    # its reciprocal is one plus a hat of the 2 x 2 coarse grid
    rising = np.concatenate([np.arange(8) / 7, 1 - np.arange(8) / 7])
    factor = 1.0 / (1.0 + 0.6 * rising)
    faces = darcy_stencil.transmissibilities(_tensor(k), SPACING, scheme)
    found = balance_fluxes(_tensor(solution * factor), faces, cell, 2)[0, 0].numpy()
    np.testing.assert_allclose(found, solution, rtol=1e-9)


def test_a_singular_balance_spoils_its_own_sample_only() -> None:
    faces = darcy_stencil.transmissibilities(torch.ones(2, 1, 8, 8), SPACING, "tpfa-harmonic-v1")
    field = torch.rand(2, 1, 8, 8) + 0.5
    field[0] = 0.0
    balanced = balance_fluxes(field, faces, 1.0, 2)
    assert not torch.isfinite(balanced[0]).all()
    assert torch.isfinite(balanced[1]).all()


def test_torsion_solves_the_poisson_equation_on_a_rectangle() -> None:
    ny, nx, width = 60, 100, 1.0
    spacing = (0.6 / ny, width / nx)
    phi = torsion(torch.zeros(1, 1, ny, nx, dtype=torch.float64), spacing)[0, 0]
    laplacian = (phi[2:, 1:-1] - 2 * phi[1:-1, 1:-1] + phi[:-2, 1:-1]) / spacing[0] ** 2
    laplacian = laplacian + (phi[1:-1, 2:] - 2 * phi[1:-1, 1:-1] + phi[1:-1, :-2]) / spacing[1] ** 2
    interior = laplacian[6:-6, 6:-6]
    torch.testing.assert_close(interior, torch.full_like(interior, -1.0), rtol=0, atol=1e-2)
    assert float(phi.min()) > 0


def test_two_threads_balance_a_batch() -> None:
    # 17 x 17 coarse nodes are enough for MKL to factor a matrix in several threads; two threads that wait for
    # each other end only with their process
    code = f"""
import torch
from operators import darcy_stencil
from operators.multiscale import balance_fluxes
torch.set_num_threads(2)
torch.manual_seed(5)
k, field = torch.randn(2, 3, 1, 32, 32, dtype=torch.float64).exp()

def balanced_and_gradient(k, field):
    k = k.clone().requires_grad_()
    faces = darcy_stencil.transmissibilities(k, {SPACING}, "tpfa-harmonic-v1")
    balanced = balance_fluxes(field, faces, 0.004, 16)
    return torch.stack([balanced.detach(), *torch.autograd.grad(balanced.sum(), k)])

alone = torch.cat([balanced_and_gradient(k[i : i + 1], field[i : i + 1]) for i in range(3)], dim=1)
assert torch.allclose(balanced_and_gradient(k, field), alone, rtol=1e-9)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, timeout=300, check=True)
