import math

import numpy as np
import pytest

from problems import Grid


def test_cells_of_a_rectangle():
    grid = Grid((2, 4), (1.0, 3.0))
    y, x = grid.coordinates()
    np.testing.assert_allclose(y, [0.25, 0.75])
    np.testing.assert_allclose(x, [0.375, 1.125, 1.875, 2.625])
    assert grid.spacing == (0.5, 0.75)
    assert grid.cell_area == 0.375


@pytest.mark.parametrize("shape", [(0, 4), (4, -1), (4,)])
def test_bad_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="positive numbers of cells"):
        Grid(shape)


@pytest.mark.parametrize("extent", [(0.0, 1.0), (1.0, -1.0), (math.nan, 1.0), (1.0, math.inf), (1.0,)])
def test_bad_extents_are_refused(extent):
    with pytest.raises(ValueError, match="positive side lengths"):
        Grid((4, 4), extent)
