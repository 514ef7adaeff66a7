"""Bytes to arrays and back: JSON lists, ``.npy``, gzip. What an array means is ``validate.py``'s matter."""

from __future__ import annotations

import gzip
import io
import math
import re
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from tokenize import TokenError
from typing import Any, Literal, final

import numpy as np
import orjson
from numpy.lib import format as npy
from numpy.typing import NDArray

from service.errors import InvalidField, TooLarge

__all__ = [
    "array_from_lists",
    "decode_json",
    "decode_npy",
    "decompress",
    "encode_json",
    "encode_npy",
    "gzipped",
    "npy_header",
    "raw_bytes",
]

Array = NDArray[Any]
Buffer = bytes | bytearray | memoryview
Coding = Literal["gzip", "deflate"]

WINDOWS: Mapping[Coding, int] = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
# a compressed answer is for slow networks, and slow to make
FASTEST = 1
NPY_1_0 = b"\x93NUMPY\x01\x00"
USUAL_NPY_HEADER = 256
# NumPy parses no longer one
LONGEST_NPY_HEADER = 2**14
NPY_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
# a million of them take a second to parse, in which nobody else is answered
MOST_NAMES = 2**12
JSON_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
DEEPER_THAN_ORJSON = "depth limit"
HIGHEST_RANK = 3
# numbers that are packed at once
PIECE = 1024
# field and cotangent come as one array, with an axis before those of a batch
HIGHEST_NPY_RANK = HIGHEST_RANK + 1
NPY_TYPES = "float16, float32, float64 or integers"


def decompress(body: bytes, coding: Coding, limit: int) -> bytes:
    """Decompress one whole stream; never hold more than ``limit`` bytes [B] of output."""
    inflate = zlib.decompressobj(WINDOWS[coding])
    try:
        plain = inflate.decompress(body, limit + 1)
    except zlib.error as error:
        raise InvalidField("body", coding, f"expected a {coding} body: {error}") from error
    if len(plain) > limit:
        raise TooLarge(f"the body exceeds {limit} bytes after decompression; send fewer fields a request")
    if not inflate.eof or inflate.unused_data:
        raise InvalidField(
            "body", coding, f"expected one whole {coding} stream: the body is truncated or goes on after it"
        )
    return plain


def gzipped(body: bytes) -> bytes:
    """``body`` compressed, fast rather than small."""
    # without the time, so that equal answers are equal
    return gzip.compress(body, FASTEST, mtime=0)


def decode_json(body: bytes, most_lists: int) -> dict[str, Any]:
    """A JSON object with at most ``most_lists`` lists. NaN and Infinity are not JSON and are refused here."""
    # those in strings, too: nothing that has so many means anything here
    if len(body) > MOST_NAMES and _count(body, b":") > MOST_NAMES:
        raise InvalidField("body", "names", f"expected at most {MOST_NAMES} names, got more")
    _check_brackets(body, most_lists)
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if DEEPER_THAN_ORJSON in str(error):
            raise _too_deep("body") from error
        message = f"expected a JSON object: {error} (NaN and Infinity are not JSON; is the body truncated?)"
        raise InvalidField("body", "json", message) from error
    if not isinstance(document, dict):
        raise InvalidField("body", "json", f"expected a JSON object, got a {type(document).__name__}")
    return document


def _check_brackets(body: bytes, most_lists: int) -> None:
    """Refuse, before it is parsed, what two bytes of JSON can make large: many lists, and many objects.

    Deep ones the parser refuses by itself, at a depth that does no harm.
    """
    if len(body) <= most_lists or max(_count(body, b"["), _count(body, b"{")) <= most_lists:
        return
    # those in strings are none
    plain = JSON_STRING.sub(b"", body)
    if max(_count(plain, b"["), _count(plain, b"{")) > most_lists:
        message = f"expected at most {most_lists} lists, a row of a field each; send fewer fields a request"
        raise InvalidField("body", "rows", message)


