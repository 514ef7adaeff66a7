"""What a front and a worker process say to each other of a batch; its arrays stay in the front's arena.

A request is JSON such as::

    {"id": 7, "bucket": "...", "rows": 3, "pad_to": null,
     "in": {"permeability": ["<f4", [64, 64], [[0, 2], [65536, 1]]],   dtype, shape of a row, [offset, rows]
            "source": ["<f4", [], "AACAPwAAgD8AAIA/"]},                or the numbers themselves in base64
     "out": {"pressure": ["<f4", [3, 64, 64], 131072]}}                dtype, shape, offset

and its answer ``{"id": 7, "seconds": 0.01}``, with ``iterations`` where some are not 0, ``novelty`` where it
is known and ``unsolved`` where there are such rows; or ``{"id": 7, "error": "why"}``.
"""

from __future__ import annotations

import math
import mmap
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, Final, NamedTuple, final

import numpy as np
import orjson
from numpy.typing import NDArray

from model_store.reference import Reference
from problems import Grid
from service.workers.arena import ALIGNMENT, Arena
from service.workers.outputs import outputs_of
from service.workers.worker import INVARIANTS, Batch, Bucket, Solutions

__all__ = [
    "ComputationFailed",
    "Job",
    "Placed",
    "outputs_of",
    "place",
    "read_answer",
    "read_job",
    "write_answer",
]

Arrays = Mapping[str, NDArray[Any]]

# kinds of buckets that a process remembers
BUCKETS: Final = 256
# characters of an explanation that travel
LONGEST_TEXT: Final = 500


class ComputationFailed(Exception):
    """The computation broke in the worker process, which goes on; the text says how."""


@final
class Placed(NamedTuple):
    """A batch in the arena.

    Attributes:
        token: the request, but for its id.
        inputs: what must stay where it is until the answer is there, or the worker is gone.
        outputs: where the answer will be, by name.
    """

    token: Mapping[str, Any]
    inputs: Sequence[NDArray[Any]]
    outputs: Arrays
    rows: int


def place(arena: Arena, parts: Sequence[Batch], pad_to: int | None) -> Placed:
    """Put into the arena what is not there yet, and take the room for the answer.

    Raises:
        Overloaded: there is no room.
    """
    bucket, rows = parts[0].bucket, sum(part.rows for part in parts)
    text, layout = _layout(bucket)
    inputs: list[NDArray[Any]] = []
    fields = {}
    for name, first in parts[0].fields.items():
        values = [part.fields[name] for part in parts]
        place_one = _inline if first.ndim == 1 else _pieces
        fields[name] = [first.dtype.str, first.shape[1:], place_one(arena, values, inputs)]
    begin, outputs = _room(arena, layout, rows)
    token = {
        "bucket": text,
        "rows": rows,
        "pad_to": pad_to,
        "in": fields,
        "out": {
            name: [values.dtype.str, values.shape, begin + offset]
            for name, (offset, values) in outputs.items()
        },
    }
    return Placed(token, inputs, {name: values for name, (_, values) in outputs.items()}, rows)


def _inline(arena: Arena, values: Sequence[NDArray[Any]], keep: list[NDArray[Any]]) -> str:  # noqa: ARG001
    """One number a row is as short as where it is."""
    numbers = values[0] if len(values) == 1 else np.concatenate(values)
    return b64encode(numbers.tobytes()).decode("ascii")


def _pieces(arena: Arena, values: Sequence[NDArray[Any]], keep: list[NDArray[Any]]) -> list[tuple[int, int]]:
    """Offset and number of rows of each run of rows that lie one after another."""
    pieces: list[tuple[int, int]] = []
    end = -1
    for part in values:
        if (offset := arena.offset_of(part)) is None:
            home = arena.allocate(part.shape, part.dtype)
            home[...] = part
            part, offset = home, _inside(arena, home)
        keep.append(part)
        if offset == end:
            pieces[-1] = (pieces[-1][0], pieces[-1][1] + len(part))
        else:
            pieces.append((offset, len(part)))
        end = offset + part.nbytes
    return pieces


def _inside(arena: Arena, array: NDArray[Any]) -> int:
    offset = arena.offset_of(array)
    assert offset is not None
    return offset


def _room(
    arena: Arena, layout: Sequence[_Output], rows: int
) -> tuple[int, dict[str, tuple[int, NDArray[Any]]]]:
    """Room for all outputs in one block: where it begins, and where in it each one is."""
    if len(layout) == 1:
        only = layout[0]
        values = arena.allocate((rows, *only.row), only.dtype)
        return _inside(arena, values), {only.name: (0, values)}
    sizes = [rows * output.row_bytes for output in layout]
    ends = list(accumulate(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes))
    block = arena.allocate((ends[-1],), np.uint8)
    return _inside(arena, block), {
        output.name: (offset, np.ndarray((rows, *output.row), output.dtype, block, offset))
        for output, offset in zip(layout, [0, *ends], strict=False)
    }


