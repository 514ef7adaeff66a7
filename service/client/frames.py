"""A rollout as the clients follow it: where a connection breaks, it goes on as if it had not."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from service.client.answers import CalibratedEstimate, Frame
from service.client.connection import LEAST_MS, Leg
from service.client.retrying import Patience, Retryable

__all__ = ["CalibratedEstimate", "Follower", "Frame"]

# an invariant that the service counts from the state that it was sent
DEFECT = "mass_defect"


@dataclass(frozen=True)
class _Origin:
    """Where a stream begins, or goes on.

    Attributes:
        channels: names of the channels of ``state``, comma-separated; None: those of the problem.
        mass_defect: what the state had lost by ``step``.
    """

    step: int
    state: NDArray[Any]
    channels: str | None
    mass_defect: float = 0.0


@final
class Follower:
    """Knows how far a rollout is, and from where it can go on."""

    def __init__(
        self,
        problem: str,
        state: Mapping[str, NDArray[Any]] | NDArray[Any],
        options: Mapping[str, Any],
        patience: Patience,
    ) -> None:
        """``options`` are those of a :class:`Leg`.

        Raises:
            ValueError: ``every`` is below 1, or ``defects`` is no number of frames.
        """
        if options["every"] < 1:
            raise ValueError(f"every: expected 1 or more, got {options['every']}")
        _check_defects(options.get("defects", 0))
        self._problem = problem
        self._options = dict(options)
        self._timeout_ms = self._options.pop("timeout_ms", None)
        self._start: int = self._options.pop("start_step")
        self._origin = _origin(state, self._start)
        self._leg_defect = 0.0
        self._leg_start = self._start
        self._newest = self._start
        self._first: Frame | None = None
        self._patience = patience
        self._attempts = patience.attempts(options)
        self._began = time.monotonic()

    def leg(self) -> Leg:
        """What to ask for next."""
        options = self._options | {"start_step": self._origin.step, "timeout_ms": self._left()}
        if self._first is not None:
            # an alias may have moved meanwhile
            options["model"] = self._first.model or options.get("model")
        # the origin moves on while frames come, which are counted from where the leg began
        self._leg_defect = self._origin.mass_defect
        self._leg_start = self._origin.step
        return Leg(self._problem, self._origin.state, self._origin.channels, options)

    def take(self, frame: Frame, block: int) -> Frame | None:
        """The frame as it follows from the first state; None: it was given before."""
        frame = replace(frame, invariants=self._since_the_start(frame.invariants))
        # that of the initial state holds, not that of the state it went on from
        self._first = self._first or frame
        frame = replace(frame, in_distribution=self._first.in_distribution)
        if self._leg_start != self._start:
            # it speaks of the solution from where the leg began
            frame = replace(frame, exponential_bound=None)
        # the service counts its blocks from the step that it was asked to start from
        if (frame.step - self._start) % block == 0:
            self._origin = _after(frame)
        if frame.step <= self._newest:
            return None
        self._newest = frame.step
        self._attempts = self._patience.attempts({"timeout_ms": self._left()})
        return frame

    def after(self, failure: Retryable) -> float:
        """How long to wait before the next leg [s].

        Raises:
            Exception: that of the failure, when nothing new has come for too long.
        """
        if self.whole:
            # nothing is left to ask for
            return 0.0
        if self._first is not None:
            failure.error.add_note(f"the rollout has its frames up to step {self._newest}")
        return self._attempts.pause(failure)

    @property
    def whole(self) -> bool:
        """Whether all frames are there, whatever became of the end of the stream."""
        steps, every = self._options["steps"], self._options["every"]
        return self._first is not None and bool(self._newest == steps - steps % every)

    def _left(self) -> float | None:
        """Of the time for the last frame [ms]; None: all the time that it takes."""
        if self._timeout_ms is None:
            return None
        spent = 1000 * (time.monotonic() - self._began)
        return max(float(self._timeout_ms) - spent, LEAST_MS)

    def _since_the_start(self, invariants: Mapping[str, float]) -> Mapping[str, float]:
        if DEFECT not in invariants:
            return invariants
        return {**invariants, DEFECT: (1 + invariants[DEFECT]) * (1 + self._leg_defect) - 1}


def _check_defects(wanted: Any) -> None:
    number = isinstance(wanted, int) and not isinstance(wanted, bool)
    if wanted != "all" and not (number and 0 <= wanted < 2**32):
        raise ValueError(f"defects: expected a number of frames from 0 on, or 'all', got {wanted!r}")


def _origin(state: Mapping[str, NDArray[Any]] | NDArray[Any], step: int) -> _Origin:
    if isinstance(state, Mapping):
        return _Origin(step, np.stack(list(state.values())), ",".join(state))
    return _Origin(step, state, None)


def _after(frame: Frame) -> _Origin:
    state = np.stack(list(frame.fields.values()))
    return _Origin(frame.step, state, ",".join(frame.fields), frame.invariants.get(DEFECT, 0.0))
