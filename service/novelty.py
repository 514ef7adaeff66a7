"""Whether an input is of the kind that a version has learnt from, and if not, what is unusual about it.

Three things are looked at: bounds of some numbers over the training inputs (the hull), the features that the
version makes of the input (``Solutions.novelty``), and, where the error of the answer can be measured, that
error. The last one decides where there is one, since a new input may be an easy one: features alone then
condemn nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Final, NamedTuple, final

from problems import ErrorBound, Variation
from service.errors import InvalidField
from service.versions.served import ServedVersion

__all__ = [
    "FAMILIAR",
    "UNUSUAL",
    "Novelty",
    "outside",
    "outside_variation",
    "require_in_range",
    "state_novelty",
    "steady_novelty",
]

# a share of at least this much of the calibration data being nearer to the training data is a flag: in
# distribution one input in a hundred has it
UNUSUAL: Final = 0.99
# of a version's quantiles: what the errors of 95 % of familiar inputs stay below, and their estimates by one
# multigrid cycle, which are a little smaller
_USUAL_ERROR: Final = "relative_l2_q95"
_USUAL_ESTIMATE: Final = "l2_estimate_q95"
# a number that was on the edge of the hull still is after it was rounded to float32
_SLACK: Final = 1e-6


@final
class Novelty(NamedTuple):
    """What is known of one input.

    Attributes:
        in_distribution: whether it resembles the training data.
        score: the share of the calibration data that resembles it more, [0, 1); None: nobody can tell.
        explanation: what is unusual; empty for an input that resembles the training data.
    """

    in_distribution: bool
    score: float | None = None
    explanation: str = ""


# of an input that a reference solver has answered: it has learnt nothing
FAMILIAR: Final = Novelty(in_distribution=True)


def steady_novelty(
    version: ServedVersion,
    found: Sequence[Variation],
    bounds: Sequence[ErrorBound] = (),
    scores: Sequence[float] = (),
) -> tuple[Novelty, ...]:
    """Of each input of a steady problem.

    Args:
        version: has answered.
        found: how the coefficient of each row varies.
        bounds: of the errors of the version's own answers; empty: they were not looked at.
        scores: ``Solutions.novelty``.
    """
    rows = zip_longest(found, bounds, scores)
    return tuple(
        _told(
            outside_variation(version.training_hull, variation),
            score,
            None if bound is None else _unusual_error(bound, version.calibration),
        )
        for variation, bound, score in rows
    )


def state_novelty(
    hull: Mapping[str, float], features: Iterable[Mapping[str, float]], scores: Sequence[float] = ()
) -> tuple[Novelty, ...]:
    """Of each initial state of an evolution problem.

    Args:
        hull: bounds of the training states.
        features: of each row, as ``EvolutionProblem.features`` has them.
        scores: ``Solutions.novelty``.
    """
    return tuple(_told(outside(hull, each), score, None) for each, score in zip_longest(features, scores))


def require_in_range(
    version: ServedVersion, field: str, outside_of: Sequence[Sequence[str]], *, single: bool
) -> None:
    """Refuse what is outside of the bounds of a version that wants that.

    Args:
        version: is to answer.
        field: name of the field that the bounds speak of.
        outside_of: of each row, what is outside.
        single: there is one input, not a batch of one.

    Raises:
        InvalidField: a row is outside.
    """
    if version.hard_range != "refuse":
        return
    for row, reasons in enumerate(outside_of):
        if reasons:
            message = f"{field}: {'; '.join(reasons)}; {version} answers nothing else, choose another model"
            raise InvalidField(field, "out-of-range", message, None if single else (row,))


def outside(hull: Mapping[str, float], features: Mapping[str, float]) -> tuple[str, ...]:
    """What of an input is outside of the hull; a feature that the hull lacks is not compared."""
    reasons, compared = [], False
    for name, value in features.items():
        least, most = hull.get(f"{name}_min"), hull.get(f"{name}_max")
        compared = compared or least is not None or most is not None
        # written so that NaN is outside
        if least is not None and not value >= least - _SLACK * abs(least):
            reasons.append(f"{name} {value:.3g}, training min {least:.3g}")
        elif most is not None and not value <= most + _SLACK * abs(most):
            reasons.append(f"{name} {value:.3g}, training max {most:.3g}")
    return tuple(reasons) if compared else (_UNKNOWN_HULL,)


_UNKNOWN_HULL: Final = "the version does not say what its training data were like"


def outside_variation(hull: Mapping[str, float], found: Variation) -> tuple[str, ...]:
    """What of a coefficient varies as none did that the version was trained on.

    A version without a range of contrasts in its hull vouches for nothing. One whose hull lacks ``jump_max``
    or ``roughness_max``, as older cards do, vouches for what it names and no more.
    """
    if not {"contrast_min", "contrast_max"} <= hull.keys():
        return (_UNKNOWN_HULL,)
    return outside(hull, vars(found))


def _unusual_error(bound: ErrorBound, calibration: Mapping[str, float]) -> str | None:
    """What is unusual about an error; empty where it is usual, None where nobody knows what is."""
    # after some solver steps an estimate is as good as the error
    usual = calibration.get(_USUAL_ERROR if bound.steps else _USUAL_ESTIMATE)
    if usual is None:
        return None
    estimate = bound.l2_estimate
    if estimate <= usual:
        return ""
    size = "is not finite" if not math.isfinite(estimate) else f"about {estimate:.2g}"
    return f"relative L2 error {size}, in distribution 95 % stay below {usual:.2g}"


def _told(reasons: Sequence[str], score: float | None, error: str | None) -> Novelty:
    """Put together; ``error`` says what is unusual about a measured error, None: it was not measured."""
    unusual = error is None and score is not None and score >= UNUSUAL
    decisive = [*reasons, *([error] if error else [])]
    if unusual:
        decisive.append(f"features rarer than those of {100 * (score or 0.0):.1f} % of the calibration data")
    return Novelty(not decisive, score, "; ".join(decisive))
