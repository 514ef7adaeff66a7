"""What a data file holds, in words."""

from pathlib import Path

from training.dataset import Attributes, read_dataset
from training.trajectories import is_trajectories, open_trajectories

# told in other words, or too long
_UNTOLD = {"problem", "beta", "recipe", "first_index", "frame_interval"}


def describe(path: Path) -> dict[str, str]:
    """Property -> value.

    Raises:
        InvalidDataset: the file cannot be read.
    """
    return _trajectories(path) if is_trajectories(path) else _steady(path)


def _trajectories(path: Path) -> dict[str, str]:
    with open_trajectories(path) as data:
        return {
            "problem": data.problem,
            "trajectories": f"{len(data)} ({data.keys[0]} to {data.keys[-1]})",
            "channels": ", ".join(data.names),
            "frames": f"{len(data.times)}, from {data.times[0]:g} to {data.times[-1]:g} s",
            **_domain(data.grid, data.extent, data.origin),
            **_end(path, data.attributes),
        }


def _steady(path: Path) -> dict[str, str]:
    data = read_dataset(path)
    return {
        "problem": "darcy",
        "samples": str(len(data)),
        "channels": "permeability, pressure",
        "source": f"{data.source:g}",
        **_domain(data.grid, data.extent, (0.0, 0.0)),
        **_end(path, data.attributes),
    }


def _domain(
    grid: tuple[int, int], extent: tuple[float, float], origin: tuple[float, float]
) -> dict[str, str]:
    (ly, lx), (y, x) = extent, origin
    return {
        "grid": f"{grid[0]} x {grid[1]} cells (y, x)",
        "domain": f"y in ({y:g}, {y + ly:g}) m, x in ({x:g}, {x + lx:g}) m",
    }


def _end(path: Path, attributes: Attributes) -> dict[str, str]:
    told = {name: str(value) for name, value in attributes.items() if name not in _UNTOLD}
    return {**told, "size": f"{path.stat().st_size / 1e6:.1f} MB"}
