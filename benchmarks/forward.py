"""``mno bench forward``: one forward pass of a published surrogate against the reference solver.

Wall times, because a forward uses all threads it is given; surrogate and solver take turns on the same
fields, so that other load on the machine meets both alike. The accuracy of both stands beside the times: a
comparison of speed without it says nothing (McGreivy and Hakim 2024, arXiv 2407.07218).
"""

import platform
import time
from collections.abc import Callable
from statistics import median

import click
import numpy as np
import torch
from numpy.typing import NDArray

from model_store import open_catalog
from operators import Surrogate
from problems import Grid
from problems.darcy import Darcy


def milliseconds(work: Callable[[], object]) -> float:
    """Wall time of one call [ms]."""
    start = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - start)


def row(surrogate: Surrogate, grid: Grid, scheme: str, batch: int, repeats: int) -> str:
    """One line of the table."""
    darcy = Darcy()
    samples = [darcy.sample("pdebench", {}, 7, index, grid) for index in range(batch)]
    fields = np.stack([sample["permeability"] for sample in samples]).astype(np.float32)[:, None]
    permeability, source = torch.from_numpy(fields), torch.ones(batch)

    def forward() -> NDArray[np.float32]:
        with torch.inference_mode():
            answer: NDArray[np.float32] = surrogate(permeability, source, grid.extent)[:, 0].numpy()
            return answer

    def solve(tolerance: float) -> NDArray[np.float64]:
        return np.stack(
            [darcy.solve(sample, grid, scheme, tolerance).fields["pressure"] for sample in samples]
        )

    exact = solve(1e-10)
    errors = [_relative(forward(), exact), _relative(solve(1e-2), exact), _relative(solve(1e-6), exact)]
    times: list[list[float]] = [[], [], []]
    for _ in range(repeats):
        for taken, work in zip(times, (forward, lambda: solve(1e-2), lambda: solve(1e-6)), strict=True):
            taken.append(milliseconds(work))
    cells = (f"{median(t):>9.2f} {min(t):>8.2f} {e:>9.1e}" for t, e in zip(times, errors, strict=True))
    return f"{batch:>6} {'   '.join(cells)}"


def _relative(answer: NDArray[np.floating], exact: NDArray[np.floating]) -> float:
    """Median relative L2 error."""
    axes = (1, 2)
    norms = np.linalg.norm(answer - exact, axis=axes) / np.linalg.norm(exact, axis=axes)
    return float(np.median(norms))


@click.command("forward")
@click.option("--model", default="darcy@production", show_default=True)
@click.option("--store", metavar="URL", help="A model store; without it the built-in models.")
@click.option("--batches", default="1,8,32", show_default=True, help="Batch sizes, separated by commas.")
@click.option("--repeats", default=30, show_default=True, help="Runs of each, interleaved.")
@click.option("--threads", type=int, help="Threads of the forward; PyTorch's default otherwise.")
def bench_forward(model: str, store: str | None, batches: str, repeats: int, threads: int | None) -> None:
    """Time a surrogate's forward pass against the reference solver."""
    if threads is not None:
        torch.set_num_threads(threads)
    catalog = open_catalog(store)
    reference = catalog.resolve(model)
    version = catalog.load(reference.name, reference.version)
    if not isinstance(version.surrogate, Surrogate):
        raise click.UsageError(
            f"{reference} is an evolution model: expected a steady one, or use bench rollout"
        )
    grid = Grid(version.card.grids[0], version.card.extent)
    click.echo(
        f"{reference} at {grid.shape[0]}x{grid.shape[1]}, float32, {torch.get_num_threads()} threads; "
        f"reference solver float64, one thread; PDEBench's family, {platform.machine()}"
    )
    click.echo("wall milliseconds per batch: median, least, median relative L2 error")
    click.echo(f"{'batch':>6} {'surrogate':>28}   {'solver to 1e-2':>28}   {'solver to 1e-6':>28}")
    for batch in (int(size) for size in batches.split(",")):
        click.echo(row(version.surrogate, grid, version.card.scheme, batch, repeats))
