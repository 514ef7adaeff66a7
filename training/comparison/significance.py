"""Whether operators differ by more than their seeds do.

Errors are compared by their logarithms: seeds scatter an error by a factor rather than by an amount.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Float64

# of error of the first kind, for all operators of a problem together
LEVEL = 0.05

Logarithms = Float64[np.ndarray, " seed"]


class GeometricMean(NamedTuple):
    """A geometric mean, and the ends of its 95 % interval; they are NaN where no interval can be given."""

    value: float
    low: float
    high: float


def geometric_mean(errors: Sequence[float]) -> GeometricMean:
    """The geometric mean over seeds, with Student's 95 % interval of the mean logarithm.

    It is infinite if one of the errors is: whoever diverges once cannot be relied on.

    Raises:
        ValueError: there are no errors, or one is negative.
    """
    logarithms = _logarithms(errors)
    if np.isposinf(logarithms).any():
        return GeometricMean(math.inf, math.nan, math.nan)
    mean, count = float(logarithms.mean()), len(logarithms)
    if count < 2 or not np.isfinite(mean):
        return GeometricMean(math.exp(mean), math.nan, math.nan)
    quantile = float(scipy.stats.t.ppf(0.975, count - 1))
    half = quantile * float(logarithms.std(ddof=1)) / math.sqrt(count)
    return GeometricMean(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def best_of(errors: Mapping[str, Sequence[float]]) -> str | None:
    """The operator with the least geometric mean over its seeds; None if there is no finite one."""
    means = {name: geometric_mean(values).value for name, values in errors.items()}
    best = min(means, key=means.__getitem__, default=None)
    return best if best is not None and math.isfinite(means[best]) else None


def compare_with_best(errors: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """How probable so large a difference from the best operator is if there is none.

    Welch's t-test (Welch 1947, Biometrika 34, 28-35) of the logarithms, two-sided, corrected for the number
    of operators by Holm's method (Holm 1979, Scand. J. Statist. 6, 65-70). The best one is chosen from the
    same errors, which the correction does not account for.

    Args:
        errors: operator -> its errors, one for each seed.

    Returns:
        Operator -> corrected p-value. NaN where nothing can be tested: for the best one itself, with fewer
        than two seeds, and with errors that are zero or not finite.

    Raises:
        ValueError: an operator has no errors, or a negative one.
    """
    best = best_of(errors)
    found = dict.fromkeys(errors, math.nan)
    if best is None:
        return found
    reference = _logarithms(errors[best])
    tested = {name: _welch(_logarithms(errors[name]), reference) for name in errors if name != best}
    return found | holm({name: value for name, value in tested.items() if not math.isnan(value)})


def like_the_best(errors: Mapping[str, Sequence[float]]) -> frozenset[str]:
    """The best operator and those that cannot be told from it; empty where nothing can be tested."""
    found = {name: value for name, value in compare_with_best(errors).items() if not math.isnan(value)}
    best = best_of(errors)
    if best is None or not found:
        return frozenset()
    return frozenset({best, *(name for name, value in found.items() if value >= LEVEL)})


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Corrected p-values: the smallest times their number, the next one times one less, and never falling."""
    found: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        found[name] = largest
    return found


def least_difference(seeds: int, tests: int) -> float:
    """How far apart two means over seeds must be to be told apart, in standard deviations over seeds.

    For two operators of equal spread, by Student's test at ``LEVEL / tests`` (with ``tests`` > 1 the first
    and strictest step of Holm's method).
    """
    quantile = float(scipy.stats.t.ppf(1.0 - LEVEL / tests / 2.0, 2 * (seeds - 1)))
    return quantile * math.sqrt(2.0 / seeds)


def _logarithms(errors: Sequence[float]) -> Logarithms:
    """Of errors, where one that is not a number counts as infinite."""
    values = np.asarray(errors, np.float64)
    if not len(values):
        raise ValueError("expected the error of at least one seed, got none")
    if (values < 0.0).any():
        raise ValueError(f"expected errors of at least 0, got {values.min():g}")
    with np.errstate(divide="ignore"):
        return np.log(np.where(np.isnan(values), np.inf, values))


def _welch(one: Logarithms, other: Logarithms) -> float:
    """Two-sided p-value of equal means, the variances being unequal; NaN where it has none."""
    both = (one, other)
    if any(len(values) < 2 or not np.isfinite(values).all() for values in both):
        return math.nan
    if all(np.ptp(values) == 0.0 for values in both):
        # where nothing scatters any difference is one: the limit of the test
        return float(one[0] == other[0])
    (m1, s1, n1), (m2, s2, n2) = ((v.mean(), v.std(ddof=1), len(v)) for v in both)
    # from moments: from samples SciPy warns where one of them does not scatter
    return float(scipy.stats.ttest_ind_from_stats(m1, s1, n1, m2, s2, n2, equal_var=False).pvalue)
