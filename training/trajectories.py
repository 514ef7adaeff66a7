"""Trajectories in PDEBench's HDF5 layout: a group ``0000``, ``0001``, ... for each, with its own coordinates.

    NNNN/data           shallow water [t x y 1], the depth; diffusion-reaction [t y x 2], u and v
    NNNN/grid/x, y, t   cell centres [m] and times [s]
    NNNN                attribute ``config``, YAML text

The two order their axes differently; this project has [time channel y x] always, and this file is the only
place that transposes. What this project adds travels in root attributes and, for shallow water, in
``NNNN/momentum`` [t x y 2], so that other readers find what they expect; foreign files may lack both.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self, final

import h5py
import numpy as np
from jaxtyping import Float32, Float64
from numpy.typing import NDArray

from problems import EVOLUTION_PROBLEMS, Grid
from training.dataset import Attributes, InvalidDataset

ALL_FRAMES = slice(None)


@dataclass(frozen=True)
class Layout:
    """How PDEBench stores one problem.

    Attributes:
        config_name: the problem's name in ``config``.
        datasets: dataset of a group -> its channels; the first one is PDEBench's.
        axes: axes of a stored array that become time, channel, y and x.
        compression: HDF5 filter.
        constants: coefficients of the equation, for ``config``.
    """

    config_name: str
    datasets: Mapping[str, tuple[str, ...]]
    axes: tuple[int, int, int, int] = (0, 3, 1, 2)
    compression: str | None = None
    constants: Mapping[str, float] = field(default_factory=dict)

    @property
    def channels(self) -> tuple[str, ...]:
        """All channels, PDEBench's first."""
        return tuple(name for names in self.datasets.values() for name in names)

    @property
    def stored_axes(self) -> tuple[int, ...]:
        """Axes of [time channel y x] in the order of the file."""
        return tuple(int(axis) for axis in np.argsort(self.axes))


# PDEBench's; other problems are stored alike, with all their channels in ``data`` [t y x c]
LAYOUTS: Mapping[str, Layout] = {
    "shallow_water": Layout(
        "2d_rdb", {"data": ("h",), "momentum": ("hu", "hv")}, (0, 3, 2, 1), constants={"gravity": 1.0}
    ),
    "diffusion_reaction": Layout(
        "2d_diff-react",
        {"data": ("u", "v")},
        compression="lzf",
        constants={"Du": 1e-3, "Dv": 5e-3, "k": 5e-3},
    ),
}


def layout_of(problem: str) -> Layout:
    """How an evolution problem is stored."""
    if problem in LAYOUTS:
        return LAYOUTS[problem]
    return Layout(problem, {"data": tuple(spec.name for spec in EVOLUTION_PROBLEMS[problem].outputs)})


