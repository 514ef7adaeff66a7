"""``mno bench solver``: Darcy's reference solver against SciPy's sparse direct one; rate of generation.

Both solve the same fields of PDEBench's family in float64 on one thread, one after the other in turns, so
that other load on the machine meets both alike. Times are CPU times of the process, medians over the fields.
Run with ``OMP_NUM_THREADS=1``.
"""

import platform
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import click

from problems import Fields, Grid
from problems.darcy import Darcy
from problems.multigrid import solve_directly
from problems.two_point_flux import SCHEMES, right_hand_side, transmissibilities

HEADER = (
    f"{'grid':>10} {'multigrid':>10} {'least':>8} {'iterations':>11} {'bound':>8} {'splu':>9} {'ratio':>7}"
)


def milliseconds(work: Callable[[], object]) -> float:
    """CPU time of one call [ms]."""
    # caches and allocator as in a process that does nothing else
    work()
    start = time.process_time()
    work()
    return 1e3 * (time.process_time() - start)


def direct(fields: Fields, grid: Grid) -> object:
    """Assembly, factorisation and solution by SuperLU, minimum degree ordering, symmetric mode."""
    faces = transmissibilities(fields["permeability"], grid, SCHEMES[Darcy.schemes[0]])
    return solve_directly(faces, right_hand_side(1.0, grid))


def row(side: int, count: int, tolerance: float) -> str:
    """One line of the table."""
    darcy, grid = Darcy(), Grid((side, side))
    samples = [darcy.sample("pdebench", {}, 0, index, grid) for index in range(count)]
    solutions = [darcy.solve(fields, grid, tolerance=tolerance) for fields in samples]
    darcy.error_bound(samples[0], solutions[0].fields, grid)
    times: dict[str, list[float]] = {"multigrid": [], "bound": [], "splu": []}
    for fields, solution in zip(samples, solutions, strict=True):
        times["multigrid"].append(milliseconds(partial(darcy.solve, fields, grid, tolerance=tolerance)))
        times["bound"].append(milliseconds(partial(darcy.error_bound, fields, solution.fields, grid)))
        times["splu"].append(milliseconds(partial(direct, fields, grid)))
    iterations = median(solution.iterations for solution in solutions)
    multigrid, bound, splu = (median(times[name]) for name in ("multigrid", "bound", "splu"))
    return (
        f"{side:>5}x{side:<4} {multigrid:>10.2f} {min(times['multigrid']):>8.2f} {iterations:>11g}"
        f" {bound:>8.2f} {splu:>9.1f} {splu / multigrid:>7.1f}"
    )


def samples_per_second(side: int, count: int) -> float:
    """Rate at which PDEBench fields are drawn and solved to 1e-10 [1 / CPU second]."""
    darcy, grid = Darcy(), Grid((side, side))
    start = time.process_time()
    for index in range(count):
        darcy.solve(darcy.sample("pdebench", {}, 1, index, grid), grid)
    return count / (time.process_time() - start)


@click.command("solver")
@click.option("--fields", "count", default=20, show_default=True, help="Fields per grid.")
@click.option("--tolerance", default=1e-6, show_default=True, help="Relative residual.")
@click.option("--sides", default="64,128,256", show_default=True, help="Cells per side, separated by commas.")
def bench_solver(count: int, tolerance: float, sides: str) -> None:
    """Time Darcy's reference solver against a sparse direct solver."""
    click.echo(
        f"Darcy, PDEBench's family, {Darcy.schemes[0]}, float64, residual {tolerance:g}, {platform.machine()}"
    )
    click.echo("CPU milliseconds per field, medians of interleaved runs; bound: the guaranteed error bound")
    click.echo(HEADER)
    for side in (int(side) for side in sides.split(",")):
        click.echo(row(side, count, tolerance))
    rate = samples_per_second(128, 10 * count)
    click.echo(f"generation at 128x128, residual 1e-10: {rate:.0f} samples per CPU second")
