"""Darcy's reference solver against SciPy's sparse direct one; rate of generation.

Both solve the same fields of PDEBench's family in float64. Times are medians over the fields.
"""

from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

from benchmarks.cpu_time import cpu_seconds
from problems import Fields, Grid
from problems.darcy import Darcy
from problems.multigrid import solve_directly
from problems.two_point_flux import SCHEMES, right_hand_side, transmissibilities

HEADER = (
    f"{'grid':>10} {'multigrid':>10} {'least':>8} {'iterations':>11} {'bound':>8} {'splu':>9} {'ratio':>7}"
)


def time_darcy(count: int, tolerance: float, sides: list[int]) -> Iterator[str]:
    """Lines of the table, ``count`` fields for each number of cells per side."""
    yield f"Darcy, PDEBench's family, {Darcy.schemes[0]}, float64, residual {tolerance:g}"
    yield "CPU milliseconds per field, medians of interleaved runs; bound: the guaranteed error bound"
    yield HEADER
    for side in sides:
        yield _row(side, count, tolerance)
    rate = _samples_per_second(128, 10 * count)
    yield f"generation at 128x128, residual 1e-10: {rate:.0f} samples per CPU second"


def _row(side: int, count: int, tolerance: float) -> str:
    darcy, grid = Darcy(), Grid((side, side))
    samples = [darcy.sample("pdebench", {}, 0, index, grid) for index in range(count)]
    solutions = [darcy.solve(fields, grid, tolerance=tolerance) for fields in samples]
    darcy.error_bound(samples[0], solutions[0].fields, grid)
    times: dict[str, list[float]] = {"multigrid": [], "bound": [], "splu": []}
    for fields, solution in zip(samples, solutions, strict=True):
        times["multigrid"].append(_milliseconds(partial(darcy.solve, fields, grid, tolerance=tolerance)))
        times["bound"].append(_milliseconds(partial(darcy.error_bound, fields, solution.fields, grid)))
        times["splu"].append(_milliseconds(partial(_solve_directly, fields, grid)))
    iterations = median(solution.iterations for solution in solutions)
    multigrid, bound, splu = (median(times[name]) for name in ("multigrid", "bound", "splu"))
    return (
        f"{side:>5}x{side:<4} {multigrid:>10.2f} {min(times['multigrid']):>8.2f} {iterations:>11g}"
        f" {bound:>8.2f} {splu:>9.1f} {splu / multigrid:>7.1f}"
    )


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
