"""``mno bench trust``: whether a version's estimates hold, on samples that nothing has seen.

In distribution: how many of fresh samples stay within the calibrated quantile, per horizon, beside the
interval that 99 in 100 draws of a binomial of the nominal probability lie in. The calibration sample is a
draw too, so that a small one may miss the interval by its own chance: beside it stands the interval with
that counted in, of the beta-binomial (Vovk 2012, arXiv 1209.2673, proposition 2a). Out of distribution:
what share of the answers that are worse than twice the in-distribution 95 % quantile is flagged. Versions
that step in time: see ``trust_rollouts`` and ``trust_families``.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import trust_families, trust_rollouts
from benchmarks.coverage import COVERAGES, FRESH_SEED, covered
from model_store import Calibration, LoadedVersion, open_catalog
from operators import EvolutionSurrogate, Surrogate
from operators.features import FeatureReader
from problems import STEADY_PROBLEMS, Grid, variation
from service.novelty import Novelty, steady_novelty
from service.versions.loading import served_version
from training.config import parse_run
from training.generate import generate
from training.progress import silent
from training.recipe import resolve_parameters
from training.splits import worker_count
from training.trajectory_metrics import headline

BATCH_SIZE = 16
# unit roundoff of the float32 that answers leave a service in
ROUNDING = 2.0**-24
DARCY = STEADY_PROBLEMS["darcy"]

Field = NDArray[np.float32]


class Answers(NamedTuple):
    """Errors of a version's answers [sample], and what it would say of their inputs."""

    errors: NDArray[np.float64]
    novelty: tuple[Novelty, ...]


def in_distribution(version: LoadedVersion, count: int) -> Iterator[Field]:
    """Fresh fields of the families that a version has learnt from, each as often as it was calibrated on."""
    run = parse_run(version.card.run)
    shares = {family.name: family.train for family in run.data.families if family.train}
    total, left = sum(shares.values()), count
    for place, family in enumerate(each for each in run.data.families if each.train):
        mine = left if place == len(shares) - 1 else round(count * shares[family.name] / total)
        left -= mine
        for index in range(mine):
            parameters = resolve_parameters(family.parameters, FRESH_SEED, index)
            yield fresh(family.family, parameters, index, version.card.grids[0])


def fresh(family: str, parameters: Mapping[str, float], index: int, grid: tuple[int, int]) -> Field:
    """A field that no run has drawn."""
    drawn = DARCY.sample(family, parameters, FRESH_SEED, index, Grid(grid))
    return drawn["permeability"].astype(np.float32)


