"""Frames of a rollout as the client sees them; a stream that breaks goes on from its last frames."""

from __future__ import annotations

import io
import json
import math
import struct
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import httpx
import numpy as np
from numpy.typing import ArrayLike, NDArray

from service.connection import NPY_STREAM, PAUSE, Connection, ServiceError, npy_bytes

__all__ = ["CalibratedEstimate", "Frame", "follow"]

# an invariant that the service counts from the state that it was sent
DEFECT = "mass_defect"


@dataclass(frozen=True)
class CalibratedEstimate:
    """``upper`` bounds the relative error of a share ``coverage`` of all states like those in training."""

    kind: str
    norm: str
    upper: float
    coverage: float


@dataclass(frozen=True)
class Frame:
    """The state after a step.

    Attributes:
        step: counted from the initial state, which is step 0.
        time: of the step [s].
        fields: (y, x) by name.
        invariants: numbers by name, such as ``mass_defect``.
        error: what is known about the error at this step, None where nothing is.
        in_distribution: whether the initial state resembles the training data.
        model: the version that stepped, None for the reference solver.
    """

    step: int
    time: float
    fields: Mapping[str, NDArray[Any]]
    invariants: Mapping[str, float]
    error: CalibratedEstimate | None
    in_distribution: bool
    model: str | None


class _BrokenStream(Exception):
    """The stream ended before its end."""


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


def follow(
    connection: Connection,
    problem: str,
    state: Mapping[str, ArrayLike] | ArrayLike,
    start_step: int,
    options: Mapping[str, Any],
) -> Generator[Frame, None, None]:
    """The frames of a rollout; where the connection breaks, they go on as if it had not."""
    path, options = f"/v1/problems/{problem}/rollout", dict(options)
    origin = _origin(state, start_step)
    began, timeout_ms = time.monotonic(), options.pop("timeout_ms", None)
    newest, first, failures = start_step, None, 0
    while True:
        spent = 1000 * (time.monotonic() - began)
        query = options | {
            "start_step": origin.step,
            "fields": origin.channels,
            "timeout_ms": None if timeout_ms is None else max(timeout_ms - spent, 1.0),
        }
        try:
            with connection.stream(path, npy_bytes(origin.state), query, NPY_STREAM) as response:
                for frame in _frames(response, origin):
                    # that of the initial state holds, not that of the state it went on from
                    first = first or frame
                    frame = replace(frame, in_distribution=first.in_distribution)
                    # the service counts its blocks from the step that it was asked to start from
                    if (frame.step - start_step) % int(response.headers["Mno-Block"]) == 0:
                        origin = _after(frame)
                    if frame.step > newest:
                        newest, failures = frame.step, 0
                        yield frame
                return
        except (httpx.TransportError, _BrokenStream) as error:
            if newest == options["steps"] - options["steps"] % options["every"]:
                return
            failures += 1
            if failures > connection.retries:
                raise httpx.ReadError(f"the stream broke after step {newest}: {error}") from error
        if first is not None:
            # an alias may have moved meanwhile
            options["model"] = first.model or options.get("model")
        if failures > 1:
            time.sleep(PAUSE)


def _origin(state: Mapping[str, ArrayLike] | ArrayLike, step: int) -> _Origin:
    if isinstance(state, Mapping):
        return _Origin(step, np.stack([np.asarray(field) for field in state.values()]), ",".join(state))
    return _Origin(step, np.asarray(state), None)


def _after(frame: Frame) -> _Origin:
    state = np.stack(list(frame.fields.values()))
    return _Origin(frame.step, state, ",".join(frame.fields), frame.invariants.get(DEFECT, 0.0))


def _frames(response: httpx.Response, origin: _Origin) -> Iterator[Frame]:
    names = response.headers["Mno-Fields"].split(",")
    records = _Records(response.iter_bytes())
    while (record := records.next()) is not None:
        known = json.loads(record)
        if "step" not in known:
            raise ServiceError(int(known["error"]["status"]), known["error"])
        array = np.load(io.BytesIO(records.next() or b""), allow_pickle=False)
        yield Frame(
            step=known["step"],
            time=known["time"],
            fields=dict(zip(names, array, strict=True)),
            invariants=_since_the_start(known["invariants"], origin),
            error=_estimate(known["error"]),
            in_distribution=known["in_distribution"],
            model=response.headers["Mno-Model"] or None,
        )


def _since_the_start(given: Mapping[str, float | None], origin: _Origin) -> dict[str, float]:
    # JSON has no number for what overflowed
    invariants = {name: math.nan if value is None else value for name, value in given.items()}
    if DEFECT not in invariants:
        return invariants
    return invariants | {DEFECT: (1 + invariants[DEFECT]) * (1 + origin.mass_defect) - 1}


def _estimate(document: Mapping[str, Any] | None) -> CalibratedEstimate | None:
    if document is None:
        return None
    # a newer service may say more than this client knows
    return CalibratedEstimate(document["kind"], document["norm"], document["upper"], document["coverage"])


@final
class _Records:
    """Cuts the bytes of a stream at the lengths that it states."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._buffer = bytearray()

    def next(self) -> bytes | None:
        """The next record, None at the end of the stream."""
        (length,) = struct.unpack("<Q", self._read(8))
        return self._read(length) if length else None

    def _read(self, count: int) -> bytes:
        while len(self._buffer) < count:
            chunk = next(self._chunks, None)
            if chunk is None:
                raise _BrokenStream("its end is missing")
            self._buffer += chunk
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data