@final
class Trajectories:
    """The trajectories of an open file, read from the disk when they are asked for.

    Attributes:
        path: of the file.
        problem: key in ``PROBLEMS``.
        names: the channels that the file holds.
        keys: names of the groups, in the order of the indices; PDEBench's are its seeds.
        grid: cells (ny, nx).
        extent: side lengths (Ly, Lx) [m].
        origin: the corner (y, x) with the smallest coordinates [m].
        times: of the frames, that of the initial state first [s].
        attributes: of the root.
    """

    def __init__(self, file: h5py.File, path: Path) -> None:
        self.path = path
        self._file = file
        self.keys = _keys(file, path)
        first = self.group(0)
        self.problem = _problem(file, first, path)
        self._layout = layout_of(self.problem)
        self._datasets = {name: of for name, of in self._layout.datasets.items() if name in first}
        self.names = tuple(channel for channels in self._datasets.values() for channel in channels)
        y, x, self.times = (self.coordinate(0, name) for name in "yxt")
        self.grid = len(y), len(x)
        (y0, ly), (x0, lx) = (_side(centres, path) for centres in (y, x))
        self.origin, self.extent = (y0, x0), (ly, lx)
        self.attributes: Attributes = {
            name: _plain(value) for name, value in file.attrs.items() if np.ndim(value) == 0
        }
        self._require_shapes(0)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def frames(self) -> int:
        """Of a trajectory, the initial state included."""
        return len(self.times)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read(self, index: int, frames: slice = ALL_FRAMES) -> Float32[np.ndarray, "time channel y x"]:
        """Frames of one trajectory.

        Raises:
            InvalidDataset: the trajectory is damaged, or is not like the first one.
        """
        self._require_shapes(index)
        group, axes = self.group(index), self._layout.axes
        with _readable(self.path, self.keys[index]):
            parts = [
                group[name][_forward(frames, len(self.times))].transpose(axes) for name in self._datasets
            ]
        return np.ascontiguousarray(np.concatenate(parts, axis=1), dtype=np.float32)

    def load(self, frames: slice = ALL_FRAMES) -> Float32[np.ndarray, "sample time channel y x"]:
        """Frames of all trajectories, in memory."""
        count = len(self.times[frames])
        loaded = np.empty((len(self), count, len(self.names), *self.grid), np.float32)
        for index in range(len(self)):
            loaded[index] = self.read(index, frames)
        return loaded

    def group(self, index: int) -> h5py.Group:
        """The group of one trajectory."""
        with _readable(self.path, self.keys[index]):
            group = self._file[self.keys[index]]
        if not isinstance(group, h5py.Group):
            raise InvalidDataset(f"{self.path}: {self.keys[index]}: expected a group, found a data set")
        return group

    def coordinate(self, index: int, name: str) -> Float64[np.ndarray, " points"]:
        """Cell centres ``y`` or ``x`` [m] of one trajectory, or its times ``t`` [s]."""
        values = _member(self.group(index), f"grid/{name}", self.path)
        if values.ndim != 1 or len(values) == 0:
            raise InvalidDataset(f"{self.path}: {values.name}: expected one axis, got {values.shape}")
        with _readable(self.path, self.keys[index]):
            # by way of the shortest decimal: 0.3, not the 0.30000001 of float32
            return np.asarray(values[()].astype(np.str_).astype(np.float64))

    def require_float32(self, index: int) -> None:
        """Raises ``InvalidDataset`` where other files than PDEBench's have other numbers."""
        for name in self._datasets:
            found = _member(self.group(index), name, self.path).dtype
            if found != np.float32:
                where = f"{self.path}: {self.keys[index]}/{name}"
                raise InvalidDataset(f"{where}: expected float32, got {found}")

    def _require_shapes(self, index: int) -> None:
        for name, channels in self._datasets.items():
            found = _member(self.group(index), name, self.path).shape
            ours = len(self.times), len(channels), *self.grid
            expected = tuple(ours[axis] for axis in self._layout.stored_axes)
            if found != expected:
                raise InvalidDataset(
                    f"{self.path}: {self.keys[index]}/{name}: expected {expected} from the coordinates of "
                    f"{self.keys[0]}, got {found}"
                )


def is_trajectories(path: Path) -> bool:
    """Whether the file has groups named by numbers, as trajectories do."""
    with _readable(path, "HDF5"), h5py.File(path, "r") as file:
        return any(name.isdigit() for name in file)


def open_trajectories(path: Path) -> Trajectories:
    """Open a file; close it, or use it in a ``with`` statement.

    Raises:
        InvalidDataset: not HDF5, or not in PDEBench's layout.
    """
    if not path.is_file():
        raise InvalidDataset(f"no data set at {path}")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise InvalidDataset(f"{path}: expected HDF5: {error}") from error
    try:
        return Trajectories(file, path)
    except BaseException:
        file.close()
        raise


def write_trajectories(
    path: Path,
    samples: Iterable[Float32[np.ndarray, "time channel y x"]],
    problem: str,
    grid: Grid,
    times: Float64[np.ndarray, " time"],
    attributes: Attributes,
) -> None:
    """Write trajectories as they come; only one is in memory.

    Args:
        path: of the new file.
        samples: with all channels of the problem, or with PDEBench's alone.
        problem: key in ``PROBLEMS``.
        grid: of the samples.
        times: of the frames, that of the initial state first [s].
        attributes: of the root, beside ``problem``.
    """
    layout = layout_of(problem)
    config = _config(layout, grid, times)
    y, x = grid.coordinates()
    # one representation for one content: no time stamps
    with h5py.File(path, "w", track_order=False) as file:
        file.attrs.update({"problem": problem, **attributes})
        for index, sample in enumerate(samples):
            group = file.create_group(f"{index:04d}")
            group.attrs["config"] = config
            for name, values in (("x", x), ("y", y), ("t", times)):
                _create(group, f"grid/{name}", values, values.shape, layout)
            _write_sample(group, sample, layout, (len(times), *grid.shape))


