"""Files of input fields: ``.npy``, ``.npz``, HDF5 in PDEBench's layout, Zarr. Read in slices, not unpickled.

A ``.zarr`` holds an array (sample, y, x), or a group with one named ``permeability``, whose attribute
``source`` is the uniform source of all samples. In an object store there are HDF5 and Zarr.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from zipfile import BadZipFile

import h5py
import numpy as np
from numpy.typing import NDArray

from bulk.objects import Place, RemotePlace
from service.errors import InvalidField, NotAvailableYet, ServiceFault, UnsupportedMedia

__all__ = [
    "DEFAULT_SOURCE",
    "EVERY",
    "HDF5",
    "LOCAL",
    "ZARR",
    "FieldFile",
    "identify",
    "open_field_file",
    "unknown_extension",
]

HDF5 = (".h5", ".hdf5")
ZARR = ".zarr"
LOCAL = (".npy", ".npz", *HDF5)
# what can be read in pieces through a network
REMOTE = (*HDF5, ZARR)
EVERY = (*LOCAL, ZARR)
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
def open_field_file(place: Place) -> Iterator[FieldFile]:
    """Open a file by its extension.

    Raises:
        InvalidField: the file does not hold what its extension promises.
    """
    with ExitStack() as stack:
        try:
            fields = _open(place, stack)
        except (OSError, ValueError, EOFError, BadZipFile) as error:
            message = f"{place}: not a readable {place.suffix} file: {error}"
            raise InvalidField("INPUT", "format", message) from error
        yield fields


def identify(place: Place) -> list[Any]:
    """What tells this state of a file from any other, unread: name, size, version of its parts."""
    if isinstance(place, RemotePlace):
        return [place.url, *map(list, place.identify())]
    parts = [place, *sorted(place.rglob("*"))] if place.is_dir() else [place]
    return [[str(part.resolve()), part.stat().st_size, part.stat().st_mtime_ns] for part in parts]


def _open(place: Place, stack: ExitStack) -> FieldFile:
    extension = place.suffix.lower()
    if extension == ZARR:
        return _from_zarr(place)
    if isinstance(place, RemotePlace):
        if extension not in HDF5:
            raise unknown_extension(place, REMOTE)
        return _pdebench(place, stack.enter_context(h5py.File(stack.enter_context(place.open_file()), "r")))
    if extension == ".npy":
        return _from_array(place, np.load(place, mmap_mode="r", allow_pickle=False))
    if extension == ".npz":
        file = stack.enter_context(place.open("rb"))
        return _from_archive(place, stack.enter_context(np.load(file, allow_pickle=False)))
    if extension in HDF5:
        return _pdebench(place, stack.enter_context(h5py.File(place, "r")))
    raise unknown_extension(place, EVERY)


def unknown_extension(place: Place, known: Sequence[str]) -> ServiceFault:
    """What to raise for a file that is none of these."""
    if place.suffix.lower() == ZARR and ZARR not in known:
        return NotAvailableYet(f"{place}: .zarr is not available here yet; use .h5")
    *most, last = known
    expected = f"{', '.join(most)} or {last}"
    return UnsupportedMedia(f"{place}: expected {expected}, got {place.suffix or 'no extension'!r}")


def _from_array(path: Place, array: NDArray[Any], source: float = DEFAULT_SOURCE) -> FieldFile:
    batch = array[None] if array.ndim == 2 else array
    if batch.ndim != 3 or batch.shape[0] == 0 or batch.dtype.kind not in "fiu":
        message = f"{path}: expected numbers (ny, nx) or (batch, ny, nx), got {array.dtype} {array.shape}"
        raise InvalidField("INPUT", "rank", message)
    count, ny, nx = batch.shape
    return FieldFile(
        FIELD, count, (ny, nx), batch.dtype, lambda start, stop: np.array(batch[start:stop]), source
    )


def _from_archive(path: Place, archive: Any) -> FieldFile:
    names = list(archive)
    name = FIELD if FIELD in names else names[0] if len(names) == 1 else None
    if name is None:
        raise InvalidField("INPUT", "missing", f"{path}: expected an array named {FIELD!r}, got {names}")
    return _from_array(path, archive[name], _uniform(path, archive["source"] if "source" in names else None))


def _from_zarr(place: Place) -> FieldFile:
    # imported here: most files are none
    import zarr
    from zarr.storage import ObjectStore

    store = ObjectStore(place.open_store(), read_only=True) if isinstance(place, RemotePlace) else str(place)
    found: Any = zarr.open(store=store, mode="r")
    source = _uniform(place, found.attrs.get("source"))
    if isinstance(found, zarr.Group):
        names = sorted(found.array_keys())
        if FIELD not in names:
            message = f"{place}: expected an array named {FIELD!r}, got {names}"
            raise InvalidField("INPUT", "missing", message)
        found = found[FIELD]
    if found.ndim != 3 or found.shape[0] == 0 or found.dtype.kind not in "fiu":
        message = f"{place}: expected numbers (sample, y, x), got {found.dtype} {found.shape}"
        raise InvalidField("INPUT", "rank", message)
    count, ny, nx = found.shape
    return FieldFile(
        FIELD, count, (ny, nx), found.dtype, lambda start, stop: np.asarray(found[start:stop]), source
    )


def _uniform(path: Place, source: object) -> float:
    """The one source of all samples."""
    if source is None:
        return DEFAULT_SOURCE
    value = np.asarray(source)
    if value.size != 1 or value.dtype.kind not in "fiu":
        message = f"{path}: expected one number as the source of all samples, got {value.dtype} {value.shape}"
        raise InvalidField("INPUT", "source", message)
    return float(value.item())


def _pdebench(path: Place, file: Any) -> FieldFile:
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


def _check_unit_side(path: Place, file: Any, axis: str, cells: int) -> None:
    """Coordinates, where a file has them, must be the cell centres of the unit square."""
    coordinates = file.get(f"{axis}-coordinate")
    if coordinates is None:
        return
    centers = (np.arange(cells) + 0.5) / cells
    if coordinates.shape != centers.shape or not np.allclose(coordinates[:], centers, atol=1e-5):
        message = f"{path}: expected {axis}-coordinate to be {cells} cell centers of a side of 1 m"
        raise InvalidField("INPUT", "coordinates", message)
