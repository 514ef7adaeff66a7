"""Fields whose solution the solver finds exactly, so that nothing is left to iterate on."""

import numpy as np
import pytest

from problems import STEADY_PROBLEMS, Grid, Mean

DARCY = STEADY_PROBLEMS["darcy"]
TOLERANCE = 1e-6
SIDES = (1, 2, 3, 4)


@pytest.fixture(params=[(n, scheme) for n in SIDES for scheme in DARCY.schemes], ids=str)
def constant(request, oracle):
    """Fields, grid, scheme and solution of a constant permeability."""
    n, scheme = request.param
    permeability = np.ones((n, n))
    fields = {"permeability": permeability, "source": np.array(1.0)}
    return fields, Grid((n, n)), scheme, oracle.solve(permeability, scheme=scheme)


def test_a_quantity_of_a_constant_field(constant):
    fields, grid, scheme, exact = constant
    (found,) = DARCY.quantities(fields, [Mean()], grid, scheme, tolerance=TOLERANCE)
    assert abs(found.value - exact.mean()) <= found.half_width + 1e-15
    assert found.half_width <= TOLERANCE * found.value


def test_derivatives_of_a_constant_field(constant):
    """The solution is proportional to 1 / a, so its derivative in log a is minus itself."""
    fields, grid, scheme, exact = constant
    ones = np.ones((1, *grid.shape))
    gradient = DARCY.adjoint(fields, ones, grid, scheme, tolerance=TOLERANCE)
    along = np.sum(gradient.logarithmic["permeability"][0])
    assert abs(along + exact.sum()) <= gradient.error[0] + 1e-14 * exact.sum()
    tangent = DARCY.tangent(fields, {"permeability": ones}, grid, scheme, tolerance=TOLERANCE)
    np.testing.assert_allclose(tangent.fields["pressure"][0], -exact, rtol=1e-5)
    assert tangent.relative_error[0] <= 10 * TOLERANCE


@pytest.mark.parametrize("value", [0.0, 0.0625, 1.0])
def test_an_answer_to_a_constant_field(constant, value):
    fields, grid, scheme, exact = constant
    start = {"pressure": np.full(grid.shape, value)}
    found = DARCY.refine(fields, start, grid, scheme, tolerance=TOLERANCE)
    assert found.bound.upper <= TOLERANCE
    np.testing.assert_allclose(found.fields["pressure"], exact, rtol=1e-5)
