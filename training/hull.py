"""What a card says of the training data: how many samples, from which recipe, and their hull.

A hull is the bounds ``<feature>_min`` and ``<feature>_max`` of some numbers over the training inputs; the
service compares the inputs of requests with them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from problems import EVOLUTION_PROBLEMS, EvolutionProblem, Grid, variation
from training.config import Run
from training.dataset import read_dataset
from training.splits import split_files
from training.trajectories import Trajectories, open_trajectories

# frames between two states that enter the hull
STRIDE = 10

Hull = dict[str, float]


@dataclass(frozen=True)
class Contents:
    """What a card says of one data set."""

    samples: int
    recipe: str
    hull: Hull


def training_contents(run: Run) -> dict[Path, Contents]:
    """Of every file that a run learns from; they are there."""
    paths = [file.path for file in split_files(run, "train").values()]
    if run.data.problem not in EVOLUTION_PROBLEMS:
        return {path: steady_contents(path) for path in paths}
    problem, first = EVOLUTION_PROBLEMS[run.data.problem], first_frame(run)
    return {path: trajectory_contents(path, problem, first) for path in paths}


def first_frame(run: Run) -> int:
    """The earliest frame that a rollout may begin with; 0 of a steady problem."""
    return 0 if run.sequence is None else run.sequence.first_frame


def steady_contents(path: Path) -> Contents:
    """Of a file of permeabilities; its hull has no lower bounds but that of the contrast."""
    dataset = read_dataset(path)
    found = hull_of(asdict(variation(field)) for field in dataset.permeability[:, 0])
    kept = {name: bound for name, bound in found.items() if name not in ("jump_min", "roughness_min")}
    return Contents(len(dataset), str(dataset.attributes.get("recipe_sha256", "unknown")), kept)


def trajectory_contents(path: Path, problem: EvolutionProblem, first_frame: int) -> Contents:
    """Of a file of trajectories, from the first frame on that a rollout may begin with."""
    with open_trajectories(path) as data:
        hull = hull_of(_features(data, problem, first_frame))
        return Contents(len(data), str(data.attributes.get("recipe_sha256", "unknown")), hull)


def _features(
    data: Trajectories, problem: EvolutionProblem, first_frame: int
) -> Iterable[Mapping[str, float]]:
    grid = Grid(data.grid, data.extent, data.origin)
    for index in range(len(data)):
        for state in data.read(index, slice(first_frame, None, STRIDE)).astype("float64"):
            yield problem.features(dict(zip(data.names, state, strict=True)), grid)


def hull_of(features: Iterable[Mapping[str, float]]) -> Hull:
    """The bounds of each feature."""
    return merge_hulls(
        {
            **{f"{name}_min": float(value) for name, value in one.items()},
            **{f"{name}_max": float(value) for name, value in one.items()},
        }
        for one in features
    )


def merge_hulls(hulls: Iterable[Mapping[str, float]]) -> Hull:
    """The hull of hulls."""
    merged: Hull = {}
    for hull in hulls:
        for name, bound in hull.items():
            wider = min if name.endswith("_min") else max
            merged[name] = wider(merged.get(name, bound), bound)
    return merged
