"""Scan plans: in which orders a selective scan runs over the points of a grid.

A plan is a tuple of directions; the scan sums their outputs. In the raster and column-major orders one
sequence covers the whole grid; in the axial ones each row or column is its own sequence and the state is
reset at its ends.
"""

from collections.abc import Mapping
from typing import Literal

from operators.scan import Direction

ScanPlan = tuple[Direction, ...]
PlanName = Literal["bi_raster", "cross4", "axial"]

PLANS: Mapping[PlanName, ScanPlan] = {
    # the paper's: one raster path and its reverse (Cheng et al. 2024, arXiv 2410.02113, figure 1)
    "bi_raster": (Direction.FORWARD, Direction.REVERSE),
    # VMamba's cross scan (Liu et al. 2024, arXiv 2401.10166, section 4.2)
    "cross4": (
        Direction.FORWARD,
        Direction.REVERSE,
        Direction.COLUMN_MAJOR,
        Direction.COLUMN_MAJOR_REVERSE,
    ),
    # rows and columns separately, both ways: sequences of length W or H, two layers reach the whole domain
    "axial": (
        Direction.ROW_FORWARD,
        Direction.ROW_REVERSE,
        Direction.COLUMN_FORWARD,
        Direction.COLUMN_REVERSE,
    ),
}
