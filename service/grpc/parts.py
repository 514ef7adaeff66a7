"""Messages of protobuf in parts, so that what an array has is sent from where it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.pb import solver_pb2 as pb

__all__ = ["DTYPES", "Parts", "entry", "tagged", "tensor_parts", "varint"]

Parts: TypeAlias = Sequence[bytes | memoryview]

# of a ``Tensor``
DTYPES: Final[Mapping[str, np.dtype[Any]]] = {"float32": np.dtype("<f4"), "float64": np.dtype("<f8")}

# tags: a field's number and 2, that its length comes next
KEY, VALUE = b"\x0a", b"\x12"  # of a map's entry
DATA: Final = b"\x1a"  # Tensor.data = 3
# kinds of arrays whose heads are remembered
HEADS: Final = 256


def tagged(tag: bytes, parts: Parts) -> Parts:
    """A field that has a message, or bytes: its tag, how long it is, and it."""
    return [tag + varint(sum(map(len, parts))), *parts]


def entry(tag: bytes, name: str, values: NDArray[Any]) -> Parts:
    """An entry of a map of tensors, whose field has this tag."""
    return [_entry_head(tag, name, values.dtype, values.shape), _elements(values)]


def tensor_parts(values: NDArray[Any]) -> Parts:
    """A ``Tensor`` of float32 or float64."""
    return [_tensor_head(values.dtype, values.shape), _elements(values)]


def _elements(values: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(values, DTYPES[_name(values.dtype)]).data.cast("B")


# frames and answers have the same shapes again and again
@lru_cache(HEADS)
def _entry_head(tag: bytes, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """What stands before the elements of an entry."""
    key, tensor = name.encode(), _tensor_head(dtype, shape)
    size = len(tensor) + _size(dtype, shape)
    head = KEY + varint(len(key)) + key + VALUE + varint(size) + tensor
    return tag + varint(len(head) + _size(dtype, shape)) + head


@lru_cache(HEADS)
def _tensor_head(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """What stands before the elements of a tensor."""
    known = pb.Tensor(dtype=_name(dtype), shape=shape).SerializeToString()
    return known + DATA + varint(_size(dtype, shape))


def _name(dtype: np.dtype[Any]) -> str:
    return "float64" if dtype == np.float64 else "float32"


def _size(dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    return math.prod(shape) * DTYPES[_name(dtype)].itemsize


def varint(number: int) -> bytes:
    """A number as protobuf writes it."""
    if number < 0x80:
        return bytes((number,))
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)
