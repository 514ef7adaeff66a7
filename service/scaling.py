"""Powers of two that bring directions and fields near 1, so that float32 carries what is derived from them.

A derivative is linear in its direction, and a surrogate's answer, by its make (``operators.Surrogate``), is
proportional to the source and inversely so to a factor of the coefficient. Powers of two round nothing.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidField
from service.validate import FLOAT32_TINY

__all__ = ["FAR", "near_one", "over", "require_carried", "times"]

Exponents = NDArray[np.int_]

# numbers within 2^-30 to 2^30 stay as they are
FAR: Final = 30


def near_one(*values: NDArray[Any]) -> Exponents:
    """Exponents [...] of the largest entries of several [... y x] together; 0 where these are near 1."""
    largest = np.max([np.abs(each).max(axis=(-2, -1)) for each in values], axis=0)
    _, found = np.frexp(largest.astype(np.float64))
    return np.where(np.abs(found) > FAR, found, 0)


def over(values: NDArray[Any], exponents: Exponents) -> NDArray[Any]:
    """Values [...] over powers of two, which have the first of their axes."""
    return times(values, -exponents)


def times(values: NDArray[Any], exponents: Exponents) -> NDArray[Any]:
    """Values [...] times powers of two, which have the first of their axes; in float64, if there are any."""
    if not exponents.any():
        return values
    wide = exponents.reshape(*exponents.shape, *(1,) * (values.ndim - exponents.ndim))
    # what overflows is refused where it leaves
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(values.astype(np.float64), wide)


def require_carried(what: str, values: NDArray[Any], dtype: str) -> None:
    """Refuse derivatives [batch direction ...] of which one would lose its digits in the dtype it leaves in.

    Raises:
        InvalidField: the largest entry of one is too small for float32.
    """
    if dtype != "float32" or not values.size:
        return
    largest = np.abs(values).reshape(*values.shape[:2], -1).max(axis=-1)
    if ((largest > 0) & (largest < FLOAT32_TINY)).any():
        message = f"the {what} is too small for float32; ask for dtype=float64, or scale the direction"
        raise InvalidField("dtype", "float32", message)
