"""A guaranteed bound of the distance to the solution u of the differential equation itself.

    -div(a grad u) = f,     u = 0 on the walls,     a constant in each cell, f uniform

An answer is one number per cell. What is judged is the function v that it stands for: each cell is cut into
four triangles by its diagonals, v is linear on each, with the cell's value at the center, at a corner the
mean of the four cells around it weighted by their a, and 0 on the walls. For every flux y with ``-div y = f``

    ||a^{1/2} grad(u - v)||  <=  majorant  =  ||a^{-1/2} (y - a grad v)||

(Prager and Synge), without a constant. y is linear across each cell, from face to face (Raviart-Thomas), and
the face values are ``T G x + Lf G w`` of ``assessment``: then the divergence is right in each cell, exactly.
The integrand is quadratic on each triangle, so that the midpoints of its edges integrate it exactly. Both
errors are in it: that of the answer as a solution of the scheme and that of the scheme.

It holds for every scheme, since it does not ask where x comes from; a scheme that sees another domain has
another solution, and this bound shows it.

Source: Prager, Synge (1947); Jiranek, Strakos, Vohralik, SIAM J. Sci. Comput. 32 (2010), also for stopping an
iteration when its error is a tenth of the whole.
"""

# mypy: disable-error-code="no-untyped-def"
# numba infers the types of the kernels

import math
import sys
from dataclasses import dataclass, replace
from typing import final

import numpy as np
from jaxtyping import Float64

from problems import assessment, error_bound
from problems.assessment import Assessment
from problems.compiled import compiled
from problems.linear_system import LinearSystem
from problems.steady import ErrorBound

# the part of the whole error that may be left to the iteration
SHARE = 0.1
_ROUNDING = 1e-12
# a few units in the last place of float64, for the conversion of the answer to these units
_CONVERSION = 2.0**-50
# squares below this may have lost digits to underflow
_SMALLEST_SQUARE = 1e-280


@final
@dataclass(frozen=True)
class Majorant:
    """The energy error against the equation.

    Attributes:
        absolute: upper bound of ``||a^{1/2} grad(u - v)||``.
        size: lower bound of ``||a^{1/2} grad u||``.
        spread: largest energy norm of the function of an answer that is nowhere larger than this one.
    """

    absolute: float
    size: float
    spread: float


def bound(system: LinearSystem, assessed: Assessment, found: ErrorBound, rounding: float) -> ErrorBound:
    """The bound against the equation, from the one against the scheme."""
    whole = majorant(system, assessed)
    leaving = (rounding + _CONVERSION) * whole.spread
    upper = (whole.absolute + leaving) / whole.size if whole.size > 0 else math.inf
    return replace(
        found,
        lower=0.0,
        upper=math.inf if math.isnan(upper) else upper,
        l2_lower=0.0,
        l2_upper=math.inf,
        max_lower=0.0,
        max_upper=math.inf,
        floor=(leaving / whole.size if whole.size > 0 else math.inf) + _ROUNDING,
        reference="pde",
    )


def stops(system: LinearSystem, assessed: Assessment) -> bool:
    """Whether going on would change little: the scheme's own error is most of what is left."""
    whole = majorant(system, assessed)
    left = assessed.error(error_bound.measure(system, assessed).upper)
    return left <= SHARE * whole.absolute < math.inf


def majorant(system: LinearSystem, assessed: Assessment) -> Majorant:
    """The majorant of an answer in float64."""
    carried = assessment.flux(system.faces, system.grid, system.scheme, assessed)
    permeability, (hy, hx) = system.permeability, system.grid.spacing
    corners = _corners(assessed.values, permeability)
    absolute_corners = _corners(np.abs(assessed.values), permeability)
    square, energy, work, spread = _integrate(
        permeability, assessed.values, corners, absolute_corners, carried.x, carried.y, hy / hx, hx / hy
    )
    # what rounding may change in sums over all cells
    count = 8 * corners.size * sys.float_info.epsilon
    work -= count * (float(np.sum(np.abs(assessed.values))) + float(np.sum(absolute_corners)))
    usable = _SMALLEST_SQUARE < energy < math.inf and 0 < work < math.inf
    size = work / math.sqrt(energy) * (1 - count) if usable else 0.0
    # f that the flux does not produce in a cell costs at most its part of f
    absolute = (
        math.sqrt(square) * (1 + _ROUNDING + count)
        + (_ROUNDING + assessed.rounding) * (size + math.sqrt(square)) * 2
    )
    return Majorant(absolute, size * (1 - _ROUNDING), math.sqrt(spread) * (1 + count))


