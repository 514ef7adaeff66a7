"""Labelled arrays: what comes as an ``xarray.DataArray`` goes back as one. Nothing here needs xarray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["is_labelled", "labelled_like", "plain"]


def is_labelled(field: object) -> bool:
    """Whether a field has named axes with coordinates."""
    return all(hasattr(field, name) for name in ("dims", "coords", "to_numpy", "copy"))


def plain(field: Any) -> NDArray[Any]:
    """The numbers of a field."""
    array: NDArray[Any] = field.to_numpy() if is_labelled(field) else np.asarray(field)
    return array


def labelled_like(field: Any, arrays: Mapping[str, NDArray[Any]]) -> Mapping[str, Any]:
    """The arrays with the axes and coordinates of ``field``, if it has any, and names of their own."""
    if not is_labelled(field):
        return arrays
    return {name: _renamed(field.copy(data=values), name) for name, values in arrays.items()}


def _renamed(array: Any, name: str) -> Any:
    # units and long names are those of the input
    array.attrs = {}
    array.name = name
    return array
