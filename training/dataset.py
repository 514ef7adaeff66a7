"""Data sets in PDEBench's HDF5 layout: ``nu`` [sample x y], ``tensor`` [sample 1 x y], centres, ``beta``.

PDEBench orders a field [x y], this project [y x]; this file is the only place that transposes. What this
project adds (scheme, family, seed, recipe) travels in root attributes, and foreign files may lack it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import h5py
import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

Attributes = Mapping[str, str | int | float]
# permeability and pressure of consecutive samples, each [sample y x]
Shard = tuple[NDArray[np.float32], NDArray[np.float32]]


class InvalidDataset(ValueError):
    """A file that is not a usable data set."""


@dataclass(frozen=True)
class Dataset:
    """Samples of one file: permeability, the pressure that belongs to it, and their uniform source."""

    permeability: Float32[np.ndarray, "sample 1 y x"]
    pressure: Float32[np.ndarray, "sample 1 y x"]
    source: float
    extent: tuple[float, float]
    attributes: Attributes = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.permeability)

    @property
    def grid(self) -> tuple[int, int]:
        """Cells (ny, nx)."""
        ny, nx = self.permeability.shape[-2:]
        return ny, nx

    @property
    def spacing(self) -> tuple[float, float]:
        """Cell size (hy, hx) [m]."""
        return self.extent[0] / self.grid[0], self.extent[1] / self.grid[1]

    @property
    def contrast(self) -> Float32[np.ndarray, " sample"]:
        """Largest over smallest permeability of each sample."""
        return np.asarray(self.permeability.max((1, 2, 3)) / self.permeability.min((1, 2, 3)))


@final
class StoredDataset:
    """The samples of an open file, read from the disk when they are asked for.

    Attributes:
        source: of all samples.
        extent: side lengths (Ly, Lx) [m].
        grid: cells (ny, nx).
        attributes: of the root.
    """

    def __init__(self, file: h5py.File, path: Path) -> None:
        _require_layout(file, path)
        self._path = path
        self._permeability, self._pressure = file["nu"], file["tensor"]
        self.source = float(file.attrs["beta"])
        self.extent = _side(file["y-coordinate"][()]), _side(file["x-coordinate"][()])
        nx, ny = self._permeability.shape[1:]
        self.grid = int(ny), int(nx)
        self.attributes: Attributes = {
            name: _plain(value) for name, value in file.attrs.items() if np.ndim(value) == 0
        }

    def __len__(self) -> int:
        return len(self._permeability)

    def read(
        self, index: NDArray[np.int64]
    ) -> tuple[Float32[np.ndarray, "sample 1 y x"], Float32[np.ndarray, "sample 1 y x"]]:
        """Permeability and pressure of some samples, in any order.

        Raises:
            InvalidDataset: the file is damaged.
        """
        try:
            # one by one: HDF5 takes increasing numbers only
            permeability = np.stack([self._permeability[number][None] for number in index])
            pressure = np.stack([self._pressure[number] for number in index])
        except OSError as error:
            raise InvalidDataset(f"{self._path}: samples cannot be read: {error}") from error
        return _to_y_x(permeability), _to_y_x(pressure)

    def load(self) -> Dataset:
        """All samples, in memory."""
        permeability, pressure = _to_y_x(self._permeability[()][:, None]), _to_y_x(self._pressure[()])
        return Dataset(permeability, pressure, self.source, self.extent, self.attributes)


def open_dataset(path: Path) -> StoredDataset:
    """A file, which is open as long as somebody has what this returns.

    Raises:
        InvalidDataset: no file, not HDF5, or not in PDEBench's layout.
    """
    if not path.is_file():
        raise InvalidDataset(f"no data set at {path}")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise InvalidDataset(f"{path}: expected HDF5: {error}") from error
    try:
        return StoredDataset(file, path)
    except BaseException:
        file.close()
        raise


def read_dataset(path: Path) -> Dataset:
    """The whole file, in memory."""
    if not path.is_file():
        raise InvalidDataset(f"no data set at {path}")
    try:
        with h5py.File(path, "r") as file:
            return StoredDataset(file, path).load()
    except OSError as error:
        raise InvalidDataset(f"{path}: expected HDF5: {error}") from error


def _require_layout(file: h5py.File, path: Path) -> None:
    if missing := [name for name in ("nu", "tensor", "x-coordinate", "y-coordinate") if name not in file]:
        raise InvalidDataset(f"{path}: expected PDEBench's Darcy layout, which has {', '.join(missing)}")
    if "beta" not in file.attrs:
        raise InvalidDataset(f"{path}: expected the root attribute beta, the uniform source")
    nu, tensor = file["nu"], file["tensor"]
    if tensor.shape != (nu.shape[0], 1, *nu.shape[1:]):
        raise InvalidDataset(f"{path}: tensor {tensor.shape} does not belong to nu {nu.shape}")
    centres = tuple(len(file[f"{axis}-coordinate"]) for axis in "xy")
    if centres != nu.shape[1:]:
        raise InvalidDataset(f"{path}: {centres} cell centres (x, y) do not belong to nu {nu.shape}")


def write_dataset(
    path: Path,
    count: int,
    shards: Iterable[Shard],
    centres: tuple[NDArray[np.float64], NDArray[np.float64]],
    attributes: Attributes,
) -> None:
    """Write ``count`` samples shard by shard.

    Args:
        path: of the new file.
        count: samples in all.
        shards: the samples in order.
        centres: cell centres (y, x) [m].
        attributes: of the root, ``beta`` among them.
    """
    y, x = centres
    # one representation for one content: no time stamps
    with h5py.File(path, "w", track_order=False) as file:
        nu = file.create_dataset("nu", (count, len(x), len(y)), "f4", track_times=False)
        tensor = file.create_dataset("tensor", (count, 1, len(x), len(y)), "f4", track_times=False)
        file.create_dataset("x-coordinate", data=x.astype("f4"), track_times=False)
        file.create_dataset("y-coordinate", data=y.astype("f4"), track_times=False)
        file.attrs.update(attributes)
        first = 0
        for permeability, pressure in shards:
            samples = slice(first, first + len(permeability))
            nu[samples] = np.swapaxes(permeability, -1, -2)
            tensor[samples, 0] = np.swapaxes(pressure, -1, -2)
            first = samples.stop


def _to_y_x(array: NDArray[np.floating]) -> NDArray[np.float32]:
    return np.ascontiguousarray(np.swapaxes(array, -1, -2), dtype=np.float32)


def _side(centres: NDArray[np.floating]) -> float:
    """Length of a side from its cell centres, which start half a cell from the wall."""
    return float(2.0 * centres.astype(np.float64).mean())


def _plain(value: object) -> str | int | float:
    return value.item() if isinstance(value, np.generic) else str(value)
