"""The numbers of the diffusion-reaction problem, and how stiff it is."""

import math

from problems.grid import Grid

# diffusivities of activator and inhibitor [m^2/s], and the constant of the reaction [1/s]
DIFFUSIVITY_U = 1e-3
DIFFUSIVITY_V = 5e-3
CONSTANT = 5e-3
# time between two frames [s]
FRAME_INTERVAL = 0.05


def stiffness_of_reaction(largest_u: float, largest_v: float) -> float:
    """Bound of the reaction's decay rate ``3 u^2`` over the frames to come, of max |u| and max |v| [1/s].

    ``u' < 0`` wherever ``u > 1 + cbrt(max |v|)``, so no cell of u leaves the larger of this and its maximum.
    """
    return 3.0 * max(largest_u, 1.0 + math.cbrt(largest_v)) ** 2


def stiffness_of_diffusion(grid: Grid) -> float:
    """Bound of the eigenvalues of the five-point operator times the larger diffusivity [1/s]."""
    hy, hx = grid.spacing
    return 4.0 * DIFFUSIVITY_V * (1.0 / hy**2 + 1.0 / hx**2)
