"""``mno bench solver`` prints a table for every problem, with an error beside every time."""

import re

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import scipy_trajectory
from benchmarks.solver import bench_solver
from benchmarks.trajectory_solver import COMPARISONS
from problems import EVOLUTION_PROBLEMS


def table(*arguments):
    result = CliRunner().invoke(bench_solver, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_every_evolution_problem_has_its_comparison():
    assert set(COMPARISONS) == set(EVOLUTION_PROBLEMS)


def test_darcy():
    output = table("--problem", "darcy", "--fields", "1", "--sides", "16,32")
    assert re.search(r"^ +16x16 +\d+\.\d+", output, re.MULTILINE)
    assert re.search(r"generation at 128x128, residual 1e-10: \d+ samples per CPU second", output)


@pytest.mark.parametrize(
    "name", ["shallow_water", pytest.param("diffusion_reaction", marks=pytest.mark.slow)]
)
def test_trajectories(name):
    output = table("--problem", name, "--trajectories", "1", "--finest", "128")
    for scheme in EVOLUTION_PROBLEMS[name].schemes:
        assert re.search(
            rf"^ *{scheme} +\d+\.\d+ +\d+\.\d+ +\d\.\de[-+]\d+ +\d\.\de[-+]\d+$", output, re.MULTILINE
        )
    assert "nan" not in output


def test_scipy_integrates_the_same_finite_volumes():
    """Uniform states react, and a cosine decays with its eigenvalue."""
    problem = EVOLUTION_PROBLEMS["diffusion_reaction"]
    n, h = problem.grid.shape[0], problem.grid.spacing[0]
    wave = np.cos(3 * np.pi * (np.arange(n) + 0.5) / n)
    u = np.broadcast_to(wave[:, None], (n, n))
    rates = scipy_trajectory.rates(0.0, np.stack([u, u]).ravel()).reshape(2, n, n)
    eigenvalue = 4 / h**2 * np.sin(3 * np.pi / (2 * n)) ** 2
    np.testing.assert_allclose(rates[0], -(1e-3 * eigenvalue * u) - u**3 - 5e-3, atol=1e-11)
    np.testing.assert_allclose(rates[1], -5e-3 * eigenvalue * u, atol=1e-11)
