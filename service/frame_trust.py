"""What is known about the frames of a rollout: errors calibrated on held-out data, and a look at the state.

Neither is a guarantee: the upper bound holds for nine in ten states of the kind that the version was
calibrated on, and says nothing about others, which is why each frame carries both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

__all__ = ["CalibratedError", "calibrated_error", "within_hull"]

# of a card's calibration: the norm, the quantile in percent, the frame
_KEY: Final = re.compile(r"(perturbation_l2|relative_l2)_q(\d+)\.frame_(\d+)")
# a number that was on the edge of the hull still is after it was rounded to float32
_SLACK: Final = 1e-6


@dataclass(frozen=True)
class CalibratedError:
    """``upper`` bounds the relative error of a share ``coverage`` of all states like those in training."""

    kind: Literal["calibrated"]
    norm: str
    upper: float
    coverage: float


def calibrated_error(calibration: Mapping[str, float], steps: int) -> CalibratedError | None:
    """The error after so many steps, between the frames of the card's; None beyond the last of them.

    Args:
        calibration: of the card; its frames count from the last given one.
        steps: since the given state, or since the card's first frame where that is earlier.
    """
    found = [(match, value) for key, value in calibration.items() if (match := _KEY.fullmatch(key))]
    if not found:
        return None
    points = sorted((int(match[3]), value) for match, value in found)
    frames, values = zip(*points, strict=True)
    if steps > frames[-1]:
        return None
    # errors grow: before the first of the frames its own error is on the safe side
    upper = float(np.interp(steps, frames, values))
    return CalibratedError("calibrated", found[0][0][1], upper, int(found[0][0][2]) / 100)


def within_hull(hull: Mapping[str, float], features: Mapping[str, float]) -> bool:
    """Whether a state has the features of those that the version was trained on.

    A feature that the hull lacks is not compared; a hull without any vouches for nothing.
    """
    lower = {name: hull[f"{name}_min"] for name in features if f"{name}_min" in hull}
    upper = {name: hull[f"{name}_max"] for name in features if f"{name}_max" in hull}
    if not (lower or upper):
        return False
    return all(features[name] >= bound - _SLACK * abs(bound) for name, bound in lower.items()) and all(
        features[name] <= bound + _SLACK * abs(bound) for name, bound in upper.items()
    )
