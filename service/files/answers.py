"""The whole output of ``mno solve``, written from its parts: no more than one of them is in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, final
from zipfile import ZipFile

import h5py
import numpy as np
from numpy.lib import format as npy
from numpy.typing import DTypeLike, NDArray

from service.files.field_file import HDF5, ZARR, FieldFile

__all__ = ["Answers", "Part", "write_answers"]


@final
@dataclass(frozen=True)
class Part:
    """Answers to consecutive fields, and the upper bounds of their errors (NaN: not asked for)."""

    answers: NDArray[Any]
    error_upper: NDArray[np.float64]


@final
@dataclass
class Answers:
    """The answers to all fields of a file.

    Attributes:
        inputs: the fields.
        source: their uniform right-hand side.
        dtype: of the answers.
        name: of the output field.
        model: the version that answered; empty: the reference solver.
        scheme: id of the discrete operator.
        parts: opens their parts, in the order of the file.
        error_upper: the bound of each answer, once all parts were read.
    """

    inputs: FieldFile
    source: float
    dtype: np.dtype[Any]
    name: str
    model: str
    scheme: str
    parts: Callable[[], Iterator[Part]]
    error_upper: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.error_upper = np.full(self.inputs.count, np.nan)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of all answers (sample, y, x)."""
        return self.inputs.count, *self.inputs.grid

    def rows(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        """The answers and the rows that they are of, in order.

        Raises:
            RuntimeError: some are missing, or too many.
        """
        start = 0
        for part in self.parts():
            rows = slice(start, start + len(part.answers))
            self.error_upper[rows] = part.error_upper
            yield rows, part.answers
            start = rows.stop
        if start != self.inputs.count:
            raise RuntimeError(f"expected {self.inputs.count} answers, got {start}")

    def __str__(self) -> str:
        line = f"{self.inputs.count} solutions by {self.model or 'the reference solver'}"
        if np.isnan(self.error_upper).any():
            return line
        median, worst = np.median(self.error_upper), np.max(self.error_upper)
        return f"{line}; relative energy error at most {worst:.2g} (median of the bounds {median:.2g})"


def write_answers(answers: Answers, path: Path) -> None:
    """Write a file of the kind that the extension says."""
    WRITERS[path.suffix.lower()](answers, path)


def _write_npy(answers: Answers, path: Path) -> None:
    with path.open("wb") as file:
        _write_rows(answers, file)


def _write_npz(answers: Answers, path: Path) -> None:
    with ZipFile(path, "w", allowZip64=True) as archive:
        with archive.open(f"{answers.name}.npy", "w", force_zip64=True) as file:
            _write_rows(answers, file)
        small = {"source": np.array(answers.source), "error_upper": answers.error_upper}
        notes = {"model": np.array(answers.model), "scheme": np.array(answers.scheme)}
        for name, values in {**small, **notes}.items():
            with archive.open(f"{name}.npy", "w") as file:
                npy.write_array(file, values, allow_pickle=False)


def _write_rows(answers: Answers, file: IO[bytes]) -> None:
    """One array, as ``numpy.save`` writes it."""
    header = {"descr": npy.dtype_to_descr(answers.dtype), "fortran_order": False, "shape": answers.shape}
    npy.write_array_header_1_0(file, header)
    for _, values in answers.rows():
        file.write(np.ascontiguousarray(values, answers.dtype).tobytes())


def _write_hdf5(answers: Answers, path: Path) -> None:
    """PDEBench's layout, (sample, x, y), with the error bounds beside it."""
    inputs = answers.inputs
    count, ny, nx = answers.shape
    with h5py.File(path, "w") as file:
        file.attrs.update(beta=answers.source, model=answers.model, scheme=answers.scheme)
        for axis, cells in (("x", nx), ("y", ny)):
            file[f"{axis}-coordinate"] = _centers(cells).astype(np.float32)
        coefficients = _hdf5_array(file, "nu", (count, nx, ny), inputs.dtype)
        tensor = _hdf5_array(file, "tensor", (count, 1, nx, ny), answers.dtype)
        for rows, values in answers.rows():
            coefficients[rows] = inputs.read(rows.start, rows.stop).transpose(0, 2, 1)
            tensor[rows, 0] = values.transpose(0, 2, 1)
        _hdf5_array(file, "error_upper", (count,), answers.error_upper.dtype)[:] = answers.error_upper


def _hdf5_array(file: Any, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
    # one representation for one content: no time stamps
    return file.create_dataset(name, shape, dtype, track_times=False)


def _write_zarr(answers: Answers, path: Path) -> None:
    """A group of the answers (sample, y, x), their error bounds (sample), and the cell centers."""
    # imported here: most files are none
    import zarr

    count, ny, nx = answers.shape
    notes = {"source": answers.source, "model": answers.model, "scheme": answers.scheme}
    group = zarr.create_group(str(path), attributes=notes)
    rows_at_once = max(1, min(count, ZARR_CHUNK // (ny * nx * answers.dtype.itemsize)))
    field_array = group.create_array(
        answers.name,
        shape=answers.shape,
        chunks=(rows_at_once, ny, nx),
        dtype=answers.dtype,
        dimension_names=("sample", "y", "x"),
    )
    waiting: list[NDArray[Any]] = []
    start = 0
    for rows, values in answers.rows():
        waiting.append(values)
        # whole chunks only: one that is written twice is read in between
        whole = count if rows.stop == count else rows.stop // rows_at_once * rows_at_once
        if whole > start:
            block = np.concatenate(waiting)
            field_array[start:whole] = block[: whole - start]
            waiting, start = [block[whole - start :]], whole
    for name, axes, small in (
        ("error_upper", ("sample",), answers.error_upper),
        ("y", ("y",), _centers(ny)),
        ("x", ("x",), _centers(nx)),
    ):
        array = group.create_array(name, shape=small.shape, dtype=small.dtype, dimension_names=axes)
        array[:] = small


def _centers(cells: int) -> NDArray[np.float64]:
    """Cell centers of a side of 1 m."""
    return np.asarray((np.arange(cells) + 0.5) / cells)


# what is compressed together [B]
ZARR_CHUNK: Final = 2**23

WRITERS: Final[Mapping[str, Callable[[Answers, Path], None]]] = {
    ".npy": _write_npy,
    ".npz": _write_npz,
    ZARR: _write_zarr,
    **dict.fromkeys(HDF5, _write_hdf5),
}