def _count(body: bytes, sign: bytes) -> int:
    # Python looks at one byte after the other, and takes more than twice as long
    return int(np.count_nonzero(np.frombuffer(body, np.uint8) == ord(sign)))


def encode_json(document: Mapping[str, Any]) -> bytes:
    """JSON with arrays as nested lists; a float32 is written with the digits that it has."""
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def array_from_lists(field: str, value: object) -> Array:
    """Nested lists of numbers as a float64 array."""
    if not isinstance(value, list):
        raise InvalidField(field, "numbers", f"{field}: expected nested lists of numbers, got {_kind(value)}")
    shape = _shape(value)
    if 0 < len(shape) <= HIGHEST_RANK and 0 not in shape:
        flat = _flat(value, shape)
        if flat is not None and not _any_boolean(value, flat, len(shape)):
            return flat.reshape(shape)
    raise _first_fault(field, value)


def _shape(value: object) -> tuple[int, ...]:
    """Lengths along the first elements."""
    shape: list[int] = []
    while isinstance(value, list) and len(shape) <= HIGHEST_RANK:
        shape.append(len(value))
        value = value[0] if value else None
    return tuple(shape)


def _flat(value: list[Any], shape: tuple[int, ...]) -> Array | None:
    """The numbers of lists of this very shape, in their order; None: they have another, or are none."""
    rows: list[Any] = [value]
    for depth, side in enumerate(shape):
        if depth:
            rows = list(chain.from_iterable(rows))
        if any(type(row) is not list or len(row) != side for row in rows):
            return None
    return _packed(rows, shape[-1])


def _packed(rows: list[list[Any]], side: int) -> Array | None:
    """The numbers of rows of one length, true and false as one and zero; None: something is no number."""
    # as arguments of a call, which are not to be any number
    pieces = rows if side <= PIECE else [row[at : at + PIECE] for row in rows for at in range(0, side, PIECE)]
    numbers, at = np.empty(len(rows) * side), 0
    memory = numbers.data.cast("B")
    try:
        # far faster than NumPy finds out what it is given
        for piece in pieces:
            struct.pack_into(f"{len(piece)}d", memory, at, *piece)
            at += 8 * len(piece)
    except struct.error:
        return None
    return numbers


def _any_boolean(value: list[Any], flat: Array, rank: int) -> bool:
    # true and false have become one and zero, and most fields have neither
    if not ((flat == 0) | (flat == 1)).any():
        return False
    numbers: Iterable[Any] = value
    for _ in range(rank - 1):
        numbers = chain.from_iterable(numbers)
    return bool in map(type, numbers)


def _kind(value: object) -> str:
    names = {list: "a list", str: "a string", dict: "an object", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _first_fault(field: str, value: list[Any]) -> InvalidField:
    """Find where nested lists stop being a rectangular array of numbers."""
    shape = []
    corner: object = value
    while isinstance(corner, list):
        shape.append(len(corner))
        if len(shape) > HIGHEST_RANK:
            return _too_deep(field)
        corner = corner[0] if corner else None
    if 0 in shape:
        return InvalidField(field, "not empty", f"{field}: expected numbers, got an empty list")
    index = _mismatch(value, shape) or ()
    found: Any = value
    for position in index:
        found = found[position]
    got = f"a list of {len(found)}" if isinstance(found, list) else _kind(found)
    expected = f"a list of {shape[len(index)]}" if len(index) < len(shape) else "a number"
    rule = "numbers" if isinstance(found, str | dict | bool | None) else "rectangular"
    return InvalidField(field, rule, f"{field}: expected {expected} at {list(index)}, got {got}", index)


def _too_deep(field: str) -> InvalidField:
    message = f"{field}: expected (ny, nx) or (batch, ny, nx), got lists more than {HIGHEST_RANK} deep"
    return InvalidField(field, "rank", message)


def _mismatch(value: object, shape: list[int]) -> tuple[int, ...] | None:
    """Index of the first element that does not fit ``shape``, or None."""
    if not shape:
        return None if isinstance(value, int | float) and not isinstance(value, bool) else ()
    if not isinstance(value, list) or len(value) != shape[0]:
        return ()
    for position, element in enumerate(value):
        inner = _mismatch(element, shape[1:])
        if inner is not None:
            return (position, *inner)
    return None


@final
@dataclass(frozen=True)
class _Layout:
    """What the header of a ``.npy`` body says, once it is allowed.

    Attributes:
        start: where the numbers begin [B].
        size: how many bytes they have.
        fault: the rule that the header breaks, and in which words.
    """

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]
    start: int
    size: int
    fault: tuple[str, str] | None


