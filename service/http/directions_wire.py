"""Directions in JSON: cotangents of the outputs, tangents of an input; one of each field, or several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from problems import FieldSpec
from service.codec import array_from_lists
from service.errors import LONGEST_QUOTE, InvalidField

__all__ = ["COTANGENT", "HIGHEST_RANK", "TANGENT", "direction_of", "directions_of"]

COTANGENT: Final = "cotangent"
TANGENT: Final = "tangent"
# axes of several directions of a batch
HIGHEST_RANK: Final = 4


def directions_of(word: str, specs: Sequence[FieldSpec], given: object) -> dict[str, Any]:
    """Directions by the name of their field; alone where there is one field.

    Args:
        word: ``COTANGENT`` or ``TANGENT``.
        specs: of the fields that there are.
        given: what came.

    Raises:
        InvalidField: they are no object of arrays.
    """
    if isinstance(given, list | np.ndarray) and len(specs) == 1:
        given = {specs[0].name: given}
    if not isinstance(given, dict):
        expected = ", ".join(f'"{spec.name}": [[...]]' for spec in specs)
        raise InvalidField(word, "missing", f"{word}: expected an object {{{expected}}}")
    return {name: direction_of(name[:LONGEST_QUOTE], values) for name, values in given.items()}


def direction_of(name: str, values: Any) -> NDArray[Any]:
    """One direction of each field, or several.

    Raises:
        InvalidField: lists of different lengths.
    """
    if isinstance(values, np.ndarray):
        return values
    if _depth(values) < HIGHEST_RANK:
        return array_from_lists(name, values)
    each = [array_from_lists(name, direction) for direction in values]
    shapes = {one.shape for one in each}
    if len(shapes) > 1:
        raise InvalidField(name, "shape", f"{name}: expected directions of one shape, got {sorted(shapes)}")
    return np.stack(each)


def _depth(values: object) -> int:
    depth = 0
    while isinstance(values, list) and values and depth <= HIGHEST_RANK:
        values, depth = values[0], depth + 1
    return depth
