"""The part of ``mno bench trust`` that is about rollouts: coverage at each horizon, on fresh trajectories.

Horizons are counted one by one, since each has a quantile of its own; the errors of one trajectory at several
horizons are not independent, so that the horizons of a table are not either.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.coverage import COVERAGES, FRESH_SEED, Covered, covered
from model_store import Calibration, LoadedVersion
from operators import EvolutionSurrogate
from training.config import parse_run
from training.forecast import SurrogateForecast
from training.generate import DatasetFile, generate
from training.progress import silent
from training.splits import split_files, worker_count
from training.trajectories import open_trajectories
from training.trajectory_evaluation import BATCH_SIZE, evaluate_forecast, window_of
from training.trajectory_metrics import headline


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


def fresh_errors(version: LoadedVersion, files: Sequence[DatasetFile]) -> NDArray[np.float64]:
    """Errors [horizon sample] of rollouts of the trajectories, which are generated if they are missing."""
    surrogate, card = version.surrogate, version.card
    assert isinstance(surrogate, EvolutionSurrogate)
    generate(list(files), worker_count(parse_run(card.run)), silent)
    found = []
    for file in files:
        with open_trajectories(file.path) as data:
            forecast = SurrogateForecast(surrogate.eval(), data.extent)
            rolled = evaluate_forecast(forecast, data, window_of(data, card.first_frame, None), BATCH_SIZE)
            found.append(rolled.curves[headline(card.problem)].T)
    frames = min(len(errors) for errors in found)
    return np.concatenate([errors[:frames] for errors in found], axis=1)


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
