"""Arrays that grow in the folder OUTPUT.partial until they are whole: work that was killed goes on.

The folder holds plain ``.npy`` arrays of their final size and ``progress.json``, which says for what job they
are and how many samples are done; so work that was killed at any moment continues after its last whole batch.
Whoever writes holds a lock on the folder.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, final

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import DTypeLike, NDArray

from service.errors import InvalidField

__all__ = ["Shape", "Staging"]

# dtype and shape of an array
Shape = tuple[DTypeLike, tuple[int, ...]]


@final
class Staging:
    """The arrays of one output, in a ``with`` block.

    Attributes:
        folder: what they grow in.
        arrays: by name; what is assigned to them is on the disk once it is noted.
        progress: whatever was noted.
    """

    def __init__(self, output: Path, recipe: Mapping[str, Any], shapes: Mapping[str, Shape]) -> None:
        """Continue the arrays of the same ``recipe``, or begin them.

        Raises:
            InvalidField: somebody writes this output now, it was begun for another recipe, or will not fit.
        """
        self._output = output
        self._recipe = dict(recipe)
        self.folder = output.with_name(f"{output.name}.partial")
        self.folder.mkdir(exist_ok=True)
        self._lock = _locked(self.folder)
        try:
            self.progress = self._resume() or self._begin(shapes)
            self.arrays: dict[str, NDArray[Any]] = {
                name: open_memmap(self._file(name), mode="r+") for name in shapes
            }
        except BaseException:
            os.close(self._lock)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)

    @property
    def done(self) -> int:
        """Samples that need not be computed again."""
        return int(self.progress["done"])

    def note(self, progress: Mapping[str, Any]) -> None:
        """Make what was assigned last; ``progress`` has the new ``done``, and what else to remember."""
        for array in self.arrays.values():
            assert isinstance(array, np.memmap)
            array.flush()
        self.progress |= progress
        new = self.folder / "progress.new"
        new.write_text(json.dumps(self.progress))
        new.replace(self.folder / "progress.json")

    def copy(self, name: str, path: Path) -> None:
        """Copy the file of an array; a failure before the end loses nothing."""
        shutil.copyfile(self._file(name), path)

    def finish(self, write: Callable[[Path], None]) -> None:
        """Let ``write`` make the whole output, and put it in its place."""
        whole = self.folder / f"whole{self._output.suffix}"
        write(whole)
        whole.replace(self._output)

    def remove(self) -> None:
        """Remove the folder, when nothing needs the arrays any more."""
        shutil.rmtree(self.folder)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def _begin(self, shapes: Mapping[str, Shape]) -> dict[str, Any]:
        _require_space(self.folder, shapes)
        for name, (dtype, shape) in shapes.items():
            open_memmap(self._file(name), mode="w+", dtype=dtype, shape=shape).flush()
        # until the first batch is noted there is nothing to continue
        return {"recipe": self._recipe, "done": 0}

    def _resume(self) -> dict[str, Any] | None:
        """What was done for the same recipe, None if nothing was done for any."""
        try:
            progress: dict[str, Any] = json.loads((self.folder / "progress.json").read_text())
        except FileNotFoundError:
            return None
        if not progress["done"]:
            return None
        if progress["recipe"] != self._recipe:
            message = f"{self.folder} was begun for another input, version or option; remove it to begin anew"
            raise InvalidField("OUTPUT", "recipe", message)
        return progress


def _require_space(folder: Path, shapes: Mapping[str, Shape]) -> None:
    # the arrays, and the output that is made of them
    needed = 2 * sum(np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in shapes.values())
    free = shutil.disk_usage(folder).free
    if needed > free:
        message = f"{folder}: expected {needed / 1e9:.1f} GB of free space, got {free / 1e9:.1f} GB"
        raise InvalidField("OUTPUT", "space", f"{message}; choose another place, or ask for less")


def _locked(folder: Path) -> int:
    """The open folder, locked until it is closed."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        message = f"{folder}: another process writes this output; wait for it, or choose another output"
        raise InvalidField("OUTPUT", "lock", message) from error
    return descriptor
