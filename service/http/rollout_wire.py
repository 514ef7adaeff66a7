"""The wire form of a rollout: a state in, a stream of frames out, as lines of JSON or as records.

Lines (``application/x-ndjson``): a frame each. A failure after the stream began is one last line
``{"error": {problem document}}``, which has no ``step``.

Records (``application/x-npy-stream``): eight bytes with a length, little-endian, and as many bytes. A frame
is two of them, JSON and what ``numpy.save`` writes of its fields (channel, y, x). The stream ends with a
record of length 0; a failure is one last record ``{"error": {problem document}}``, and none of length 0.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from functools import partial
from typing import Annotated, Any, Final, Literal, final

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import Field

from problems import EvolutionProblem
from service.codec import array_from_lists, decode_json, decode_npy, encode_json, npy_header, raw_bytes
from service.errors import LONGEST_QUOTE, InvalidField, NotAcceptable, UnsupportedMedia
from service.http.wire import JSON, NPY, accepted_media, media_type, read_query, refuse_query
from service.http.written import computed
from service.options import Asker, Urgency, read_options
from service.rollout import ALL, Frame, Rollout, RolloutMethod, RolloutRequest
from service.settings import Limits
from service.validate import AT_REST

__all__ = [
    "Lines",
    "Records",
    "StreamForm",
    "channels_of",
    "choose_stream_form",
    "read_rollout",
    "rollout_headers",
    "state_of",
]

NDJSON: Final = "application/x-ndjson"
NPY_STREAM: Final = "application/x-npy-stream"
DEFAULT_STEPS: Final = 100
# numbers of a frame that are written as JSON faster than handed to a thread and back
FEW: Final = 2**13
# steps are counted in 32 bits where they leave Python
LAST_STEP: Final = 2**31 - 1
WAY_OUT: Final = "a rollout starts from one state; send a request for each"


@final
class RolloutOptions(Urgency):
    """What a request says beside the state."""

    steps: int = Field(DEFAULT_STEPS, ge=1, le=LAST_STEP)
    every: int = Field(1, ge=1)
    start_step: int = Field(0, ge=0, le=LAST_STEP)
    model: str | None = None
    method: RolloutMethod = "auto"
    walls: str | None = None
    defects: Annotated[int, Field(ge=0, le=ALL)] | Literal["all"] = 0


class StreamForm(ABC):
    """How frames become bytes."""

    media_type: str
    end: bytes

    @abstractmethod
    def frames(self, rollout: Rollout) -> AsyncGenerator[bytes, None]:
        """The bytes of a frame after another."""

    @abstractmethod
    def failure(self, problem: Mapping[str, Any]) -> bytes:
        """The last bytes of a stream that does not reach its end."""


@final
class Lines(StreamForm):
    """Newline-delimited JSON."""

    media_type = NDJSON
    end = b""

    async def frames(self, rollout: Rollout) -> AsyncGenerator[bytes, None]:
        """See ``StreamForm``; a frame is written when it is sent, since it gets several times as long."""
        async with aclosing(rollout.frames) as frames:
            async for frame in frames:
                numbers = sum(values.size for values in frame.fields.values())
                yield await computed(numbers > FEW, _line, frame, rollout)

    def failure(self, problem: Mapping[str, Any]) -> bytes:
        """See ``StreamForm``."""
        return orjson.dumps({"error": problem}) + b"\n"


@final
class Records(StreamForm):
    """Length-prefixed JSON and ``.npy``."""

    media_type = NPY_STREAM
    end = struct.pack("<Q", 0)

    async def frames(self, rollout: Rollout) -> AsyncGenerator[bytes, None]:
        """See ``StreamForm``."""
        async with aclosing(rollout.written(partial(_records, rollout))) as sheets:
            async for sheet in sheets:
                yield b"".join(sheet.parts)

    def failure(self, problem: Mapping[str, Any]) -> bytes:
        """See ``StreamForm``."""
        return _record(orjson.dumps({"error": problem}))


def _line(frame: Frame, rollout: Rollout) -> bytes:
    fields = {name: values[0] for name, values in frame.fields.items()}
    return encode_json(_numbers(frame, rollout) | {"fields": fields}) + b"\n"


def _records(rollout: Rollout, frame: Frame) -> list[bytes | memoryview]:
    """The parts of two records."""
    numbers = encode_json(_numbers(frame, rollout))
    channels = [frame.fields[name][0] for name in rollout.names]
    header = npy_header(channels[0].dtype, (len(channels), *channels[0].shape))
    size = len(header) + sum([channel.nbytes for channel in channels])
    return [_record(numbers), struct.pack("<Q", size), header, *map(raw_bytes, channels)]


def _record(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def _numbers(frame: Frame, rollout: Rollout) -> dict[str, Any]:
    return {
        "step": frame.step,
        "time": frame.time,
        "invariants": {name: values[0] for name, values in frame.invariants.items()},
        "error": None if frame.error is None else vars(frame.error),
        "in_distribution": rollout.in_distribution[0],
        "ood_score": frame.ood_scores[0] if frame.ood_scores else None,
        **frame.checked(0),
    }


def choose_stream_form(headers: Mapping[str, str]) -> StreamForm:
    """The first form of the client's ``Accept`` list, by weight, in which the service streams."""
    for media in accepted_media(headers.get("accept", "*/*")):
        if media in ("*/*", "application/*", NDJSON):
            return Lines()
        if media in (NPY, NPY_STREAM):
            return Records()
    accept = headers["accept"][:LONGEST_QUOTE]
    raise NotAcceptable(f"expected Accept: {NDJSON} or {NPY_STREAM}, got {accept}")


