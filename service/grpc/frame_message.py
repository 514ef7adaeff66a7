"""Frames of a rollout as messages ``mno.v1.Frame``, in parts: their numbers are sent from where they are."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Final, final

from service.frame_trust import CalibratedError
from service.grpc.parts import KEY, Parts, entry, tagged, varint
from service.pb import solver_pb2 as pb
from service.rollout import Frame, Rollout

__all__ = ["FrameWriter"]

# tags: a field's number, and what comes next: 0 is a number, 1 a double, 2 how long it is, and it
STEP: Final = b"\x08"  # Frame.step = 1
TIME: Final = b"\x11"  # Frame.time = 2
FIELDS: Final = b"\x1a"  # Frame.fields = 3
INVARIANTS: Final = b"\x22"  # Frame.invariants = 4
ERROR: Final = b"\x2a"  # Frame.error = 5
OOD_SCORE: Final = b"\x41"  # Frame.ood_score = 8
CHECKED: Final = {
    "defect": b"\x51",  # Frame.defect = 10
    "exponential_bound": b"\x59",  # Frame.exponential_bound = 11
}
NUMBER: Final = b"\x11"  # the value of an entry of a map
DOUBLE: Final = struct.Struct("<d")


@final
class FrameWriter:
    """Writes the frames of a rollout of one state."""

    def __init__(self, rollout: Rollout) -> None:
        self._names = rollout.names
        # a message is the concatenation of its fields, in any order: these are the same in all frames
        self._common = pb.Frame(
            model=rollout.model or "",
            in_distribution=rollout.in_distribution[0],
            explanation=rollout.novelty[0].explanation,
        ).SerializeToString()

    def __call__(self, frame: Frame) -> Parts:
        """The message."""
        parts: list[bytes | memoryview] = [
            STEP,
            varint(frame.step),
            TIME,
            DOUBLE.pack(frame.time),
            self._common,
        ]
        for name, numbers in frame.invariants.items():
            parts += _head(name), DOUBLE.pack(numbers[0])
        if frame.error is not None:
            parts += tagged(ERROR, [_calibrated(frame.error)])
        if frame.ood_scores:
            parts += OOD_SCORE, DOUBLE.pack(frame.ood_scores[0])
        for name, number in frame.checked(0).items():
            parts += CHECKED[name], DOUBLE.pack(number)
        for name in self._names:
            parts += entry(FIELDS, name, frame.fields[name][0])
        return parts


@lru_cache
def _head(name: str) -> bytes:
    """What stands before the number of an invariant."""
    key = name.encode()
    head = KEY + varint(len(key)) + key + NUMBER
    return INVARIANTS + varint(len(head) + DOUBLE.size) + head


def _calibrated(error: CalibratedError) -> bytes:
    known = pb.ErrorEstimate(kind=error.kind, norm=error.norm, upper=error.upper, coverage=error.coverage)
    return known.SerializeToString()
