"""The numbers of a request on their way to a worker, copied once, and those of an answer on their way out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from problems import SteadyProblem
from service.batching.batcher import Batcher
from service.errors import InvalidField
from service.validate import Inputs, within_float32
from service.workers.worker import Batch, Bucket

__all__ = ["SMALL", "batch_of", "leaving", "off_loop", "placed", "size_of"]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

# what takes less than the way to a thread and back is done on the event loop [B]
SMALL: Final = 256 * 2**10


def size_of(given: Mapping[str, Any]) -> int:
    """Bytes of the arrays among what was given."""
    return sum([getattr(values, "nbytes", 0) for values in given.values()])


async def off_loop(
    size: int,
    function: Callable[Parameters, Result],
    *args: Parameters.args,
    **kwargs: Parameters.kwargs,
) -> Result:
    """Call a function here if it has ``size`` bytes or less to look at that are few, else in a thread."""
    if size <= SMALL:
        return function(*args, **kwargs)
    return await asyncio.to_thread(function, *args, **kwargs)


def placed(fields: Mapping[str, NDArray[Any]], queue: Batcher, dtype: str) -> dict[str, NDArray[Any]]:
    """The fields in a dtype, where the queue's worker reads them.

    Raises:
        Overloaded: there is no memory left for now.
    """
    found = {}
    for name, values in fields.items():
        if values.ndim == 1:  # a number a row travels as it is
            found[name] = values.astype(dtype, copy=False)
        else:
            found[name] = queue.allocate(values.shape, dtype)
            np.copyto(found[name], values, casting="same_kind")
    return found


def batch_of(problem: SteadyProblem, inputs: Inputs, queue: Batcher, bucket: Bucket) -> Batch:
    """Checked inputs as a batch of a bucket.

    Raises:
        InvalidField: a number that the bucket's dtype would change for another.
        Overloaded: there is no memory left for now.
    """
    if bucket.dtype == "float32":
        within_float32(problem, inputs)
    return Batch(bucket, placed(inputs.fields, queue, bucket.dtype))


def leaving(fields: Mapping[str, NDArray[Any]], dtype: str, *, copy: bool = False) -> dict[str, NDArray[Any]]:
    """The very numbers that leave the service; with ``copy`` in memory of their own.

    Raises:
        InvalidField: they are no numbers.
    """
    answers = {name: _as_dtype(values, dtype, copy=copy) for name, values in fields.items()}
    for name, values in answers.items():
        if not np.isfinite(values).all():
            raise InvalidField(
                name, "finite", f"the {name} is not finite in {dtype}; scale the input, or use float64"
            )
    return answers


def _as_dtype(values: NDArray[Any], dtype: str, *, copy: bool) -> NDArray[Any]:
    if values.dtype == dtype and values.flags.c_contiguous:
        return values.copy() if copy else values
    with np.errstate(over="ignore"):
        return values.astype(dtype, order="C")
