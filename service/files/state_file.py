"""Files of states and of trajectories: ``.npy``, ``.npz``, HDF5 in PDEBench's layout; never unpickled.

PDEBench keeps a group ``0000``, ``0001``, ... for each trajectory, with ``data`` and the coordinates
``grid/x``, ``grid/y``, ``grid/t``. The two problems order their axes differently (:data:`LAYOUTS`). Fields
that PDEBench does not keep, the momenta of shallow water, lie beside ``data`` in a data set of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile

import h5py
import numpy as np
from numpy.typing import NDArray

from problems import EvolutionProblem, Grid
from service.errors import InvalidField
from service.files.field_file import HDF5, LOCAL, unknown_extension

__all__ = ["StateFile", "open_state_file", "write_trajectories"]

# how far coordinates in float32 may be from where they should be, in cells or frames
NEAR: Final = 1e-2


@dataclass(frozen=True)
class Layout:
    """How PDEBench stores the trajectories of one problem.

    Attributes:
        datasets: data set of a group -> its fields; the first is PDEBench's.
        axes: the axes of (time, channel, y, x) in the order of the file.
    """

    datasets: Mapping[str, tuple[str, ...]]
    axes: tuple[int, int, int, int]

    @property
    def back(self) -> tuple[int, ...]:
        """The axes of the file in the order (time, channel, y, x)."""
        return tuple(self.axes.index(axis) for axis in range(4))


LAYOUTS: Final[Mapping[str, Layout]] = {
    "shallow_water": Layout({"data": ("h",), "momentum": ("hu", "hv")}, (0, 3, 2, 1)),
    "diffusion_reaction": Layout({"data": ("u", "v")}, (0, 2, 3, 1)),
}


@dataclass(frozen=True)
class StateFile:
    """The states of an open file.

    Attributes:
        names: of the fields.
        keys: names of the samples.
        read: states ``start`` to ``stop`` by field, each (batch, ny, nx).
    """

    names: tuple[str, ...]
    keys: tuple[str, ...]
    grid: tuple[int, int]
    dtype: np.dtype[Any]
    read: Callable[[int, int], dict[str, NDArray[Any]]]

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self.keys)


@contextmanager
def open_state_file(path: Path, problem: EvolutionProblem, frame: int) -> Iterator[StateFile]:
    """Open a file by its extension; of trajectories, take the states of one frame.

    Raises:
        InvalidField: the file does not hold what its extension promises.
    """
    with ExitStack() as stack:
        try:
            states = _open(path, problem, frame, stack)
        except (OSError, ValueError, EOFError, BadZipFile) as error:
            message = f"{path}: not a readable {path.suffix} file: {error}"
            raise InvalidField("INPUT", "format", message) from error
        yield states


def _open(path: Path, problem: EvolutionProblem, frame: int, stack: ExitStack) -> StateFile:
    extension = path.suffix.lower()
    if extension == ".npy":
        return _from_array(path, problem, np.load(path, mmap_mode="r", allow_pickle=False))
    if extension == ".npz":
        file = stack.enter_context(path.open("rb"))
        archive = stack.enter_context(np.load(file, allow_pickle=False))
        return _from_fields(path, problem, {name: archive[name] for name in archive})
    if extension in HDF5:
        return _from_trajectories(path, problem, frame, stack.enter_context(h5py.File(path, "r")))
    raise unknown_extension(path, LOCAL)


def _from_array(path: Path, problem: EvolutionProblem, array: NDArray[Any]) -> StateFile:
    batch = array[None] if array.ndim == 3 else array
    known = [tuple(spec.name for spec in problem.inputs), LAYOUTS[problem.name].datasets["data"]]
    names = {len(names): names for names in known}
    if batch.ndim != 4 or batch.shape[1] not in names:
        channels = " or ".join(",".join(each) for each in names.values())
        message = f"(channel, ny, nx) or (batch, channel, ny, nx) with the channels {channels}"
        raise InvalidField("INPUT", "rank", f"{path}: expected {message}, got shape {array.shape}")
    named = names[batch.shape[1]]
    return _from_fields(path, problem, {name: batch[:, channel] for channel, name in enumerate(named)})


def _from_fields(path: Path, problem: EvolutionProblem, fields: Mapping[str, NDArray[Any]]) -> StateFile:
    names = tuple(spec.name for spec in problem.inputs if spec.name in fields)
    if names[:1] != (problem.inputs[0].name,):
        expected = ", ".join(spec.name for spec in problem.inputs)
        message = f"{path}: expected arrays named {expected}, got {sorted(fields)}"
        raise InvalidField("INPUT", "missing", message)
    batches = {name: fields[name][None] if fields[name].ndim == 2 else fields[name] for name in names}
    first = batches[names[0]]
    for name, batch in batches.items():
        if batch.ndim != 3 or batch.shape != first.shape or batch.size == 0 or batch.dtype.kind not in "fiu":
            message = f"numbers (ny, nx) or (batch, ny, nx), all of one shape, got {name}"
            raise InvalidField("INPUT", "rank", f"{path}: expected {message}: {batch.dtype} {batch.shape}")
    count, ny, nx = first.shape

    def read(start: int, stop: int) -> dict[str, NDArray[Any]]:
        return {name: np.array(batch[start:stop]) for name, batch in batches.items()}

    keys = tuple(f"{sample:04d}" for sample in range(count))
    return StateFile(names, keys, (ny, nx), np.result_type(*batches.values()), read)


def _from_trajectories(path: Path, problem: EvolutionProblem, frame: int, file: Any) -> StateFile:
    layout = LAYOUTS[problem.name]
    keys = tuple(sorted((key for key in file if key.isdigit()), key=int))
    if not keys:
        message = f"{path}: expected trajectories in groups 0000, 0001, ..., got {sorted(file)[:4]}"
        raise InvalidField("INPUT", "missing", message)
    present = {name: fields for name, fields in layout.datasets.items() if name in file[keys[0]]}
    if frame and len(present) < len(layout.datasets):
        message = f"{path}: frame {frame} has no {' and no '.join(set(layout.datasets) - set(present))}"
        raise InvalidField("INPUT", "missing", f"{message}; start from frame 0, which is at rest")
    grid = _check_coordinates(path, problem, frame, file[keys[0]])
    for key in keys:
        for name, fields in present.items():
            _check_trajectory(path, layout, file[key].get(name), f"{key}/{name}", (len(fields), *grid), frame)

    def read(start: int, stop: int) -> dict[str, NDArray[Any]]:
        states: dict[str, NDArray[Any]] = {}
        for name, fields in present.items():
            stored = np.stack([file[key][name][frame] for key in keys[start:stop]])
            channels = stored.transpose(layout.back)
            states |= {field: np.ascontiguousarray(channels[:, at]) for at, field in enumerate(fields)}
        return states

    names = tuple(field for fields in present.values() for field in fields)
    return StateFile(names, keys, grid, file[keys[0]]["data"].dtype, read)


def _check_trajectory(
    path: Path, layout: Layout, data: Any, name: str, shape: tuple[int, int, int], frame: int
) -> None:
    stored = tuple((0, *shape)[axis] for axis in layout.axes[1:])
    if not isinstance(data, h5py.Dataset) or data.ndim != 4 or data.shape[1:] != stored:
        found = data.shape if isinstance(data, h5py.Dataset) else "nothing"
        raise InvalidField("INPUT", "shape", f"{path}: {name}: expected (t, *{stored}), got {found}")
    if data.dtype.kind not in "fiu":
        raise InvalidField("INPUT", "dtype", f"{path}: {name}: expected numbers, got {data.dtype}")
    if frame >= len(data):
        raise InvalidField("INPUT", "frame", f"{path}: {name} has frames 0 to {len(data) - 1}, got {frame}")


def _check_coordinates(path: Path, problem: EvolutionProblem, frame: int, group: Any) -> tuple[int, int]:
    """The grid (ny, nx); coordinates and times must be those on which the problem is posed."""
    found = {axis: group.get(f"grid/{axis}") for axis in "yxt"}
    for axis, values in found.items():
        if not isinstance(values, h5py.Dataset) or values.ndim != 1 or values.dtype.kind not in "fiu":
            raise InvalidField("INPUT", "missing", f"{path}: expected coordinates grid/{axis}")
    y, x, t = (np.asarray(found[axis][()], dtype=np.float64) for axis in "yxt")
    grid = Grid((len(y), len(x)), problem.grid.extent, problem.grid.origin)
    for axis, values, centers, spacing in zip("yx", (y, x), grid.coordinates(), grid.spacing, strict=True):
        if np.abs(values - centers).max() > NEAR * spacing:
            message = (
                f"{path}: expected grid/{axis} to be cell centers from {centers[0]:g} to {centers[-1]:g} m"
            )
            raise InvalidField("INPUT", "coordinates", f"{message}, got {values[0]:g} to {values[-1]:g}")
    interval = problem.frame_interval
    if frame < len(t) and abs(t[frame] - frame * interval) > NEAR * interval:
        message = f"{path}: expected a frame every {interval:g} s, got {t[frame]:g} s at frame {frame}"
        raise InvalidField("INPUT", "coordinates", message)
    return grid.shape


def write_trajectories(
    path: Path,
    problem: EvolutionProblem,
    samples: Iterator[tuple[str, NDArray[Any]]],
    grid: Grid,
    times: NDArray[np.float64],
    notes: Mapping[str, Any],
) -> None:
    """Write trajectories in PDEBench's layout.

    Args:
        path: of the new file.
        problem: what they solve.
        samples: key and fields (time, channel, y, x) of each.
        grid: of the fields.
        times: of the frames [s].
        notes: attributes of the file.
    """
    layout = LAYOUTS[problem.name]
    y, x = grid.coordinates()
    with h5py.File(path, "w") as file:
        file.attrs.update({"problem": problem.name, **notes})
        for key, fields in samples:
            group = file.create_group(key)
            for axis, values in (("x", x), ("y", y), ("t", times)):
                group[f"grid/{axis}"] = values.astype(np.float32)
            first = 0
            for name, members in layout.datasets.items():
                part = fields[:, first : first + len(members)]
                first += len(members)
                group[name] = part.transpose(layout.axes)
