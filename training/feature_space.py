"""How the features of a surrogate's training data are distributed.

A Gaussian is fitted to them: mean and covariance, to whose diagonal a thousandth of its mean variance is
added, since some features hardly vary (Lee et al. 2018, arXiv 1807.03888, section 2; shrinkage: Ledoit and
Wolf, J. Multivariate Anal. 88 (2004)).
"""

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from model_store import FeatureSpace

# of the mean variance, added to every variance
SHRINKAGE = 1e-3

Features = Float32[np.ndarray, "row feature"]


def fit(training: Features, held_out: Features) -> FeatureSpace:
    """The features of the training data, and how far those of held-out data are from them.

    Raises:
        ValueError: features that are not finite, or all alike.
    """
    known = training.astype(np.float64)
    # a rollout that diverged says nothing about distances; its infinite error is among the scores
    held_out = held_out[np.isfinite(held_out).all(axis=1)]
    if not (np.isfinite(known).all() and len(held_out)):
        raise ValueError("expected finite features: the weights are not fit to be calibrated")
    space = FeatureSpace(known.mean(axis=0), _factor(known), np.empty(0, np.float32))
    distances = np.sort(space.distance(held_out)).astype(np.float32)
    return FeatureSpace(space.mean, space.cholesky, distances)


def _factor(known: NDArray[np.float64]) -> NDArray[np.float64]:
    """The Cholesky factor of the regularised covariance."""
    covariance = np.atleast_2d(np.cov(known, rowvar=False))
    spread = float(np.trace(covariance)) / len(covariance)
    if not spread > 0:
        raise ValueError("expected features that vary over the training data, got the same for all of it")
    return np.asarray(np.linalg.cholesky(covariance + SHRINKAGE * spread * np.eye(len(covariance))))
