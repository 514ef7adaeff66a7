"""The loss against loops over cells and faces in NumPy."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from training.batches import Batch
from training.config import LossSection
from training.loss import loss


def _energy(a: NDArray[np.float64], u: NDArray[np.float64], spacing: tuple[float, float]) -> float:
    """``sum over faces of T jump^2``: half-cell resistances in series, the wall half a cell away."""
    hy, hx = spacing
    ny, nx = a.shape
    total = 0.0
    for j in range(ny):
        for i in range(nx):
            for dj, di, length, distance in (
                (1, 0, hx, hy),
                (0, 1, hy, hx),
                (-1, 0, hx, hy),
                (0, -1, hy, hx),
            ):
                inside = 0 <= j + dj < ny and 0 <= i + di < nx
                resistance = distance / 2 / a[j, i] + (distance / 2 / a[j + dj, i + di] if inside else 0.0)
                jump = u[j, i] - (u[j + dj, i + di] if inside else 0.0)
                # an inner face is met from both its cells
                total += length / resistance * jump**2 / (2 if inside else 1)
    return total


@pytest.mark.parametrize(("relative_l2", "energy"), [(1.0, 0.0), (0.0, 1.0), (0.7, 0.2)])
def test_loss_is_the_weighted_mean_of_ratios(relative_l2: float, energy: float) -> None:
    random = np.random.default_rng(3)
    a = np.exp(random.normal(size=(3, 1, 4, 6)))
    reference, predicted = random.normal(size=(2, 3, 1, 4, 6))
    spacing = (0.3, 0.2)
    expected = np.mean(
        [
            relative_l2 * np.sqrt(np.sum((p - r) ** 2) / np.sum(r**2))
            + energy * np.sqrt(_energy(k, p - r, spacing) / _energy(k, r, spacing))
            for k, p, r in zip(a[:, 0], predicted[:, 0], reference[:, 0], strict=True)
        ]
    )
    batch = Batch(*(torch.from_numpy(x).float() for x in (a, reference)), torch.ones(3))
    weights = LossSection(relative_l2=relative_l2, energy=energy)
    found = loss(torch.from_numpy(predicted).float(), batch, spacing, "tpfa-harmonic-v1", weights)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_loss_does_not_depend_on_units() -> None:
    random = torch.Generator().manual_seed(1)
    a, reference, predicted = (torch.rand(2, 1, 4, 4, generator=random) + 0.1 for _ in range(3))
    weights = LossSection(relative_l2=1.0, energy=1.0)

    def value(unit_of_a: float, unit_of_p: float, unit_of_length: float) -> float:
        batch = Batch(unit_of_a * a, unit_of_p * reference, torch.ones(2))
        spacing = (0.25 * unit_of_length, 0.25 * unit_of_length)
        return loss(unit_of_p * predicted, batch, spacing, "tpfa-harmonic-v1", weights).item()

    assert value(1e3, 1e-2, 10.0) == pytest.approx(value(1.0, 1.0, 1.0), rel=1e-5)
