"""Messages of protobuf in parts, so that what an array has is sent from where it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def tagged(tag: bytes, parts: Parts) -> Parts:
    """A field that has a message, or bytes: its tag, how long it is, and it."""
    return [tag + varint(sum(map(len, parts))), *parts]


def entry(tag: bytes, name: str, values: NDArray[Any]) -> Parts:
    """An entry of a map of tensors, whose field has this tag."""
    key = name.encode()
    return tagged(tag, [KEY + varint(len(key)) + key, *tagged(VALUE, tensor_parts(values))])


def tensor_parts(values: NDArray[Any]) -> Parts:
    """A ``Tensor`` of float32 or float64."""
    dtype = "float64" if values.dtype == np.float64 else "float32"
    data = np.ascontiguousarray(values, DTYPES[dtype]).data.cast("B")
    head = pb.Tensor(dtype=dtype, shape=values.shape).SerializeToString()
    return [head + DATA + varint(len(data)), data]


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
