"""Tensors of the Open Inference Protocol: datatypes, shapes and raw bytes, checked before they are arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from service.errors import LONGEST_QUOTE, InvalidField

__all__ = [
    "DATATYPES",
    "Datatype",
    "Described",
    "Tensor",
    "described",
    "size_of",
    "tensor_from_bytes",
    "tensor_from_numbers",
    "tensor_of",
]

Array = NDArray[Any]

# more elements than any limit lets through, and far from what overflows
MOST_ELEMENTS: Final = 2**48
HIGHEST_RANK: Final = 8


@final
@dataclass(frozen=True)
class Datatype:
    """A datatype of the protocol.

    Attributes:
        config: its name in a model's configuration.
        wire: dtype of the raw bytes.
        array: dtype of the numbers in memory; NumPy has no bfloat16, which becomes float32.
    """

    name: str
    config: str
    wire: np.dtype[Any]
    array: np.dtype[Any]


def _datatype(name: str, wire: str, array: str = "") -> Datatype:
    return Datatype(name, f"TYPE_{name}", np.dtype(wire), np.dtype(array or wire))


DATATYPES: Final[Mapping[str, Datatype]] = {
    "FP16": _datatype("FP16", "<f2"),
    "BF16": _datatype("BF16", "<u2", "<f4"),
    "FP32": _datatype("FP32", "<f4"),
    "FP64": _datatype("FP64", "<f8"),
}

# what answers have beside fields
BOOL: Final = Datatype("BOOL", "TYPE_BOOL", np.dtype("?"), np.dtype("?"))
_BY_DTYPE: Final = {
    **{kind.array: kind for name, kind in DATATYPES.items() if name != "BF16"},
    BOOL.array: BOOL,
}


@final
class Tensor(NamedTuple):
    """A named array with its datatype in the protocol."""

    name: str
    datatype: str
    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return self.array.shape

    def raw(self) -> memoryview:
        """The elements as little-endian bytes, without a copy."""
        return np.ascontiguousarray(self.array).data.cast("B")


def size_of(datatype: str) -> int:
    """Size of an element [B]."""
    return BOOL.wire.itemsize if datatype == BOOL.name else DATATYPES[datatype].wire.itemsize


def tensor_of(name: str, array: Array) -> Tensor:
    """An array of an answer as a tensor."""
    return Tensor(name, _BY_DTYPE[array.dtype].name, array)


def tensor_from_bytes(name: str, datatype: str, shape: Sequence[object], data: Any) -> Tensor:
    """A tensor whose elements are in a buffer, which is not copied.

    Raises:
        InvalidField: an unknown datatype, a forged shape, or bytes that do not fit them.
    """
    return described(name, datatype, shape).filled(data)


@final
@dataclass(frozen=True)
class Described:
    """A tensor without its elements: a datatype and a shape that it may have."""

    name: str
    datatype: str
    wire: np.dtype[Any]
    shape: tuple[int, ...]
    size: int

    def filled(self, data: Any) -> Tensor:
        """The tensor whose elements are in a buffer, which is not copied."""
        if len(data) != self.size:
            kind = f"{self.datatype} of shape {list(self.shape)}"
            message = f"{self.name}: expected {self.size} bytes for {kind}, got {len(data)}"
            raise InvalidField(self.name[:LONGEST_QUOTE], "bytes", message)
        array = np.frombuffer(data, self.wire).reshape(self.shape)
        return Tensor(self.name, self.datatype, _widened(array) if self.datatype == "BF16" else array)


def described(name: str, datatype: str, shape: Sequence[object]) -> Described:
    """What a client says of a tensor.

    Raises:
        InvalidField: an unknown datatype, or a forged shape.
    """
    kind = _known(name, datatype)
    sides = checked_shape(name, shape)
    return Described(name, datatype, kind.wire, sides, math.prod(sides) * kind.wire.itemsize)


def tensor_from_numbers(name: str, datatype: str, shape: Sequence[object], numbers: Array) -> Tensor:
    """A tensor whose elements came as numbers, flat or nested, in row-major order.

    Raises:
        InvalidField: an unknown datatype, a forged shape, or numbers that do not fit them.
    """
    kind = _known(name, datatype)
    sides = checked_shape(name, shape)
    if numbers.size != math.prod(sides) or (numbers.ndim > 1 and numbers.shape != sides):
        got = list(numbers.shape)
        message = f"{name}: expected {math.prod(sides)} numbers for shape {list(sides)}, got data of {got}"
        raise InvalidField(name[:LONGEST_QUOTE], "shape", message)
    with np.errstate(over="ignore"):
        # what does not fit becomes infinite, and is refused where the field is validated
        return Tensor(name, datatype, numbers.astype(kind.array).reshape(sides))


def checked_shape(name: str, shape: Sequence[object]) -> tuple[int, ...]:
    """The lengths of the axes, if an array can have them."""
    sides = tuple(side for side in shape if type(side) is int and side > 0)
    if len(sides) != len(shape) or not 0 < len(sides) <= HIGHEST_RANK or math.prod(sides) > MOST_ELEMENTS:
        got = repr(list(shape[:HIGHEST_RANK]))[:LONGEST_QUOTE]
        message = f"{name}: expected the lengths of 1 to {HIGHEST_RANK} axes, each at least 1, got {got}"
        raise InvalidField(name[:LONGEST_QUOTE], "shape", message)
    return sides


def _known(name: str, datatype: str) -> Datatype:
    if datatype not in DATATYPES:
        got = repr(datatype)[:LONGEST_QUOTE]
        message = f"{name[:LONGEST_QUOTE]}: expected datatype {', '.join(DATATYPES)}, got {got}"
        raise InvalidField(name[:LONGEST_QUOTE], "datatype", message)
    return DATATYPES[datatype]


def _widened(halves: Array) -> Array:
    """bfloat16 as float32: its bits are the upper half."""
    return (halves.astype("<u4") << 16).view("<f4")
