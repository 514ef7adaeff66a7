"""Cotangents and tangents of checked inputs: one of each field, or several on a leading axis."""

from __future__ import annotations

from typing import Any, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidField, TooLarge
from service.settings import Limits
from service.validate import Inputs, check_like

__all__ = ["Directions", "check_directions"]


@final
class Directions(NamedTuple):
    """Directions [batch direction y x]; ``several`` if the caller gave them on an axis of their own."""

    values: NDArray[Any]
    several: bool

    @property
    def number(self) -> int:
        """How many each field has."""
        return int(self.values.shape[1])

    def as_given(self, found: NDArray[Any], *, single: bool) -> NDArray[Any]:
        """What was found for each [batch direction ...], with the axes that the caller's arrays have."""
        # the caller's directions come first
        found = np.moveaxis(found, 1, 0)
        if single:
            found = found[:, 0]
        return found if self.several else found[0]


def check_directions(inputs: Inputs, name: str, given: Any, limits: Limits) -> Directions:
    """Arrays of the inputs' shape, or several such on a leading axis.

    Raises:
        InvalidField: another shape, or numbers that are none.
        TooLarge: with those of all fields they are more than a request may have.
    """
    values = np.asarray(given)
    several = values.ndim == (3 if inputs.single else 4)
    if not several:
        return Directions(check_like(inputs, name, values)[:, None], several=False)
    if not len(values):
        raise InvalidField(name, "shape", f"{name}: expected one or more, got none")
    if len(values) * inputs.rows > limits.batch:
        got = f"got {len(values)} for each of {inputs.rows}"
        raise TooLarge(f"{name}: a request has at most {limits.batch} of all fields, {got}; send several")
    checked = [check_like(inputs, name, each) for each in values]
    return Directions(np.stack(checked, axis=1), several=True)