def _corners(
    values: Float64[np.ndarray, "y x"], permeability: Float64[np.ndarray, "y x"]
) -> Float64[np.ndarray, "y1 x1"]:
    ny, nx = values.shape
    corners = np.zeros((ny + 1, nx + 1))
    weighted, weights = permeability * values, permeability
    inside = weighted[:-1, :-1] + weighted[1:, :-1] + weighted[:-1, 1:] + weighted[1:, 1:]
    corners[1:-1, 1:-1] = inside / (weights[:-1, :-1] + weights[1:, :-1] + weights[:-1, 1:] + weights[1:, 1:])
    return corners


@compiled()
def _triangle(a, slope_x, slope_y, x0, x1, x2, y0, y1, y2, ratio_x, ratio_y):
    """Integral of the square of ``y - a grad v`` over one triangle, over a, from three midpoints."""
    flux_x, flux_y = a * ratio_x * slope_x, a * ratio_y * slope_y
    along_x = (x0 - flux_x) ** 2 + (x1 - flux_x) ** 2 + (x2 - flux_x) ** 2
    along_y = (y0 - flux_y) ** 2 + (y1 - flux_y) ** 2 + (y2 - flux_y) ** 2
    return (along_x / ratio_x + along_y / ratio_y) / (12.0 * a)


@compiled()
def _integrate(a, center, corner, absolute, flux_x, flux_y, ratio_x, ratio_y):
    """Squared majorant, squared energy of v, integral of f v and squared energy of a rounded v."""
    ny, nx = center.shape
    square, energy, work, spread = 0.0, 0.0, 0.0, 0.0
    for i in range(ny):
        for j in range(nx):
            c, p, q, r, s = (
                center[i, j],
                corner[i, j],
                corner[i, j + 1],
                corner[i + 1, j],
                corner[i + 1, j + 1],
            )
            left, right, below, above = flux_x[i, j], flux_x[i, j + 1], flux_y[i, j], flux_y[i + 1, j]
            # at 1/4, 1/2 and 3/4 of the way across
            x1, x2, x3 = 0.75 * left + 0.25 * right, 0.5 * (left + right), 0.25 * left + 0.75 * right
            y1, y2, y3 = 0.75 * below + 0.25 * above, 0.5 * (below + above), 0.25 * below + 0.75 * above
            k = a[i, j]
            square += (
                _triangle(k, q - p, 2 * c - p - q, x1, x2, x3, below, y1, y1, ratio_x, ratio_y)
                + _triangle(k, s - r, r + s - 2 * c, x1, x2, x3, above, y3, y3, ratio_x, ratio_y)
                + _triangle(k, 2 * c - p - r, r - p, left, x1, x1, y1, y2, y3, ratio_x, ratio_y)
                + _triangle(k, q + s - 2 * c, s - q, right, x3, x3, y1, y2, y3, ratio_x, ratio_y)
            )
            along_x = (q - p) ** 2 + (s - r) ** 2 + (2 * c - p - r) ** 2 + (q + s - 2 * c) ** 2
            along_y = (r - p) ** 2 + (s - q) ** 2 + (2 * c - p - q) ** 2 + (r + s - 2 * c) ** 2
            energy += 0.25 * k * (ratio_x * along_x + ratio_y * along_y)
            work += c / 3.0 + (p + q + r + s) / 6.0
            m = 2 * abs(c) + absolute[i, j] + absolute[i, j + 1] + absolute[i + 1, j] + absolute[i + 1, j + 1]
            spread += k * (ratio_x + ratio_y) * m * m
    return square, energy, work, spread
