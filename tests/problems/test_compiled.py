import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from problems.compiled import compiled

# what the problems compute with kernels, in their first schemes in time, a line of hashes each
EVERYTHING = """
import hashlib
import numpy as np
from problems import EVOLUTION_PROBLEMS, STEADY_PROBLEMS, Grid

def show(name, fields):
    print(name, *(hashlib.sha256(np.ascontiguousarray(one).tobytes()).hexdigest() for one in fields))

random, grid = np.random.default_rng(5), Grid((16, 24))
for problem in STEADY_PROBLEMS.values():
    for scheme in problem.schemes:
        fields = {"permeability": random.lognormal(size=grid.shape), "source": np.array(1.0)}
        solution = problem.solve(fields, grid, scheme).fields
        show(f"solve {scheme}", solution.values())
        near = {name: one + 0.01 * random.standard_normal(grid.shape) for name, one in solution.items()}
        for bound in (problem.error_bound, problem.certify, problem.pde_bound):
            found = bound(fields, near, grid, scheme)
            show(f"{bound.__name__} {scheme}", [np.array([found.lower, found.upper])])
        show(f"refine {scheme}", problem.refine(fields, near, grid, scheme, 1e-4).fields.values())
        gradients = problem.adjoint(fields, np.ones((1, *grid.shape)), grid, scheme).fields
        show(f"adjoint {scheme}", gradients.values())
for problem in EVOLUTION_PROBLEMS.values():
    grid = Grid((16, 24), problem.grid.extent, problem.grid.origin)
    state = problem.sample(next(iter(problem.families)), {}, 0, 0, grid)
    show(problem.name, next(problem.frames(state, grid)).values())
"""


def test_works_where_nothing_can_be_cached():
    """For a function without a file, as in a read-only package and home, numba has no place."""
    namespace = {}
    exec("def double(x):\n    return x + x", namespace)
    assert compiled()(namespace["double"])(21.0) == 42.0


def test_sums_and_nan_keep_their_meaning():
    @compiled()
    def total(x):
        result = 0.0
        for i in range(x.size):
            result += x[i]
        return result

    assert total(np.arange(100.0)) == 4950.0
    assert np.isnan(total(np.array([1.0, np.nan])))


@pytest.mark.slow
def test_who_compiles_and_who_loads_from_disk_compute_the_same_bits(tmp_path: Path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}

    def compute() -> str:
        command = [sys.executable, "-c", EVERYTHING]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    compiled_here = compute()
    assert any(tmp_path.rglob("*.nbc"))
    assert len(compiled_here.splitlines()) > 10
    assert compute().splitlines() == compiled_here.splitlines()
