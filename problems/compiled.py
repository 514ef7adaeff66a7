"""The decorator of the numba kernels of this package.

Numba is imported when the first kernel is called: whoever only describes or validates fields, as the front of
the service does, needs neither its time nor its memory.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, final


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """``numba.njit`` without the interpreter lock, cached on disk where there is a place for it.

    Sums may be reordered and products contracted, which vectorises dot products; NaN and infinity keep their
    meaning. A kernel becomes part of each kernel that calls it: left apart, it would be rounded in one way by
    the process that compiled it and in another by those that load it from disk, and the bits would differ.
    """
    settings = {
        "nogil": True,
        "fastmath": {"reassoc", "contract", "nsz", "arcp"},
        "error_model": "numpy",
        "forceinline": True,
        **options,
    }
    # numba must not see the wrapper of a run-time type checker
    return lambda function: Kernel(inspect.unwrap(function), settings)


@final
class Kernel:
    """A function that is compiled when it is first called, by Python or by another kernel."""

    def __init__(self, function: Callable[..., Any], settings: dict[str, Any]) -> None:
        self._settings = settings
        functools.update_wrapper(self, function)

    def __call__(self, *arguments: Any) -> Any:
        return self._dispatcher(*arguments)

    @property
    def _numba_type_(self) -> Any:
        """What numba takes this object for where another kernel calls it."""
        return self._dispatcher._numba_type_

    @functools.cached_property
    def _dispatcher(self) -> Any:
        import numba

        function = inspect.unwrap(self)
        try:
            return numba.njit(cache=True, **self._settings)(function)
        except RuntimeError:
            # neither the package nor the user's cache directory can be written: compile in memory
            return numba.njit(**self._settings)(function)