def decode_npy(field: str, body: Buffer) -> Array:
    """What ``numpy.save`` writes, as a C-ordered native array; the header is checked before any data is."""
    layout = _npy_layout(body)
    if layout.fault is not None:
        rule, message = layout.fault
        raise InvalidField(field, rule, f"{field}: {message}")
    start = layout.start
    if len(body) - start != layout.size:
        found = len(body) - start
        what = "truncated" if found < layout.size else "followed by other bytes"
        message = f"expected {layout.size} bytes after the .npy header, got {found}: the array is {what}"
        raise InvalidField("body", "npy", f"{field}: {message}")
    dtype, order = layout.dtype, layout.fortran_order
    values = np.frombuffer(body, dtype, offset=start).reshape(layout.shape, order="F" if order else "C")
    if dtype.isnative and not order:
        return values
    return np.ascontiguousarray(values, dtype=dtype.newbyteorder("="))


def _npy_layout(body: Buffer) -> _Layout:
    begin = bytes(body[:USUAL_NPY_HEADER])
    start = 10 + int.from_bytes(begin[8:10], "little")
    if begin.startswith(NPY_1_0) and start <= USUAL_NPY_HEADER:
        return _known_layout(begin[:start])
    return _read_layout(bytes(body[:LONGEST_NPY_HEADER]))


def _read_layout(begin: bytes) -> _Layout:
    stream = io.BytesIO(begin)
    try:
        version = npy.read_magic(stream)
        if version not in NPY_READERS:
            raise ValueError(f"format version {version} is not one of {sorted(NPY_READERS)}")
        shape, fortran_order, dtype = NPY_READERS[version](stream)
    except (ValueError, TypeError, SyntaxError, TokenError, MemoryError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidField("body", "npy", f"expected what numpy.save writes: {reason}") from error
    size = math.prod(shape) * dtype.itemsize
    return _Layout(shape, fortran_order, dtype, stream.tell(), size, _npy_fault(shape, dtype))


# a header is a Python literal, and clients send the same one again and again
_known_layout = lru_cache(maxsize=256)(_read_layout)


def _npy_fault(shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[str, str] | None:
    if dtype.hasobject:
        return "dtype", f"pickled or object arrays are never read; send {NPY_TYPES}"
    if dtype.kind not in "fiu" or dtype.itemsize > 8:
        return "dtype", f"expected {NPY_TYPES}, got {dtype}"
    # before NumPy sees it, which has no arrays of more than 64 axes
    if len(shape) > HIGHEST_NPY_RANK:
        return "rank", f"expected at most {HIGHEST_NPY_RANK} axes, got {len(shape)}"
    if any(side <= 0 for side in shape):
        return "not empty", f"expected at least one number, got shape {shape}"
    return None


@lru_cache(maxsize=256)
def npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """What ``numpy.save`` writes before the numbers of a C-ordered array."""
    stream = io.BytesIO()
    layout = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(stream, layout)
    return stream.getvalue()


def encode_npy(array: Array) -> bytes:
    """The bytes that ``numpy.save`` would write."""
    return b"".join((npy_header(array.dtype, array.shape), raw_bytes(array)))


def raw_bytes(array: Array) -> memoryview:
    """The numbers of an array in C order; copied only where they are in another."""
    return np.ascontiguousarray(array).data.cast("B")
