"""Bytes to arrays and back: JSON lists, ``.npy``, gzip. What an array means is ``validate.py``'s matter."""

from __future__ import annotations

import io
import math
import re
import zlib
from collections.abc import Iterable, Mapping
from itertools import chain
from tokenize import TokenError
from typing import Any

import numpy as np
import orjson
from numpy.lib import format as npy
from numpy.typing import NDArray

from service.errors import InvalidField, TooLarge

__all__ = ["array_from_lists", "decode_json", "decode_npy", "encode_json", "encode_npy", "gunzip"]

Array = NDArray[Any]

GZIP_WINDOW = zlib.MAX_WBITS | 16
NPY_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
JSON_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
NOT_A_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
# an object with a batch of fields needs 4
DEEPEST_JSON = 8
HIGHEST_RANK = 3
NPY_TYPES = "float16, float32, float64 or integers"


def gunzip(body: bytes, limit: int) -> bytes:
    """Decompress one gzip member; never hold more than ``limit`` bytes [B] of output."""
    inflate = zlib.decompressobj(GZIP_WINDOW)
    try:
        plain = inflate.decompress(body, limit + 1)
    except zlib.error as error:
        raise InvalidField("body", "gzip", f"expected a gzip body: {error}") from error
    if len(plain) > limit:
        raise TooLarge(f"the body exceeds {limit} bytes after decompression; send fewer fields a request")
    if not inflate.eof or inflate.unused_data:
        raise InvalidField(
            "body", "gzip", "expected one whole gzip member: the body is truncated or goes on after it"
        )
    return plain


def decode_json(body: bytes, most_lists: int) -> dict[str, Any]:
    """A JSON object with at most ``most_lists`` lists. NaN and Infinity are not JSON and are refused here."""
    _check_brackets(body, most_lists)
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        message = f"expected a JSON object: {error} (NaN and Infinity are not JSON; is the body truncated?)"
        raise InvalidField("body", "json", message) from error
    if not isinstance(document, dict):
        raise InvalidField("body", "json", f"expected a JSON object, got a {type(document).__name__}")
    return document


def _check_brackets(body: bytes, most_lists: int) -> None:
    """Refuse, before it is parsed, what two bytes of JSON can make large: many lists and deep ones."""
    brackets = JSON_STRING.sub(b"", body).translate(None, NOT_A_BRACKET)
    if brackets.count(b"[") > most_lists or brackets.count(b"{") > most_lists:
        message = f"expected at most {most_lists} lists, a row of a field each; send fewer fields a request"
        raise InvalidField("body", "rows", message)
    text = np.frombuffer(brackets, dtype=np.uint8)
    depth = np.cumsum(np.where((text == ord("[")) | (text == ord("{")), 1, -1))
    if depth.max(initial=0) > DEEPEST_JSON:
        raise InvalidField(
            "body", "rank", f"expected lists at most {HIGHEST_RANK} deep; send (batch, ny, nx)"
        )


def encode_json(document: Mapping[str, Any]) -> bytes:
    """JSON with arrays as nested lists; a float32 is written with the digits that it has."""
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def array_from_lists(field: str, value: object) -> Array:
    """Nested lists of numbers as a float64 array."""
    if not isinstance(value, list):
        raise InvalidField(field, "numbers", f"{field}: expected nested lists of numbers, got {_kind(value)}")
    try:
        array = np.asarray(value)
    except ValueError:  # ragged, or deeper than NumPy goes
        array = np.empty(0, dtype=object)
    if array.size and array.dtype.kind in "fiu" and not _has_booleans(value, array.ndim):
        return array.astype(np.float64)
    raise _first_fault(field, value)


def _has_booleans(value: list[Any], rank: int) -> bool:
    # NumPy takes a true among numbers for a one
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
            message = (
                f"{field}: expected (ny, nx) or (batch, ny, nx), got lists more than {HIGHEST_RANK} deep"
            )
            return InvalidField(field, "rank", message)
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


def decode_npy(field: str, body: bytes) -> Array:
    """What ``numpy.save`` writes, as a C-ordered native array; the header is checked before any data is."""
    stream = io.BytesIO(body)
    shape, fortran_order, dtype = _npy_header(stream)
    if dtype.hasobject:
        raise InvalidField(
            field, "dtype", f"{field}: pickled or object arrays are never read; send {NPY_TYPES}"
        )
    if dtype.kind not in "fiu" or dtype.itemsize > 8:
        raise InvalidField(field, "dtype", f"{field}: expected {NPY_TYPES}, got {dtype}")
    if any(side <= 0 for side in shape):
        raise InvalidField(field, "not empty", f"{field}: expected at least one number, got shape {shape}")
    start, expected = stream.tell(), math.prod(shape) * dtype.itemsize
    if len(body) - start != expected:
        what = "truncated" if len(body) - start < expected else "followed by other bytes"
        found = len(body) - start
        message = (
            f"{field}: expected {expected} bytes after the .npy header, got {found}: the array is {what}"
        )
        raise InvalidField("body", "npy", message)
    flat = np.frombuffer(body, dtype=dtype, offset=start)
    array = flat.reshape(shape, order="F" if fortran_order else "C")
    return np.ascontiguousarray(array, dtype=dtype.newbyteorder("="))


def _npy_header(stream: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = npy.read_magic(stream)
        if version not in NPY_READERS:
            raise ValueError(f"format version {version} is not one of {sorted(NPY_READERS)}")
        shape, fortran_order, dtype = NPY_READERS[version](stream)
    except (ValueError, TypeError, SyntaxError, TokenError, MemoryError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidField("body", "npy", f"expected what numpy.save writes: {reason}") from error
    return shape, fortran_order, dtype


def encode_npy(array: Array) -> bytes:
    """The bytes that ``numpy.save`` would write."""
    stream = io.BytesIO()
    npy.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()
