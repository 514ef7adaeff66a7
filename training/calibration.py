"""Error estimates for rollouts: quantiles of the errors on trajectories never trained on (split conformal).

For a new trajectory drawn like the n calibration ones, the error at a horizon is at most the
``ceil((n + 1) coverage)``-th smallest of theirs with a probability of at least ``coverage`` (Vovk, Gammerman
and Shafer 2005; Lei et al. 2018, section 2). It says nothing about one given input, and nothing about inputs
of another kind.
"""

import math
from collections.abc import Iterable

import numpy as np

from training.trajectory_evaluation import TrajectoryEvaluation
from training.trajectory_metrics import headline

COVERAGE = 0.9
# frames between two calibrated horizons
STRIDE = 5


def calibrate(evaluations: Iterable[TrajectoryEvaluation]) -> dict[str, float]:
    """``<metric>_q90.frame_<steps>`` -> quantile of the error so many frames after the last given one.

    Args:
        evaluations: of the families that the version has learnt from, from their test splits.
    """
    found = list(evaluations)
    if not found:
        return {}
    metric = headline(found[0].problem)
    frames = min(one.window.frames for one in found)
    errors = np.concatenate([one.curves[metric][:, :frames] for one in found])
    rank = math.ceil((len(errors) + 1) * COVERAGE)
    # too few trajectories to promise anything, or one that has diverged
    if rank > len(errors) or not np.isfinite(errors).all():
        return {}
    quantiles = np.sort(errors, axis=0)[rank - 1]
    horizons = sorted({1, *range(STRIDE, frames + 1, STRIDE), frames})
    return {
        f"{metric}_q{round(100 * COVERAGE)}.frame_{steps}": float(quantiles[steps - 1]) for steps in horizons
    }
