"""The check of a file of trajectories; one trajectory is in memory at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

from problems import EVOLUTION_PROBLEMS, FieldSpec, Grid, InvalidField
from training.balances import BALANCES
from training.check_origin import check_duplicates, check_recipe, digest, probes
from training.dataset import InvalidDataset
from training.findings import Finding, Report, judged
from training.progress import Progress
from training.trajectories import Trajectories, open_trajectories
from training.trajectory_recipe import TrajectoryRecipe

# of float32 coordinates, in units of the spacing
_COORDINATE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class _Looked:
    """What one trajectory showed.

    Attributes:
        faults: subject -> what is wrong.
        inputs: channel -> digest of the initial state.
        low: smallest value of every channel.
        high: largest value of every channel.
        defect: of the problem's balance, None where it allows no judgement.
    """

    faults: Mapping[str, str]
    inputs: Mapping[str, bytes]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    defect: float | None


def check_trajectories(path: Path, progress: Progress) -> Report:
    """Look at every trajectory.

    Raises:
        InvalidDataset: the file, or its first trajectory, cannot be read.
    """
    with open_trajectories(path) as data:
        looked: dict[str, _Looked] = {}
        broken: dict[str, str] = {}
        with progress(None, len(data), f"check {path.name}") as bar:
            for index, key in enumerate(data.keys):
                try:
                    looked[key] = _look(data, index)
                except InvalidDataset as error:
                    broken[key] = str(error)
                bar.update(1)
        inputs = {name: [one.inputs[name] for one in looked.values()] for name in data.names}
        structure = judged("structure", broken, len(data), f"float32, {', '.join(data.names)}")
        others = _findings(data, looked, inputs) if looked else []
        return Report(path, _title(data), (structure, *others), inputs)


def specs(data: Trajectories) -> list[FieldSpec]:
    """Of the channels that the file holds."""
    return [spec for spec in EVOLUTION_PROBLEMS[data.problem].outputs if spec.name in data.names]


def _findings(
    data: Trajectories, looked: Mapping[str, _Looked], inputs: Mapping[str, Sequence[bytes]]
) -> list[Finding]:
    return [
        _coordinates(data, looked),
        _times(data, looked),
        _values(data, looked),
        check_duplicates(inputs),
        *_balance(data, looked),
        _recipe(data, looked),
    ]


def _look(data: Trajectories, index: int) -> _Looked:
    data.require_float32(index)
    frames = data.read(index)
    balance, walls = BALANCES.get(data.problem), _walls(data)
    return _Looked(
        faults=_faults(data, index, frames),
        inputs={name: digest(field) for name, field in zip(data.names, frames[0], strict=True)},
        low=frames.min(axis=(0, 2, 3)),
        high=frames.max(axis=(0, 2, 3)),
        defect=balance.defect(frames, data.times, walls) if balance and np.isfinite(frames).all() else None,
    )


def _faults(data: Trajectories, index: int, frames: NDArray[np.float32]) -> dict[str, str]:
    faults = {}
    y, x = Grid(data.grid, data.extent, data.origin).coordinates()
    for subject, name, expected in (
        ("coordinates", "y", y),
        ("coordinates", "x", x),
        ("times", "t", data.times),
    ):
        if text := _unlike(data.coordinate(index, name), expected):
            faults[subject] = f"{name} {text}"
    for channel, spec in enumerate(specs(data)):
        try:
            spec.validate_batch(frames[:, channel])
        except InvalidField as error:
            faults.setdefault("values", f"{error} (time, y, x)")
    return faults


def _unlike(found: Float64[np.ndarray, " n"], expected: Float64[np.ndarray, " n"]) -> str | None:
    if found.shape != expected.shape:
        return f"has {len(found)} values, expected {len(expected)}"
    step = (expected[-1] - expected[0]) / max(len(expected) - 1, 1)
    off = np.abs(found - expected)
    if np.all(off <= _COORDINATE_TOLERANCE * step):
        return None
    worst = int(np.argmax(np.nan_to_num(off, nan=np.inf)))
    return f"is {found[worst]:g} at {worst}, expected {expected[worst]:g}"


def _coordinates(data: Trajectories, looked: Mapping[str, _Looked]) -> Finding:
    (ny, nx), (ly, lx), (y, x) = data.grid, data.extent, data.origin
    text = f"{ny} x {nx} cell centres, y in ({y:g}, {y + ly:g}) m, x in ({x:g}, {x + lx:g}) m"
    return judged("coordinates", _of("coordinates", looked), len(data), text)


def _times(data: Trajectories, looked: Mapping[str, _Looked]) -> Finding:
    steps = np.diff(data.times)
    if len(steps) == 0:
        return Finding("times", "note", "the initial state alone")
    interval = float(steps.mean())
    if not np.all(np.abs(steps - interval) <= _COORDINATE_TOLERANCE * interval):
        return Finding("times", "fault", f"not uniform: from {steps.min():g} to {steps.max():g} s apart")
    text = f"{len(data.times)} frames, {interval:g} s apart, from {data.times[0]:g} to {data.times[-1]:g} s"
    return judged("times", _of("times", looked), len(data), text)


def _values(data: Trajectories, looked: Mapping[str, _Looked]) -> Finding:
    low = np.min([one.low for one in looked.values()], axis=0)
    high = np.max([one.high for one in looked.values()], axis=0)
    ranges = [f"{spec.name} {a:.4g} to {b:.4g}" for spec, a, b in zip(specs(data), low, high, strict=True)]
    return judged("values", _of("values", looked), len(data), ", ".join(ranges))


def _balance(data: Trajectories, looked: Mapping[str, _Looked]) -> list[Finding]:
    balance = BALANCES.get(data.problem)
    if balance is None:
        return []
    defects = {key: one.defect for key, one in looked.items() if one.defect is not None}
    if not defects:
        return [Finding(balance.name, "note", "not judged: the frames or the walls do not allow it")]
    text = f"defect at most {max(defects.values()):.1e} (limit {balance.limit:.0e}), {len(defects)} judged"
    faults = {
        key: f"defect {defect:.1e}, limit {balance.limit:.0e}"
        for key, defect in defects.items()
        if not defect <= balance.limit
    }
    return [judged(balance.name, faults, len(data), text)]


def _recipe(data: Trajectories, looked: Mapping[str, _Looked]) -> Finding:
    held = {"count": len(data), "grid": data.grid, "frames": len(data.times) - 1, "problem": data.problem}
    inputs = {
        index: data.read(index, slice(0, 1))[0] for index in probes(len(data)) if data.keys[index] in looked
    }
    return check_recipe(TrajectoryRecipe, data.attributes, held, inputs)


def _walls(data: Trajectories) -> str:
    """PDEBench's, where the file does not say."""
    return str(data.attributes.get("walls", EVOLUTION_PROBLEMS[data.problem].walls[0]))


def _of(subject: str, looked: Mapping[str, _Looked]) -> dict[str, str]:
    return {key: one.faults[subject] for key, one in looked.items() if subject in one.faults}


def _title(data: Trajectories) -> str:
    frames, (ny, nx) = len(data.times), data.grid
    return f"{data.problem}, {len(data)} trajectories of {frames} frames, {len(data.names)} x {ny} x {nx}"
