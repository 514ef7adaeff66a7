"""A file beside the surrogate that it was made of, on batches and grids that it was not traced with."""

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

from model_store.export.errors import Disagrees
from model_store.export.program import callable_of
from model_store.export.signature import Sides, samples
from model_store.store import LoadedVersion

# relative L2, float32: what rounding in another order makes of a deep network
LIMIT: Final = 1e-4


def sizes_beside(traced: tuple[int, int, int], sides: Sides) -> Sequence[tuple[int, int, int]]:
    """Two (batch, ny, nx) that have no size in common with those traced."""
    longer = sides.beyond(traced[2])
    return [(1, longer, sides.beyond(longer)), (3, sides.beyond(sides.beyond(longer)), longer)]


def check(
    file: Callable[..., Tensor], version: LoadedVersion, sizes: Sequence[tuple[int, int, int]]
) -> list[float]:
    """Relative L2 differences, the largest of a batch each.

    Raises:
        Disagrees: one of them is larger than `LIMIT`.
    """
    surrogate = callable_of(version).eval()
    differences = []
    for seed, (batch, ny, nx) in enumerate(sizes, start=1):
        inputs = samples(version, batch, (ny, nx), seed)
        with torch.inference_mode():
            expected, found = surrogate(*inputs), file(*inputs)
        difference = _relative(found, expected)
        if not difference <= LIMIT:
            raise Disagrees(
                f"expected {version.reference} and its file to differ by at most {LIMIT:g} (relative L2), "
                f"got {difference:.2g} on {batch} samples of {ny} x {nx}; nothing was left behind, please "
                "report it"
            )
        differences.append(difference)
    return differences


def _relative(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    return float(((found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)).max())
