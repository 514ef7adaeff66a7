"""What is known about the errors of the frames of a rollout: they are calibrated on held-out data.

That is no guarantee: the upper bound holds for nine in ten states of the kind that the version was calibrated
on, and says nothing about others, which is why a rollout says of its state too whether it is of that kind
(``novelty.py``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, Self, final

import numpy as np

__all__ = ["CalibratedError", "Calibration"]

# of a card's calibration: the norm, the quantile in percent, the frame
_KEY: Final = re.compile(r"(perturbation_l2|relative_l2)_q(\d+)\.frame_(\d+)")


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
