"""How often a calibrated quantile covers fresh samples, beside how often it may by chance."""

from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

COVERAGES = (0.8, 0.9, 0.95)
CONFIDENCE = 0.99
# a run with this seed beside its own makes no sample of its data
FRESH_SEED = 20261122


class Covered(NamedTuple):
    """How many of some samples a quantile covered.

    Attributes:
        binomial: the numbers between which 99 in 100 draws lie, if the quantile were the exact one.
        with_calibration: the same, with the chance of the calibration sample.
    """

    covered: int
    samples: int
    binomial: tuple[int, int]
    with_calibration: tuple[int, int]


def covered(errors: NDArray[np.float64], quantile: float, coverage: float, calibrated: int) -> Covered:
    """Compare fresh errors with a quantile of ``calibrated`` samples."""
    count = len(errors)
    rank = int(np.ceil((calibrated + 1) * coverage - 1e-9))
    exact = scipy.stats.binom(count, coverage).interval(CONFIDENCE)
    both = scipy.stats.betabinom(count, rank, calibrated + 1 - rank).interval(CONFIDENCE)
    least, most = (tuple(int(end) for end in interval) for interval in (exact, both))
    return Covered(int((errors <= quantile).sum()), count, (least[0], least[1]), (most[0], most[1]))
