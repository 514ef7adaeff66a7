"""The part of ``mno bench trust`` that is about rollouts: coverage at each horizon, on fresh trajectories.

Horizons are counted one by one, since each has a quantile of its own; the errors of one trajectory at several
horizons are not independent, so that the horizons of a table are not either.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.coverage import COVERAGES, FRESH_SEED, Covered, covered
from model_store import Calibration, LoadedVersion
from operators import EvolutionSurrogate
from operators.features import FeatureReader
from problems import EVOLUTION_PROBLEMS, Grid
from service.novelty import Novelty, state_novelty
from training.config import parse_run
from training.generate import DatasetFile
from training.splits import split_files
from training.trajectories import Trajectories, open_trajectories
from training.trajectory_calibration import listen
from training.trajectory_metrics import headline


class Rollouts(NamedTuple):
    """Errors of rollouts [horizon sample], and what a service would say of the states they begin with.

    Attributes:
        errors: by the metric that speaks for the problem.
        novelty: of each sample.
        scores: ``ood_score`` of the frames of each block [block sample].
    """

    errors: NDArray[np.float64]
    novelty: tuple[Novelty, ...]
    scores: NDArray[np.float64]


def fresh_files(version: LoadedVersion, count: int, directory: Path) -> list[DatasetFile]:
    """Recipes of trajectories that no run has drawn, of the families that the version was calibrated on.

    Raises:
        InvalidRun: the card's run cannot be read.
    """
    run = parse_run(version.card.run)
    families = [family for family in run.data.families if family.train]
    shares = np.diff(np.linspace(0, count, len(families) + 1).round().astype(int))
    asked = tuple(
        family.model_copy(update={"calibration": int(share)})
        for family, share in zip(families, shares, strict=True)
    )
    data = run.data.model_copy(update={"seed": FRESH_SEED, "directory": directory, "families": asked})
    return list(split_files(run.model_copy(update={"data": data}), "calibration").values())


def roll(version: LoadedVersion, calibration: Calibration, files: Sequence[DatasetFile]) -> Rollouts:
    """Rollouts of the trajectories, which lie there."""
    surrogate, card = version.surrogate, version.card
    assert isinstance(surrogate, EvolutionSurrogate)
    parts = []
    with FeatureReader(surrogate.eval()) as reader:
        for file in files:
            with open_trajectories(file.path) as data:
                heard = listen(surrogate, reader, data, card.first_frame)
                scores = [calibration.features.score(block) for block in heard.features]
                novelty = state_novelty(card.training_hull, _features(version, data), scores[0])
            parts.append(Rollouts(heard.errors.T, novelty, np.array(scores)))
    return joined(parts)


def joined(parts: Sequence[Rollouts]) -> Rollouts:
    """Several as one, at the horizons that all of them have."""
    frames, blocks = (min(len(part[place]) for part in parts) for place in (0, 2))
    return Rollouts(
        np.concatenate([part.errors[:frames] for part in parts], axis=1),
        tuple(each for part in parts for each in part.novelty),
        np.concatenate([part.scores[:blocks] for part in parts], axis=1),
    )


def _features(version: LoadedVersion, data: Trajectories) -> Iterator[Mapping[str, float]]:
    """Of the states that rollouts begin with, as a service computes them from a request."""
    problem, first = EVOLUTION_PROBLEMS[version.card.problem], version.card.first_frame
    grid = Grid(data.grid, data.extent, data.origin)
    for index in range(len(data)):
        (state,) = data.read(index, slice(first, first + 1)).astype(np.float64)
        yield problem.features(dict(zip(data.names, state, strict=True)), grid)


def coverages(
    calibration: Calibration, metric: str, errors: NDArray[np.float64], coverage: float
) -> dict[int, Covered]:
    """Of each horizon, how many of the fresh errors [horizon sample] its quantile covers."""
    quantiles = calibration.quantiles(metric, coverage)
    return {
        horizon: covered(errors[number], quantiles[horizon], coverage, calibration.origin.samples)
        for number, horizon in enumerate(calibration.origin.horizons[: len(errors)])
        if horizon in quantiles
    }


def lines(version: LoadedVersion, calibration: Calibration, errors: NDArray[np.float64]) -> Iterator[str]:
    """What became of each nominal coverage."""
    metric, samples = headline(version.card.problem), errors.shape[1]
    for coverage in COVERAGES:
        found = coverages(calibration, metric, errors, coverage)
        if not found:
            yield f"  nominal {coverage}: too few calibration samples to promise it"
            continue
        shares = [one.covered / samples for one in found.values()]
        within = [one.with_calibration[0] <= one.covered <= one.with_calibration[1] for one in found.values()]
        some = [horizon for horizon in found if horizon in (1, 10, 50)] + [max(found)]
        at = ", ".join(
            f"{found[horizon].covered / samples:.3f} at {horizon}" for horizon in dict.fromkeys(some)
        )
        first = next(iter(found.values()))
        exact, both = (
            " to ".join(f"{end / samples:.3f}" for end in ends)
            for ends in (first.binomial, first.with_calibration)
        )
        yield (
            f"  {metric}, nominal {coverage}: {np.mean(shares):.3f} of them on average over {len(found)} "
            f"horizons; {at}; 99 % interval {exact}, with the calibration's chance {both}, in which "
            f"{np.mean(within):.3f} of the horizons lie"
        )
