"""Output of ``mno solve``: whole or absent; until it is whole it grows as ``staging.py`` says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, final

import h5py
import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidField
from service.files.field_file import HDF5, FieldFile, unknown_extension
from service.files.staging import Staging
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
        """Continue the partial output of the same ``recipe``, or begin one; see :class:`Staging`."""
        self._path = path
        self._inputs = inputs
        self._source = source
        dtype = np.float64 if inputs.dtype == np.float64 else np.float32
        shapes = {
            "answers": (dtype, (inputs.count, *inputs.grid)),
            "error_upper": (np.float64, (inputs.count,)),
        }
        self._staging = Staging(path, recipe, shapes)
        self._answers, self._errors = (self._staging.arrays[name] for name in shapes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._staging.__exit__()

    @property
    def done(self) -> int:
        """Samples that need not be computed again."""
        return self._staging.done

    def append(self, response: SolveResponse) -> None:
        """Add the answers to the next samples."""
        ((name, answers),) = response.fields.items()
        rows = slice(self.done, self.done + len(answers))
        self._answers[rows] = answers
        self._errors[rows] = np.nan if response.errors is None else [error.upper for error in response.errors]
        known = {"name": name, "model": response.model, "scheme": response.operator}
        self._staging.note({"done": rows.stop, **known})

    def finish(self) -> str:
        """Put the output in its place; returns a line about it."""
        write = {".npy": self._write_npy, ".npz": self._write_npz}.get(
            self._path.suffix.lower(), self._write_hdf5
        )
        self._staging.finish(write)
        line = self._summary()
        self._staging.remove()
        return line

    def _summary(self) -> str:
        solved_by = self._staging.progress["model"] or "the reference solver"
        line = f"{self._path}: {self._inputs.count} solutions by {solved_by}"
        if np.isnan(self._errors).any():
            return line
        median, worst = np.median(self._errors), np.max(self._errors)
        return f"{line}; relative energy error at most {worst:.2g} (median of the bounds {median:.2g})"

    def _write_npy(self, path: Path) -> None:
        self._staging.copy("answers", path)

    def _write_npz(self, path: Path) -> None:
        progress = self._staging.progress
        notes: dict[str, NDArray[Any]] = {key: np.array(progress[key] or "") for key in ("model", "scheme")}
        arrays = {progress["name"]: self._answers, "error_upper": self._errors, **notes}
        np.savez(path, allow_pickle=False, source=np.array(self._source), **arrays)

    def _write_hdf5(self, path: Path) -> None:
        """PDEBench's layout, (sample, x, y), with the error bounds beside it."""
        (ny, nx), count = self._inputs.grid, self._inputs.count
        progress = self._staging.progress
        with h5py.File(path, "w") as file:
            file.attrs.update(beta=self._source, model=progress["model"] or "", scheme=progress["scheme"])
            for axis, cells in (("x", nx), ("y", ny)):
                file[f"{axis}-coordinate"] = ((np.arange(cells) + 0.5) / cells).astype(np.float32)
            file["error_upper"] = self._errors
            coefficients = file.create_dataset("nu", (count, nx, ny), self._inputs.dtype)
            tensor = file.create_dataset("tensor", (count, 1, nx, ny), self._answers.dtype)
            for start in range(0, count, COPIED_AT_ONCE):
                rows = slice(start, min(start + COPIED_AT_ONCE, count))
                coefficients[rows] = self._inputs.read(rows.start, rows.stop).transpose(0, 2, 1)
                tensor[rows, 0] = self._answers[rows].transpose(0, 2, 1)