def rollout_headers(rollout: Rollout) -> dict[str, str]:
    """What holds for all frames."""
    return {
        "Mno-Model": rollout.model or "",
        "Mno-Method": rollout.method,
        "Mno-Operator": rollout.operator,
        "Mno-Walls": rollout.walls,
        "Mno-In-Distribution": orjson.dumps(rollout.in_distribution[0]).decode(),
        # ASCII, in a line, as headers have to be
        "Mno-Explanation": rollout.novelty[0].explanation,
        "Mno-Frame-Interval": repr(rollout.frame_interval),
        "Mno-Fields": ",".join(rollout.names),
        "Mno-Steps": str(rollout.steps),
        "Mno-Frames": str(rollout.count),
        "Mno-Block": str(rollout.block),
        # a proxy that collects frames would undo the stream
        "X-Accel-Buffering": "no",
    }


def read_rollout(
    problem: EvolutionProblem,
    headers: Mapping[str, str],
    query: str,
    body: bytes,
    limits: Limits,
    asker: Asker,
) -> RolloutRequest:
    """The request in a body that is not compressed, or no longer."""
    media = media_type(headers)
    if media == JSON:
        return _from_json(problem, query, body, limits, asker)
    if media == NPY:
        return _from_npy(problem, query, body, asker)
    raise UnsupportedMedia(f"expected Content-Type {JSON} or {NPY}, got {media[:LONGEST_QUOTE] or 'none'}")


def _from_json(
    problem: EvolutionProblem, query: str, body: bytes, limits: Limits, asker: Asker
) -> RolloutRequest:
    # a list for each row and each field
    document = decode_json(body, most_lists=len(problem.inputs) * (limits.grid_side + 1) + 1)
    refuse_query(query)
    state = state_of(problem, document.pop("state", None))
    options = read_options(RolloutOptions, ["state"], document, strict=True)
    return _request(problem, state, "float32", options, asker)


def state_of(problem: EvolutionProblem, given: object) -> dict[str, NDArray[Any]]:
    """The fields (y, x) of a state in JSON.

    Raises:
        InvalidField: it is no object of such fields.
    """
    if not isinstance(given, dict):
        expected = ", ".join(f'"{spec.name}": [[...]]' for spec in problem.inputs)
        raise InvalidField("state", "missing", f"state: expected an object {{{expected}}}")
    state = {name: array_from_lists(name[:LONGEST_QUOTE], values) for name, values in given.items()}
    for name, values in state.items():
        _require_rank(name[:LONGEST_QUOTE], values, 2, "(y, x)")
    return state


def _from_npy(problem: EvolutionProblem, query: str, body: bytes, asker: Asker) -> RolloutRequest:
    array = decode_npy("state", body)
    rest = read_query(query)
    _require_rank("state", array, 3, "(channel, y, x)")
    names = channels_of(problem, rest.pop("fields", None), len(array))
    options = read_options(RolloutOptions, ["fields"], rest, strict=False)
    dtype: Literal["float32", "float64"] = "float64" if array.dtype == np.float64 else "float32"
    state = dict(zip(names, array, strict=True))
    return _request(problem, state, dtype, options, asker)


def _request(
    problem: EvolutionProblem,
    state: Mapping[str, NDArray[Any]],
    dtype: Literal["float32", "float64"],
    options: RolloutOptions,
    asker: Asker,
) -> RolloutRequest:
    return RolloutRequest(
        problem.name,
        state,
        options.steps,
        options.every,
        options.start_step,
        dtype,
        options.model,
        options.method,
        options.walls,
        asker.ticket(options),
        asker.key,
        asker.received,
        ALL if options.defects == "all" else options.defects,
    )


def _require_rank(name: str, values: NDArray[Any], rank: int, axes: str) -> None:
    if values.ndim == rank + 1:
        message = f"{name}: expected {axes}, got a batch of shape {values.shape}; {WAY_OUT}"
        raise InvalidField(name, "rank", message)
    if values.ndim != rank:
        raise InvalidField(name, "rank", f"{name}: expected {axes}, got shape {values.shape}")


def channels_of(problem: EvolutionProblem, named: str | None, count: int) -> list[str]:
    """Names of the channels of an array: those given, or all, or all that are not zero at rest."""
    every = [spec.name for spec in problem.inputs]
    needed = [name for name in every if name not in AT_REST]
    names = named.split(",") if named is not None else needed if count == len(needed) else every
    if len(names) != count or len(set(names)) != count:
        expected = (named or "")[:LONGEST_QUOTE] or " or ".join(
            sorted({",".join(needed), ",".join(every)}, key=len)
        )
        message = f"state: expected the channels {expected}, got {count}; name them with fields=..."
        raise InvalidField("state", "channels", message)
    return names
