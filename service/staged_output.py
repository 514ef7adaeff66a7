"""Output of ``mno solve``: whole or absent. Until it is whole it grows in the folder OUTPUT.partial.

The folder holds plain ``.npy`` arrays of their final size and ``progress.json``, which says for what job they
are and how many samples are done; so work that was killed at any moment continues after its last whole batch.
Whoever writes holds a lock on the folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, final

import h5py
import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from service.errors import InvalidField
from service.field_file import HDF5, FieldFile, unknown_extension
from service.solver import SolveResponse

__all__ = ["StagedOutput", "check_output"]

COPIED_AT_ONCE = 64


def check_output(path: Path, input_path: Path) -> None:
    """Refuse an output that could not be written at the end, or would replace the input."""
    if path.suffix.lower() not in (".npy", ".npz", *HDF5):
        raise unknown_extension(path)
    if not path.parent.is_dir() or path.is_dir():
        raise InvalidField("OUTPUT", "path", f"{path}: expected a file in a folder that exists")
    if path.exists() and path.samefile(input_path):
        raise InvalidField("OUTPUT", "path", f"{path} is the input itself; choose another output")


@final
class StagedOutput:
    """Solutions and upper error bounds of all samples, appended batch by batch in a ``with`` block."""

    def __init__(self, path: Path, inputs: FieldFile, source: float, recipe: Mapping[str, Any]) -> None:
        """Continue the partial output of the same ``recipe``, or begin one.

        Raises:
            InvalidField: somebody writes this output now, or has begun it for another recipe.
        """
        self._path = path
        self._inputs = inputs
        self._source = source
        self._recipe = dict(recipe)
        self._folder = path.with_name(f"{path.name}.partial")
        self._folder.mkdir(exist_ok=True)
        self._lock = _locked(self._folder)
        try:
            self._progress = self._resume() or self._begin()
            self._answers = open_memmap(self._folder / "answers.npy", mode="r+")
            self._errors = open_memmap(self._folder / "error_upper.npy", mode="r+")
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
        return int(self._progress["done"])

    def append(self, response: SolveResponse) -> None:
        """Add the answers to the next samples."""
        ((name, answers),) = response.fields.items()
        rows = slice(self.done, self.done + len(answers))
        self._answers[rows] = answers
        self._errors[rows] = np.nan if response.errors is None else [error.upper for error in response.errors]
        self._answers.flush()
        self._errors.flush()
        self._note({"done": rows.stop, "name": name, "model": response.model, "scheme": response.operator})

    def finish(self) -> str:
        """Put the output in its place; returns a line about it."""
        whole = self._folder / f"whole{self._path.suffix}"
        write = {".npy": self._write_npy, ".npz": self._write_npz}.get(
            self._path.suffix.lower(), self._write_hdf5
        )
        write(whole)
        whole.replace(self._path)
        line = self._summary()
        shutil.rmtree(self._folder)
        return line

    def _summary(self) -> str:
        solved_by = self._progress["model"] or "the reference solver"
        line = f"{self._path}: {self._inputs.count} solutions by {solved_by}"
        if np.isnan(self._errors).any():
            return line
        median, worst = np.median(self._errors), np.max(self._errors)
        return f"{line}; relative energy error at most {worst:.2g} (median of the bounds {median:.2g})"

    def _begin(self) -> dict[str, Any]:
        dtype = np.float64 if self._inputs.dtype == np.float64 else np.float32
        count = self._inputs.count
        shapes = {"answers": (dtype, (count, *self._inputs.grid)), "error_upper": (np.float64, (count,))}
        for name, (kind, shape) in shapes.items():
            open_memmap(self._folder / f"{name}.npy", mode="w+", dtype=kind, shape=shape).flush()
        # until the first batch is noted there is nothing to continue
        return {"recipe": self._recipe, "done": 0}

    def _resume(self) -> dict[str, Any] | None:
        """What was done for the same recipe, None if nothing was done for any."""
        try:
            progress: dict[str, Any] = json.loads((self._folder / "progress.json").read_text())
        except FileNotFoundError:
            return None
        if not progress["done"]:
            return None
        if progress["recipe"] != self._recipe:
            message = (
                f"{self._folder} was begun for another input, version or option; remove it to begin anew"
            )
            raise InvalidField("OUTPUT", "recipe", message)
        return progress

    def _note(self, progress: Mapping[str, Any]) -> None:
        self._progress |= progress
        new = self._folder / "progress.new"
        new.write_text(json.dumps(self._progress))
        new.replace(self._folder / "progress.json")

    def _write_npy(self, path: Path) -> None:
        # a copy, so that a failure before the renaming loses nothing
        shutil.copyfile(self._folder / "answers.npy", path)

    def _write_npz(self, path: Path) -> None:
        notes: dict[str, NDArray[Any]] = {
            key: np.array(self._progress[key] or "") for key in ("model", "scheme")
        }
        arrays = {self._progress["name"]: self._answers, "error_upper": self._errors, **notes}
        np.savez(path, allow_pickle=False, source=np.array(self._source), **arrays)

    def _write_hdf5(self, path: Path) -> None:
        """PDEBench's layout, (sample, x, y), with the error bounds beside it."""
        (ny, nx), count = self._inputs.grid, self._inputs.count
        with h5py.File(path, "w") as file:
            file.attrs.update(
                beta=self._source, model=self._progress["model"] or "", scheme=self._progress["scheme"]
            )
            for axis, cells in (("x", nx), ("y", ny)):
                file[f"{axis}-coordinate"] = ((np.arange(cells) + 0.5) / cells).astype(np.float32)
            file["error_upper"] = self._errors
            coefficients = file.create_dataset("nu", (count, nx, ny), self._inputs.dtype)
            tensor = file.create_dataset("tensor", (count, 1, nx, ny), self._answers.dtype)
            for start in range(0, count, COPIED_AT_ONCE):
                rows = slice(start, min(start + COPIED_AT_ONCE, count))
                coefficients[rows] = self._inputs.read(rows.start, rows.stop).transpose(0, 2, 1)
                tensor[rows, 0] = self._answers[rows].transpose(0, 2, 1)


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