def elsewhere(grid: tuple[int, int], count: int) -> dict[str, list[Field]]:
    """Families that nothing was learnt from."""
    random = np.random.default_rng(FRESH_SEED)
    rows, columns = np.indices(grid)
    known = [fresh("pdebench", {}, index, grid) for index in range(count)]

    def drawn(family: str, **parameters: float) -> list[Field]:
        return [fresh(family, parameters, index, grid) for index in range(count)]

    families = {
        "log-normal 1e4": drawn("log_normal", contrast=1e4, correlation_length=0.2),
        "log-normal 1e6": drawn("log_normal", contrast=1e6, correlation_length=0.2),
        "rough log-normal 100": drawn("log_normal", contrast=100.0, correlation_length=0.03),
        "binary 100": drawn("thresholded", contrast=100.0, correlation_length=0.2),
        "binary 1000": drawn("thresholded", contrast=1000.0, correlation_length=0.2),
        "rough binary 10": drawn("thresholded", contrast=10.0, correlation_length=0.03),
        "{0.01, 1}": [np.where(field > 0.5, 1.0, 0.01) for field in known],
        "inverted": [0.1 / field for field in known],
        "noise {0.1, 1}": [np.where(random.random(grid) < 0.5, 0.1, 1.0) for _ in range(count)],
        "channels": [
            np.where((rows + (5 * np.sin(columns / 9 + number)).astype(int)) % 16 < 4, 1.0, 0.1)
            for number in range(count)
        ],
        "checkers": [
            np.where((rows // 2 ** (number % 5) + columns // 2 ** (number % 5)) % 2 == 0, 1.0, 0.1)
            for number in range(count)
        ],
    }
    return {name: [field.astype(np.float32) for field in fields] for name, fields in families.items()}


@torch.inference_mode()
def ask(version: LoadedVersion, fields: list[Field]) -> Answers:
    """What a version answers to fields with a source of 1, and how wrong it is by the reference solver."""
    assert isinstance(version.surrogate, Surrogate)
    served, grid, scheme = served_version(version), Grid(version.card.grids[0]), version.card.scheme
    stacked = torch.from_numpy(np.stack(fields))[:, None]
    with FeatureReader(version.surrogate) as reader:
        parts = [version.surrogate(part, torch.ones(len(part))) for part in torch.split(stacked, BATCH_SIZE)]
        scores = _calibration(version).features.score(reader.take().numpy())
    errors, bounds = [], []
    for field, answer in zip(fields, torch.cat(parts)[:, 0].numpy(), strict=True):
        inputs = {"permeability": field.astype(np.float64), "source": np.array(1.0)}
        pressure = {"pressure": answer.astype(np.float64)}
        exact = DARCY.solve(inputs, grid, scheme).fields["pressure"]
        errors.append(np.linalg.norm(pressure["pressure"] - exact) / np.linalg.norm(exact))
        bounds.append(DARCY.error_bound(inputs, pressure, grid, scheme, ROUNDING))
    variations = [variation(field.astype(np.float64)) for field in fields]
    return Answers(np.array(errors), steady_novelty(served, variations, bounds, scores))


def _calibration(version: LoadedVersion) -> Calibration:
    if version.calibration is None:
        raise click.UsageError(f"{version.reference} has no calibration; see mno calibrate")
    return version.calibration


def flagged(answers: Answers, limit: float) -> tuple[int, int]:
    """How many answers are worse than ``limit``, and how many of those are flagged."""
    bad = answers.errors > limit
    marks = np.array([not each.in_distribution for each in answers.novelty])
    return int(bad.sum()), int((bad & marks).sum())


def _line(calibration: Calibration, errors: NDArray[np.float64], coverage: float) -> str:
    """What became of one nominal coverage."""
    quantile, count = calibration.quantiles("relative_l2", coverage)[0], len(errors)
    found = covered(errors, quantile, coverage, calibration.origin.samples)
    exact, both = (
        " to ".join(f"{end / count:.4f}" for end in ends) for ends in (found.binomial, found.with_calibration)
    )
    return (
        f"  relative L2 error <= {quantile:.3g}: {found.covered / count:.4f} of them, nominal {coverage}; "
        f"99 % interval {exact}, with the calibration's chance {both}"
    )


def _of_rollouts(version: LoadedVersion, samples: int, others: int, data: Path) -> Iterator[str]:
    """Coverage of fresh trajectories, and what is flagged of them and of others."""
    calibration, run = _calibration(version), parse_run(version.card.run)
    fresh_ones = trust_rollouts.fresh_files(version, samples, data)
    foreign = trust_families.other_files(run, others, data)
    generate([*fresh_ones, *foreign.values()], worker_count(run), silent)
    known = trust_rollouts.roll(version, calibration, fresh_ones)
    yield (
        f"{version.reference}: calibrated on {calibration.origin.samples}, "
        f"{known.errors.shape[1]} fresh trajectories"
    )
    yield from trust_rollouts.lines(version, calibration, known.errors)
    rolled = {name: trust_rollouts.roll(version, calibration, [file]) for name, file in foreign.items()}
    limits = trust_families.limits(calibration, headline(version.card.problem))
    yield from trust_families.lines(known, rolled, limits)


@click.command("trust")
@click.option("--model", default="darcy@production", show_default=True, help="A calibrated version.")
@click.option("--store", help="A model store over the built-in models.")
@click.option("--samples", default=2000, show_default=True, help="Fresh samples in distribution.")
@click.option(
    "--others",
    default=20,
    show_default=True,
    type=click.IntRange(min=1),
    help="Fields or trajectories of each other family.",
)
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default="data/trust",
    show_default=True,
    help="Where fresh trajectories are kept (up to 20 MB each), so that generating them goes on after an "
    "interruption; another number of samples needs another folder.",
)
def bench_trust(model: str, store: str | None, samples: int, others: int, data: Path) -> None:
    """Measure coverage in distribution, and what is flagged out of it."""
    catalog = open_catalog(store)
    reference = catalog.resolve(model)
    version = catalog.load(reference.name, reference.version)
    calibration = _calibration(version)
    if isinstance(version.surrogate, EvolutionSurrogate):
        for line in _of_rollouts(version, samples, others, data / str(reference)):
            click.echo(line)
        return
    found = ask(version, list(in_distribution(version, samples)))
    click.echo(f"{reference}: calibrated on {calibration.origin.samples}, {samples} fresh fields")
    for coverage in COVERAGES:
        click.echo(_line(calibration, found.errors, coverage))
    alarms = np.mean([not each.in_distribution for each in found.novelty])
    rare = np.mean([(each.score or 0.0) >= 0.99 for each in found.novelty])
    click.echo(f"  flagged {alarms:.4f}; features at or beyond 99 %: {rare:.4f}")
    limit = 2 * calibration.quantiles("relative_l2", 0.95)[0]
    total = [0, 0]
    for name, fields in elsewhere(version.card.grids[0], others).items():
        answers = ask(version, fields)
        bad, caught = flagged(answers, limit)
        total = [total[0] + bad, total[1] + caught]
        marks = np.mean([not each.in_distribution for each in answers.novelty])
        rare = np.mean([(each.score or 0.0) >= 0.99 for each in answers.novelty])
        click.echo(
            f"  {name:22} median error {np.median(answers.errors):.2g}, {bad} of {others} beyond "
            f"{limit:.2g}, of which {caught} flagged; flagged {marks:.2f}, by features alone {rare:.2f}"
        )
    click.echo(f"  all: {total[1]} of {total[0]} answers beyond {limit:.2g} are flagged")