@final
@dataclass(frozen=True)
class Job:
    """A batch as a worker sees it: views of the front's memory.

    Attributes:
        pieces: the rows of each input, in runs that follow each other.
        outputs: where the answer goes.
        pad_to: compute with so many rows.
    """

    bucket: Bucket
    rows: int
    pad_to: int | None
    pieces: Mapping[str, Sequence[NDArray[Any]]]
    outputs: Arrays


def read_job(token: Mapping[str, Any], memory: mmap.mmap) -> Job:
    """The batch that a request speaks of.

    Raises:
        ValueError: it speaks of something outside of the memory, or of different numbers of rows.
    """
    rows = int(token["rows"])
    pieces = {
        name: _numbers(dtype, where)
        if isinstance(where, str)
        else [_view(memory, dtype, (count, *shape), offset) for offset, count in where]
        for name, (dtype, shape, where) in token["in"].items()
    }
    outputs = {
        name: _view(memory, dtype, tuple(shape), offset)
        for name, (dtype, shape, offset) in token["out"].items()
    }
    counts = {sum(map(len, runs)) for runs in pieces.values()} | {len(values) for values in outputs.values()}
    if counts != {rows}:
        raise ValueError(f"expected {rows} rows of every field, got {sorted(counts)}")
    return Job(_bucket_of(token["bucket"]), rows, token["pad_to"], pieces, outputs)


def _numbers(dtype: str, text: str) -> list[NDArray[Any]]:
    return [np.frombuffer(bytearray(b64decode(text)), _plain(dtype))]


def _view(memory: mmap.mmap, dtype: str, shape: tuple[int, ...], offset: int) -> NDArray[Any]:
    kind = _plain(dtype)
    size = math.prod(shape) * kind.itemsize
    if min(shape) < 0 or not 0 <= offset <= len(memory) - size:
        raise ValueError(f"expected an array within {len(memory)} bytes, got {dtype}{shape} at {offset}")
    return np.ndarray(shape, kind, memory, offset)


@lru_cache(BUCKETS)
def _plain(dtype: str) -> np.dtype[Any]:
    kind = np.dtype(dtype)
    if kind.hasobject:
        raise ValueError(f"expected numbers, got {dtype}")
    return kind


def write_answer(solutions: Solutions, outputs: Arrays, seconds: float) -> dict[str, Any]:
    """Copy the solutions to where they go, and say so.

    Raises:
        ValueError: they are not what was expected.
    """
    for name, room in outputs.items():
        if name == INVARIANTS:  # of the frames where they go
            continue
        values = solutions.fields[name]
        if values.shape != room.shape:
            raise ValueError(f"expected {name} of shape {room.shape}, the computation gave {values.shape}")
        room[...] = values
    answer: dict[str, Any] = {"seconds": seconds}
    if any(solutions.iterations):
        answer["iterations"] = [int(number) for number in solutions.iterations]
    if solutions.novelty:
        answer["novelty"] = list(solutions.novelty)
    if solutions.unsolved:
        answer["unsolved"] = {str(row): why[:LONGEST_TEXT] for row, why in solutions.unsolved.items()}
    return answer


def read_answer(answer: Mapping[str, Any], placed: Placed) -> Solutions:
    """The solutions that an answer speaks of.

    Raises:
        ComputationFailed: it says so.
    """
    if "error" in answer:
        raise ComputationFailed(answer["error"])
    return Solutions(
        placed.outputs,
        tuple(answer.get("iterations") or (0,) * placed.rows),
        {int(row): why for row, why in answer.get("unsolved", {}).items()},
        answer["seconds"],
        tuple(answer.get("novelty", ())),
    )


@final
@dataclass(frozen=True)
class _Output:
    name: str
    row: tuple[int, ...]
    dtype: np.dtype[Any]
    row_bytes: int


@lru_cache(BUCKETS)
def _layout(bucket: Bucket) -> tuple[str, tuple[_Output, ...]]:
    """A bucket as text, and what it gives."""
    values = dict(vars(bucket))
    values["version"] = bucket.version and astuple(bucket.version)
    values["grid"] = astuple(bucket.grid)
    outputs = tuple(
        _Output(name, row, dtype, math.prod(row) * dtype.itemsize)
        for name, (row, dtype) in outputs_of(bucket).items()
    )
    return orjson.dumps(values).decode(), outputs


@lru_cache(BUCKETS)
def _bucket_of(text: str) -> Bucket:
    values = orjson.loads(text)
    version, grid, chosen = (values.pop(name) for name in ("version", "grid", "chosen"))
    return Bucket(
        version=version and Reference(*version),
        grid=Grid(*map(tuple, grid)),
        chosen=tuple(chosen),
        **values,
    )
