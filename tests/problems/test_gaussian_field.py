"""Gaussian random fields: the same wherever the domain lies, and no more symmetric than chance has it."""

import numpy as np
import pytest

from problems import Grid
from problems.gaussian_field import gaussian_field

SHAPE, EXTENT = (48, 64), (1.5, 2.0)


def draw(origin: tuple[float, float], seed: int = 0) -> np.ndarray:
    return gaussian_field(np.random.default_rng(seed), 0.2, Grid(SHAPE, EXTENT, origin))


def test_the_origin_does_not_matter():
    np.testing.assert_allclose(draw((-0.75, -1.0)), draw((0.0, 0.0)), atol=1e-12)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_centred_domain_has_no_mirror(axis):
    field = draw((-0.75, -1.0))
    assert np.linalg.norm(field - np.flip(field, axis)) > 0.5 * np.linalg.norm(field)


def test_the_variance_is_1_on_average():
    fields = [draw((0.0, 0.0), seed) for seed in range(200)]
    assert np.mean(np.square(fields)) == pytest.approx(1.0, rel=0.1)
