"""How strongly a coefficient varies: what decides, beside the equation, how hard a field is to solve.

An operator that has learnt from some fields is to be trusted on others that vary as strongly in every way.
The contrast alone does not tell: a smooth medium and a binary one of the same contrast have little in common,
and white noise differs from a few large inclusions in nothing but the number of its jumps.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Variation:
    """Three numbers, which neither a constant factor nor a symmetry of the grid changes.

    Attributes:
        contrast: largest over smallest value.
        jump: largest ratio of two neighboring cells.
        roughness: root mean square, over all pairs of neighboring cells, of the logarithm of their ratio.
    """

    contrast: float
    jump: float
    roughness: float


def variation(coefficient: Float[np.ndarray, "y x"]) -> Variation:
    """The variation of a positive field."""
    logarithm = np.log(coefficient, dtype=np.float64)
    across_y, across_x = np.diff(logarithm, axis=0).ravel(), np.diff(logarithm, axis=1).ravel()
    steps = np.concatenate([across_y, across_x])
    largest = max(steps.max(initial=0.0), -steps.min(initial=0.0))
    # a ratio beyond float64 is infinite
    with np.errstate(over="ignore"):
        return Variation(
            contrast=float(np.exp(np.ptp(logarithm))),
            jump=float(np.exp(largest)),
            roughness=float(np.sqrt(np.sum(steps**2) / max(steps.size, 1))),
        )
