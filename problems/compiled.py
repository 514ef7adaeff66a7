"""The decorator of the numba kernels of this package."""

import inspect
from collections.abc import Callable
from typing import Any

import numba


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """``numba.njit`` without the interpreter lock, cached on disk where there is a place for it.

    Sums may be reordered and products contracted, which vectorises dot products; NaN and infinity keep their
    meaning.
    """
    settings = {
        "nogil": True,
        "fastmath": {"reassoc", "contract", "nsz", "arcp"},
        "error_model": "numpy",
        **options,
    }

    def decorate(function: Callable[..., Any]) -> Any:
        # numba must not see the wrapper of a run-time type checker
        function = inspect.unwrap(function)
        try:
            return numba.njit(cache=True, **settings)(function)
        except RuntimeError:
            # neither the package nor the user's cache directory can be written: compile in memory
            return numba.njit(**settings)(function)

    return decorate
