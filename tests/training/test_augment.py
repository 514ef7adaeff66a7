"""The eight symmetries are distinct, exact, and symmetries of the physics."""

import numpy as np
import pytest
import torch

from problems import PROBLEMS, Grid
from training.augment import RECTANGLE, SQUARE, transform


def test_elements_are_the_dihedral_group() -> None:
    field = torch.arange(9.0).reshape(3, 3)
    images = [transform(field, element) for element in range(SQUARE)]
    rotations = [torch.rot90(field, turns) for turns in range(4)]
    group = rotations + [torch.flip(image, (0,)) for image in rotations]
    assert len({tuple(image.flatten().tolist()) for image in images}) == SQUARE
    assert all(any(torch.equal(image, member) for member in group) for image in images)


@pytest.mark.parametrize("element", range(RECTANGLE))
def test_rectangles_keep_their_shape(element: int) -> None:
    assert transform(torch.zeros(2, 1, 3, 5), element).shape == (2, 1, 3, 5)


@pytest.mark.parametrize("scheme", PROBLEMS["darcy"].schemes)
@pytest.mark.parametrize("element", range(SQUARE))
def test_solving_commutes_with_the_symmetries(scheme: str, element: int) -> None:
    problem, grid = PROBLEMS["darcy"], Grid((16, 16))
    fields = problem.sample("log_normal", {"contrast": 50.0, "correlation_length": 0.2}, 5, 0, grid)

    def image(field: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(transform(torch.from_numpy(field), element).numpy())

    pressure = problem.solve(fields, grid, scheme, 1e-12).fields["pressure"]
    turned = problem.solve({**fields, "permeability": image(fields["permeability"])}, grid, scheme, 1e-12)
    np.testing.assert_allclose(turned.fields["pressure"], image(pressure), rtol=1e-9)
