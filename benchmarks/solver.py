"""``mno bench solver``: the reference solvers against what others would use.

CPU times of the process on one thread, of runs that take turns, so that other load on the machine meets all
alike; accuracy stands beside every time. Run with ``OMP_NUM_THREADS=1``.
"""

import platform

import click

from benchmarks.steady_solver import time_darcy
from benchmarks.trajectory_solver import COMPARISONS, time_trajectories


@click.command("solver")
@click.option(
    "--problem",
    type=click.Choice(["darcy", *COMPARISONS]),
    multiple=True,
    help="The problem; may be repeated. All of them otherwise.",
)
@click.option("--fields", "count", default=20, show_default=True, help="Darcy: fields per grid.")
@click.option("--tolerance", default=1e-6, show_default=True, help="Darcy: relative residual.")
@click.option(
    "--sides", default="64,128,256", show_default=True, help="Darcy: cells per side, separated by commas."
)
@click.option("--trajectories", default=3, show_default=True, help="Trajectories of 100 frames at 128x128.")
@click.option(
    "--finest", default=512, show_default=True, help="Cells per side of the trajectories' reference."
)
def bench_solver(
    problem: tuple[str, ...], count: int, tolerance: float, sides: str, trajectories: int, finest: int
) -> None:
    """Time the reference solvers against SciPy and, if it is installed, PyClaw."""
    click.echo(f"one thread, {platform.machine()}")
    for name in problem or ("darcy", *COMPARISONS):
        if name == "darcy":
            lines = time_darcy(count, tolerance, [int(side) for side in sides.split(",")])
        else:
            lines = time_trajectories(COMPARISONS[name], trajectories, finest)
        for line in lines:
            click.echo(line)