def _write_sample(
    group: h5py.Group, sample: NDArray[np.float32], layout: Layout, shape: tuple[int, int, int]
) -> None:
    first = 0
    for name, channels in layout.datasets.items():
        part = sample[:, first : first + len(channels)]
        first += len(channels)
        if part.shape[1] == 0:
            break
        if part.shape != (shape[0], len(channels), *shape[1:]):
            raise ValueError(
                f"expected {shape[0]} frames of {', '.join(channels)} on {shape[1:]}, got {part.shape}"
            )
        stored = part.transpose(layout.stored_axes)
        _create(group, name, stored, (1, *stored.shape[1:]), layout)


def _create(
    group: h5py.Group, name: str, values: NDArray[np.floating], chunks: tuple[int, ...], layout: Layout
) -> None:
    chunked = {"chunks": chunks, "compression": layout.compression} if layout.compression else {}
    group.create_dataset(name, data=values, dtype="f4", track_times=False, **chunked)


def _config(layout: Layout, grid: Grid, times: NDArray[np.float64]) -> str:
    """The YAML text that PDEBench's generators attach, as far as it belongs to this file."""
    (ny, nx), (ly, lx), (y, x) = grid.shape, grid.extent, grid.origin
    sides = {"x_left": x, "x_right": x + lx, "y_bottom": y, "y_top": y + ly}
    sim = {**layout.constants, **sides, "xdim": nx, "ydim": ny, "t": float(times[-1]), "tdim": len(times)}
    lines = [f"  {name}: {sim[name]}" for name in sorted(sim)]
    return "\n".join([f"name: {layout.config_name}", "sim:", *lines, ""])


def _keys(file: h5py.File, path: Path) -> tuple[str, ...]:
    keys = sorted((name for name in file if name.isdigit()), key=int)
    if not keys:
        raise InvalidDataset(
            f"{path}: expected PDEBench's layout of trajectories, groups named 0000, 0001, ..., "
            f"found {', '.join(list(file)[:4]) or 'nothing'}"
        )
    return tuple(keys)


def _problem(file: h5py.File, group: h5py.Group, path: Path) -> str:
    """The problem that the file names, or the one that stores as many channels."""
    data = _member(group, "data", path)
    declared = str(file.attrs["problem"]) if "problem" in file.attrs else None
    if declared is not None:
        if declared in LAYOUTS or declared in EVOLUTION_PROBLEMS:
            return declared
        raise InvalidDataset(f"{path}: unknown problem {declared}, expected one of {', '.join(LAYOUTS)}")
    if data.ndim == 4:
        for problem, layout in LAYOUTS.items():
            if data.shape[-1] == len(layout.datasets["data"]):
                return problem
    raise InvalidDataset(
        f"{path}: {data.name}: expected [t x y 1], shallow water, or [t y x 2], diffusion-reaction, "
        f"got {data.shape}"
    )


def _member(group: h5py.Group, name: str, path: Path) -> h5py.Dataset:
    with _readable(path, group.name):
        found = group.get(name)
    if not isinstance(found, h5py.Dataset):
        raise InvalidDataset(f"{path}: {group.name.strip('/')} has no data set {name}")
    if found.dtype.kind != "f":
        raise InvalidDataset(f"{path}: {found.name}: expected floating-point numbers, got {found.dtype}")
    return found


@contextmanager
def _readable(path: Path, what: str) -> Iterator[None]:
    """Say which file and group it was that HDF5 could not read."""
    try:
        yield
    except (OSError, KeyError) as error:
        raise InvalidDataset(f"{path}: {what} cannot be read: {error}") from error


def _side(centres: NDArray[np.float64], path: Path) -> tuple[float, float]:
    """Smallest coordinate and length of a side, from its cell centres in float32."""
    if len(centres) < 2 or not centres[-1] > centres[0]:
        raise InvalidDataset(f"{path}: expected at least two increasing cell centres, got {centres}")
    spacing = (centres[-1] - centres[0]) / (len(centres) - 1)
    # six digits: the seventh is rounding
    return float(f"{centres[0] - spacing / 2:.6g}"), float(f"{len(centres) * spacing:.6g}")


def _forward(frames: slice, count: int) -> slice:
    """The same frames in the form that HDF5 takes."""
    start, stop, step = frames.indices(count)
    if step < 0:
        raise ValueError(f"frames are read forwards, got {frames}")
    return slice(start, max(start, stop), step)


def _plain(value: object) -> str | int | float:
    return value.item() if isinstance(value, np.generic) else str(value)
