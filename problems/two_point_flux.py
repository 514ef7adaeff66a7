"""Two-point-flux finite volumes for ``-div(a grad u) = f`` with u = 0 around the rectangle.

Integrated over a cell, the equation says that what flows out through its faces is what is produced inside::

    sum_f T_f (u_i - u_j) = hx hy f

``T_f`` is the transmissibility of the face between cells i and j: a mean of the two permeabilities times face
length over distance. In matrix form ``A u = b`` with ``A = G^T T G``, symmetric positive definite, an
M-matrix. Two schemes:

* ``tpfa-harmonic-v1``: harmonic mean; u = 0 on the wall, half a cell from the centre, so a wall face has ``2
  a``. Second order.
* ``pdebench-ghost0-v1``: arithmetic mean; u = 0 at the ghost cell's centre, a whole cell away, so a wall face
  has ``a``. This is the operator of PDEBench's Darcy labels (Takamoto et al. 2022); it sees a domain that is
  one cell larger.

Source: Eymard, Gallouet, Herbin, *Finite Volume Methods*, Handbook of Numerical Analysis VII (2000), section
9.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
import scipy
from jaxtyping import Float64

from problems.grid import Grid

Mean = Callable[[Float64[np.ndarray, "y x"], Float64[np.ndarray, "y x"]], Float64[np.ndarray, "y x"]]


@dataclass(frozen=True)
class Scheme:
    """A discrete operator.

    Attributes:
        id: what data sets, cards and answers call it.
        mean: face permeability from those of the two cells.
        share: derivative of the logarithm of ``mean`` with respect to that of its first argument.
        wall_distance: distance from the first centre to u = 0, in cells.
        sine_transform: type of the sine transform that diagonalises it for a = 1.
    """

    id: str
    mean: Mean
    share: Mean
    wall_distance: float
    sine_transform: Literal[1, 2]


@dataclass(frozen=True)
class Faces:
    """One number for each face: transmissibilities [m^2/(Pa s)], or fluxes.

    Attributes:
        x: faces normal to x, walls included.
        y: faces normal to y, walls included.
    """

    x: Float64[np.ndarray, "ny nx_faces"]
    y: Float64[np.ndarray, "ny_faces nx"]


def _harmonic(a: Float64[np.ndarray, "y x"], b: Float64[np.ndarray, "y x"]) -> Float64[np.ndarray, "y x"]:
    # in this order nothing overflows or vanishes
    return np.asarray(2.0 * (a / (a + b)) * b)


def _arithmetic(a: Float64[np.ndarray, "y x"], b: Float64[np.ndarray, "y x"]) -> Float64[np.ndarray, "y x"]:
    return np.asarray(0.5 * (a + b))


def _harmonic_share(
    a: Float64[np.ndarray, "y x"], b: Float64[np.ndarray, "y x"]
) -> Float64[np.ndarray, "y x"]:
    return np.asarray(b / (a + b))


def _arithmetic_share(
    a: Float64[np.ndarray, "y x"], b: Float64[np.ndarray, "y x"]
) -> Float64[np.ndarray, "y x"]:
    return np.asarray(a / (a + b))


SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {
        scheme.id: scheme
        for scheme in (
            Scheme("tpfa-harmonic-v1", _harmonic, _harmonic_share, wall_distance=0.5, sine_transform=2),
            Scheme("pdebench-ghost0-v1", _arithmetic, _arithmetic_share, wall_distance=1.0, sine_transform=1),
        )
    }
)


def transmissibilities(permeability: Float64[np.ndarray, "y x"], grid: Grid, scheme: Scheme) -> Faces:
    """Transmissibility of every face."""
    a, (hy, hx) = permeability, grid.spacing
    ny, nx = a.shape
    x, y = np.empty((ny, nx + 1)), np.empty((ny + 1, nx))
    x[:, 1:-1] = scheme.mean(a[:, :-1], a[:, 1:])
    y[1:-1] = scheme.mean(a[:-1], a[1:])
    x[:, 0], x[:, -1] = a[:, 0] / scheme.wall_distance, a[:, -1] / scheme.wall_distance
    y[0], y[-1] = a[0] / scheme.wall_distance, a[-1] / scheme.wall_distance
    if hx != hy:
        x *= hy / hx
        y *= hx / hy
    return Faces(x, y)


def differences(u: Float64[np.ndarray, "y x"]) -> Faces:
    """``G u``: the value behind each face (towards +x, +y) minus the one before it; 0 outside the walls."""
    ny, nx = u.shape
    x, y = np.empty((ny, nx + 1)), np.empty((ny + 1, nx))
    np.subtract(u[:, 1:], u[:, :-1], out=x[:, 1:-1])
    np.subtract(u[1:], u[:-1], out=y[1:-1])
    x[:, 0], x[:, -1], y[0], y[-1] = u[:, 0], -u[:, -1], u[0], -u[-1]
    return Faces(x, y)


def apply(faces: Faces, u: Float64[np.ndarray, "y x"]) -> Float64[np.ndarray, "y x"]:
    """``A u``: net outflow of every cell."""
    flux = differences(u)
    flux.x[:] *= faces.x
    flux.y[:] *= faces.y
    outflow = flux.x[:, :-1] - flux.x[:, 1:]
    outflow += flux.y[:-1]
    outflow -= flux.y[1:]
    return np.asarray(outflow)


def right_hand_side(source: float, grid: Grid) -> Float64[np.ndarray, "y x"]:
    """``b``: what a uniform source produces in every cell."""
    return np.full(grid.shape, source * grid.cell_area)


def assemble(faces: Faces) -> "scipy.sparse.csc_array":
    """``A`` as a sparse matrix; unknowns are numbered along x first."""
    diagonal = faces.x[:, :-1] + faces.x[:, 1:] + faces.y[:-1] + faces.y[1:]
    cell = np.arange(diagonal.size).reshape(diagonal.shape)
    left, right, below, above = (c.ravel() for c in (cell[:, :-1], cell[:, 1:], cell[:-1], cell[1:]))
    across_x, across_y = -faces.x[:, 1:-1].ravel(), -faces.y[1:-1].ravel()
    values = np.concatenate([diagonal.ravel(), across_x, across_x, across_y, across_y])
    rows = np.concatenate([cell.ravel(), left, right, below, above])
    columns = np.concatenate([cell.ravel(), right, left, above, below])
    return scipy.sparse.csc_array((values, (rows, columns)), shape=(cell.size, cell.size))
