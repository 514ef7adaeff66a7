"""Files of input fields: ``.npy``, ``.npz``, HDF5 in PDEBench's layout. Read in slices, never unpickled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import h5py
import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidField, NotAvailableYet, ServiceFault, UnsupportedMedia

__all__ = ["DEFAULT_SOURCE", "HDF5", "FieldFile", "open_field_file", "unknown_extension"]

HDF5 = (".h5", ".hdf5")
DEFAULT_SOURCE = 1.0
# PDEBench's names: the coefficient is `nu` (sample, x, y), the uniform source the attribute `beta`
COEFFICIENT, SOURCE = "nu", "beta"
FIELD = "permeability"


@dataclass(frozen=True)
class FieldFile:
    """The fields of an open file.

    Attributes:
        name: of the field.
        read: fields ``start`` to ``stop`` as (batch, ny, nx).
        source: the file's uniform right-hand side, 1 if it says nothing.
    """

    name: str
    count: int
    grid: tuple[int, int]
    dtype: np.dtype[Any]
    read: Callable[[int, int], NDArray[Any]]
    source: float = DEFAULT_SOURCE


@contextmanager
def open_field_file(path: Path) -> Iterator[FieldFile]:
    """Open a file by its extension.

    Raises:
        InvalidField: the file does not hold what its extension promises.
    """
    with ExitStack() as stack:
        try:
            fields = _open(path, stack)
        except (OSError, ValueError, EOFError, BadZipFile) as error:
            message = f"{path}: not a readable {path.suffix} file: {error}"
            raise InvalidField("INPUT", "format", message) from error
        yield fields


def _open(path: Path, stack: ExitStack) -> FieldFile:
    extension = path.suffix.lower()
    if extension == ".npy":
        return _from_array(path, np.load(path, mmap_mode="r", allow_pickle=False))
    if extension == ".npz":
        file = stack.enter_context(path.open("rb"))
        return _from_archive(path, stack.enter_context(np.load(file, allow_pickle=False)))
    if extension in HDF5:
        return _pdebench(path, stack.enter_context(h5py.File(path, "r")))
    raise unknown_extension(path)


def unknown_extension(path: Path) -> ServiceFault:
    """What to raise for a file that is none of these."""
    if path.suffix.lower() == ".zarr":
        return NotAvailableYet(f"{path}: .zarr is not available yet; use .h5")
    return UnsupportedMedia(
        f"{path}: expected .npy, .npz, .h5 or .hdf5, got {path.suffix or 'no extension'!r}"
    )


def _from_array(path: Path, array: NDArray[Any], source: float = DEFAULT_SOURCE) -> FieldFile:
    batch = array[None] if array.ndim == 2 else array
    if batch.ndim != 3 or batch.shape[0] == 0 or batch.dtype.kind not in "fiu":
        message = f"{path}: expected numbers (ny, nx) or (batch, ny, nx), got {array.dtype} {array.shape}"
        raise InvalidField("INPUT", "rank", message)
    count, ny, nx = batch.shape
    return FieldFile(
        FIELD, count, (ny, nx), batch.dtype, lambda start, stop: np.array(batch[start:stop]), source
    )


def _from_archive(path: Path, archive: Any) -> FieldFile:
    names = list(archive)
    name = FIELD if FIELD in names else names[0] if len(names) == 1 else None
    if name is None:
        raise InvalidField("INPUT", "missing", f"{path}: expected an array named {FIELD!r}, got {names}")
    return _from_array(path, archive[name], _uniform(path, archive["source"] if "source" in names else None))


def _uniform(path: Path, source: object) -> float:
    """The one source of all samples."""
    if source is None:
        return DEFAULT_SOURCE
    value = np.asarray(source)
    if value.size != 1 or value.dtype.kind not in "fiu":
        message = f"{path}: expected one number as the source of all samples, got {value.dtype} {value.shape}"
        raise InvalidField("INPUT", "source", message)
    return float(value.item())


def _pdebench(path: Path, file: Any) -> FieldFile:
    fields = file.get(COEFFICIENT)
    if not isinstance(fields, h5py.Dataset) or fields.ndim != 3 or fields.shape[0] == 0:
        message = f"{path}: expected a data set {COEFFICIENT!r} (sample, x, y), got {sorted(file)}"
        raise InvalidField("INPUT", "missing", message)
    if fields.dtype.kind not in "fiu":
        raise InvalidField(
            "INPUT", "dtype", f"{path}: expected numbers in {COEFFICIENT!r}, got {fields.dtype}"
        )
    count, nx, ny = fields.shape
    for axis, cells in (("x", nx), ("y", ny)):
        _check_unit_side(path, file, axis, cells)
    source = _uniform(path, file.attrs.get(SOURCE))

    def read(start: int, stop: int) -> NDArray[Any]:
        return np.ascontiguousarray(fields[start:stop].transpose(0, 2, 1))

    return FieldFile(FIELD, count, (ny, nx), fields.dtype, read, source)


def _check_unit_side(path: Path, file: Any, axis: str, cells: int) -> None:
    """Coordinates, where a file has them, must be the cell centres of the unit square."""
    coordinates = file.get(f"{axis}-coordinate")
    if coordinates is None:
        return
    centers = (np.arange(cells) + 0.5) / cells
    if coordinates.shape != centers.shape or not np.allclose(coordinates[:], centers, atol=1e-5):
        message = f"{path}: expected {axis}-coordinate to be {cells} cell centers of a side of 1 m"
        raise InvalidField("INPUT", "coordinates", message)
