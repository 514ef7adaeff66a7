"""Darcy's reference solver against sparse solvers that others would use; rate of generation.

All solve the same fields of PDEBench's family in float64, matrix assembly and set-up included. Times are
medians over the fields. PyAMG (Ruge-Stueben, as a preconditioner) and CHOLMOD take part where they are
installed.
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import scipy.sparse

from benchmarks.cpu_time import cpu_seconds
from problems import Fields, Grid
from problems.darcy import Darcy
from problems.multigrid import solve_directly
from problems.two_point_flux import SCHEMES, assemble, right_hand_side, transmissibilities

HEADER = (
    f"{'grid':>10} {'multigrid':>10} {'least':>8} {'iterations':>11} {'bound':>8} {'certified':>9}"
    f" {'splu':>9} {'ratio':>7} {'pyamg':>9} {'cholmod':>9}"
)


def time_darcy(count: int, tolerance: float, sides: list[int]) -> Iterator[str]:
    """Lines of the table, ``count`` fields for each number of cells per side."""
    yield f"Darcy, PDEBench's family, {Darcy.schemes[0]}, float64, residual {tolerance:g}"
    yield "CPU milliseconds per field, medians of interleaved runs; bound: the guaranteed error bound"
    yield "certified: both sides within 5 %, of an answer that is 1 % off"
    yield HEADER
    for side in sides:
        yield _row(side, count, tolerance)
    rate = _samples_per_second(128, 10 * count)
    yield f"generation at 128x128, residual 1e-10: {rate:.0f} samples per CPU second"


def _row(side: int, count: int, tolerance: float) -> str:
    darcy, grid = Darcy(), Grid((side, side))
    samples = [darcy.sample("pdebench", {}, 0, index, grid) for index in range(count)]
    solutions = [darcy.solve(fields, grid, tolerance=tolerance) for fields in samples]
    others = {name: solve for name, solve in _OTHERS.items() if importlib.util.find_spec(_MODULES[name])}
    names = ("multigrid", "bound", "certified", "splu", *others)
    times: dict[str, list[float]] = {name: [] for name in names}
    for fields, solution in zip(samples, solutions, strict=True):
        answer = _slightly_off(solution.fields, grid)
        times["multigrid"].append(_milliseconds(partial(darcy.solve, fields, grid, tolerance=tolerance)))
        times["bound"].append(_milliseconds(partial(darcy.error_bound, fields, answer, grid)))
        times["certified"].append(_milliseconds(partial(darcy.certify, fields, answer, grid)))
        times["splu"].append(_milliseconds(partial(_solve_directly, fields, grid)))
        for name, solve in others.items():
            times[name].append(_milliseconds(partial(solve, fields, grid, tolerance)))
    iterations = median(solution.iterations for solution in solutions)
    middle = {name: median(values) for name, values in times.items()}
    rest = " ".join(f"{middle[name]:>9.1f}" if name in middle else f"{'-':>9}" for name in _OTHERS)
    return (
        f"{side:>5}x{side:<4} {middle['multigrid']:>10.2f} {min(times['multigrid']):>8.2f} {iterations:>11g}"
        f" {middle['bound']:>8.2f} {middle['certified']:>9.2f} {middle['splu']:>9.1f}"
        f" {middle['splu'] / middle['multigrid']:>7.1f} {rest}"
    )


def _slightly_off(solution: Fields, grid: Grid) -> Fields:
    """A smooth error of about 1 %."""
    y, x = grid.coordinates()
    return {"pressure": solution["pressure"] * (1 + 0.02 * np.outer(np.cos(7 * y), np.cos(9 * x)))}


def _solve_by_pyamg(fields: Fields, grid: Grid, tolerance: float) -> object:
    """Assembly, Ruge-Stueben set-up and preconditioned conjugate gradients."""
    pyamg = importlib.import_module("pyamg")
    matrix, right_hand_side = _assemble(fields, grid)
    return pyamg.ruge_stuben_solver(matrix.tocsr()).solve(right_hand_side, tol=tolerance, accel="cg")


def _solve_by_cholmod(fields: Fields, grid: Grid, _tolerance: float) -> object:
    """Assembly, analysis, factorization and solution."""
    cholmod = importlib.import_module("sksparse.cholmod")
    matrix, right_hand_side = _assemble(fields, grid)
    return cholmod.cholesky(matrix)(right_hand_side)


def _assemble(fields: Fields, grid: Grid) -> tuple[Any, Any]:
    faces = transmissibilities(fields["permeability"], grid, SCHEMES[Darcy.schemes[0]])
    # neither of the two knows SciPy's sparse arrays
    return scipy.sparse.csc_matrix(assemble(faces)), right_hand_side(1.0, grid).ravel()


_OTHERS: dict[str, Callable[[Fields, Grid, float], object]] = {
    "pyamg": _solve_by_pyamg,
    "cholmod": _solve_by_cholmod,
}
_MODULES = {"pyamg": "pyamg", "cholmod": "sksparse"}


def _milliseconds(work: Callable[[], object]) -> float:
    # caches and allocator as in a process that does nothing else
    work()
    return 1e3 * cpu_seconds(work)


def _solve_directly(fields: Fields, grid: Grid) -> object:
    """Assembly, factorisation and solution by SuperLU, minimum degree ordering, symmetric mode."""
    faces = transmissibilities(fields["permeability"], grid, SCHEMES[Darcy.schemes[0]])
    return solve_directly(faces, right_hand_side(1.0, grid))


def _samples_per_second(side: int, count: int) -> float:
    """Rate at which PDEBench fields are drawn and solved to 1e-10 [1 / CPU second]."""
    darcy, grid = Darcy(), Grid((side, side))

    def generate() -> None:
        for index in range(count):
            darcy.solve(darcy.sample("pdebench", {}, 1, index, grid), grid)

    return count / cpu_seconds(generate)
