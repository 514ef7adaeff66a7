"""A rollout as the clients follow it: where a connection breaks, it goes on as if it had not."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from service.client.answers import CalibratedEstimate, Frame
from service.client.connection import BrokenStream, Leg

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
        retries: int,
    ) -> None:
        """``options`` are those of a :class:`Leg`; ``retries``: attempts that bring nothing new."""
        self._problem = problem
        self._options = dict(options)
        self._timeout_ms = self._options.pop("timeout_ms", None)
        self._start: int = self._options.pop("start_step")
        self._origin = _origin(state, self._start)
        self._leg_defect = 0.0
        self._newest = self._start
        self._first: Frame | None = None
        self._retries = retries
        self._failures = 0
        self._began = time.monotonic()

    @property
    def failures(self) -> int:
        """Attempts one after the other that brought nothing new."""
        return self._failures

    def leg(self) -> Leg:
        """What to ask for next."""
        spent = 1000 * (time.monotonic() - self._began)
        options = self._options | {
            "start_step": self._origin.step,
            "timeout_ms": None if self._timeout_ms is None else max(self._timeout_ms - spent, 1.0),
        }
        # the origin moves on while frames come, which are counted from where the leg began
        self._leg_defect = self._origin.mass_defect
        return Leg(self._problem, self._origin.state, self._origin.channels, options)

    def take(self, frame: Frame, block: int) -> Frame | None:
        """The frame as it follows from the first state; None: it was given before."""
        frame = replace(frame, invariants=self._since_the_start(frame.invariants))
        # that of the initial state holds, not that of the state it went on from
        self._first = self._first or frame
        frame = replace(frame, in_distribution=self._first.in_distribution)
        # the service counts its blocks from the step that it was asked to start from
        if (frame.step - self._start) % block == 0:
            self._origin = _after(frame)
        if frame.step <= self._newest:
            return None
        self._newest, self._failures = frame.step, 0
        return frame

    def failed(self, error: BrokenStream) -> str | None:
        """The stream broke. Where it is to be given up, a message that says so; else ask for the next leg."""
        self._failures += 1
        if self._failures > self._retries:
            return f"the stream broke after step {self._newest}: {error}"
        if self._first is not None:
            # an alias may have moved meanwhile
            self._options["model"] = self._first.model or self._options.get("model")
        return None

    @property
    def whole(self) -> bool:
        """Whether all frames are there, whatever became of the end of the stream."""
        steps, every = self._options["steps"], self._options["every"]
        return bool(self._newest == steps - steps % every)

    def _since_the_start(self, invariants: Mapping[str, float]) -> Mapping[str, float]:
        if DEFECT not in invariants:
            return invariants
        return {**invariants, DEFECT: (1 + invariants[DEFECT]) * (1 + self._leg_defect) - 1}


def _origin(state: Mapping[str, NDArray[Any]] | NDArray[Any], step: int) -> _Origin:
    if isinstance(state, Mapping):
        return _Origin(step, np.stack(list(state.values())), ",".join(state))
    return _Origin(step, state, None)


def _after(frame: Frame) -> _Origin:
    state = np.stack(list(frame.fields.values()))
    return _Origin(frame.step, state, ",".join(frame.fields), frame.invariants.get(DEFECT, 0.0))
