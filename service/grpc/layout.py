"""Arrays of messages: what a client says of one is checked before its elements are looked at."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from service.errors import LONGEST_QUOTE, InvalidField
from service.grpc.parts import DTYPES
from service.pb import solver_pb2 as pb

__all__ = ["Dtype", "Layout", "arrays", "common_dtype", "layouts"]

Dtype = Literal["float32", "float64"]

HIGHEST_RANK: Final = 3
# more elements than any limit lets through
MOST_ELEMENTS: Final = 2**48


@final
class Layout(NamedTuple):
    """An array without its elements.

    Attributes:
        size: of the elements [B].
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    size: int

    def filled(self, data: bytes | memoryview) -> NDArray[Any]:
        """The elements where they lie in the message, read only.

        Raises:
            InvalidField: there are too few or too many.
        """
        if len(data) != self.size:
            name, kind = self.name[:LONGEST_QUOTE], f"{self.dtype.name} of shape {self.shape}"
            message = f"{name}: expected {self.size} bytes for {kind}, got {len(data)}"
            raise InvalidField(name, "bytes", message)
        return np.frombuffer(data, self.dtype).reshape(self.shape)


def layouts(
    what: str, tensors: Mapping[str, pb.Tensor], highest_rank: int = HIGHEST_RANK
) -> Sequence[Layout]:
    """What a message says of its arrays.

    Raises:
        InvalidField: there are none, or one that no array can be.
    """
    if not tensors:
        raise InvalidField(what, "missing", f"{what}: expected an array by name, got none")
    return [_layout(name, tensor, highest_rank) for name, tensor in tensors.items()]


def arrays(
    what: str, tensors: Mapping[str, pb.Tensor], highest_rank: int = HIGHEST_RANK
) -> dict[str, NDArray[Any]]:
    """The arrays of a message, whose elements stay in it.

    Raises:
        InvalidField: there are none, or one that is no array.
    """
    found = layouts(what, tensors, highest_rank)
    return {layout.name: layout.filled(tensors[layout.name].data) for layout in found}


def _layout(field: str, tensor: pb.Tensor, highest_rank: int) -> Layout:
    name = field[:LONGEST_QUOTE]
    dtype = DTYPES.get(tensor.dtype)
    if dtype is None:
        got = repr(tensor.dtype[:LONGEST_QUOTE])
        raise InvalidField(name, "dtype", f"{name}: expected dtype float32 or float64, got {got}")
    # a forged shape may have any number of axes
    shape = tuple(tensor.shape[: highest_rank + 1])
    if not 0 < len(shape) <= highest_rank:
        axes = len(tensor.shape)
        raise InvalidField(name, "rank", f"{name}: expected (y, x) or (batch, y, x), got {axes} axes")
    if min(shape) <= 0 or math.prod(shape) > MOST_ELEMENTS:
        raise InvalidField(name, "shape", f"{name}: no array has shape {shape}; send the lengths of its axes")
    return Layout(field, dtype, shape, math.prod(shape) * dtype.itemsize)


def common_dtype(dtypes: Iterable[np.dtype[Any]]) -> Dtype:
    """The dtype of an answer to arrays of these."""
    return "float64" if any(dtype == np.float64 for dtype in dtypes) else "float32"
