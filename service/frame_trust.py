"""What is known about the frames of a rollout: errors calibrated on held-out data, and a look at the state.

Neither is a guarantee: the upper bound holds for nine in ten states of the kind that the version was
calibrated on, and says nothing about others, which is why each frame carries both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, Self, final

import numpy as np

__all__ = ["CalibratedError", "Calibration", "within_hull"]

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


@final
@dataclass(frozen=True)
class Calibration:
    """How errors grow, as a card says.

    Attributes:
        norm: of the errors.
        coverage: the share of all states like those in training whose errors are no larger.
        frames: for which errors are known, in their order; none: nothing is known.
        errors: relative.
    """

    norm: str
    coverage: float
    frames: tuple[int, ...]
    errors: tuple[float, ...]

    @classmethod
    def of(cls, card: Mapping[str, float]) -> Self:
        """What the calibration of a card says; its frames count from the last given one."""
        found = [(match, value) for key, value in card.items() if (match := _KEY.fullmatch(key))]
        if not found:
            return cls("", 0.0, (), ())
        frames, errors = zip(*sorted((int(match[3]), value) for match, value in found), strict=True)
        return cls(found[0][0][1], int(found[0][0][2]) / 100, frames, errors)

    def error(self, steps: int) -> CalibratedError | None:
        """The error after so many steps, between the frames of the card's; None beyond the last of them.

        Args:
            steps: since the given state, or since the card's first frame where that is earlier.
        """
        if not self.frames or steps > self.frames[-1]:
            return None
        # errors grow: before the first of the frames its own error is on the safe side
        upper = float(np.interp(steps, self.frames, self.errors))
        return CalibratedError("calibrated", self.norm, upper, self.coverage)


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
