"""The story of a calibration: answer held-out samples, and store what was found with the version."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_store import (
    CALIBRATION,
    Calibration,
    Card,
    FeatureSpace,
    LoadedVersion,
    Origin,
    Reference,
    Store,
)
from model_store.weights import WEIGHTS
from operators import AnySurrogate, EvolutionSurrogate
from training.config import InvalidRun, Run
from training.dataset import read_dataset
from training.feature_space import fit
from training.files import exclusive
from training.generate import DatasetFile, generate
from training.hashes import hash_files
from training.hull import merge_hulls, training_contents
from training.progress import Progress
from training.provenance import provenance
from training.splits import split_files, worker_count
from training.steady_calibration import measure_steady
from training.trajectory_calibration import measure_rollouts


def make_calibration_data(run: Run, progress: Progress) -> None:
    """Generate what is missing of the data that a calibration looks at."""
    with exclusive(run.data.directory):
        generate([*split_files(run, "train").values(), *held_out_files(run)], worker_count(run), progress)


def held_out_files(run: Run) -> list[DatasetFile]:
    """Samples that nothing was learnt from: those set aside, else the test samples of what was learnt."""
    if aside := list(split_files(run, "calibration").values()):
        return aside
    learnt = {family.name for family in run.data.families if family.train}
    return [file for name, file in split_files(run, "test").items() if name in learnt]


def measure_calibration(run: Run, surrogate: AnySurrogate, weights_sha256: str) -> Calibration:
    """What the estimates of a version are made from.

    Args:
        run: names the data; they are there.
        surrogate: with the version's weights, in evaluation mode.
        weights_sha256: of the version's ``weights.safetensors``.
    """
    training = [file.path for file in split_files(run, "train").values()]
    files = held_out_files(run)
    held_out = [file.path for file in files]
    space, scores, first_horizon = _measured(run, surrogate, training, held_out)
    horizons, samples = next(iter(scores.values())).shape
    origin = Origin(
        weights_sha256=weights_sha256,
        scheme=run.data.scheme,
        samples=samples,
        horizons=tuple(range(first_horizon, first_horizon + horizons)),
        data_sha256=hash_files(held_out),
        recipes={file.path.name: file.recipe.canonical() for file in files},
        feature_layer=surrogate.operator.feature_layer,
        feature_samples=space[1],
        code_version=str(provenance()),
    )
    ordered = {name: np.sort(each.astype(np.float32), axis=1) for name, each in scores.items()}
    return Calibration(origin, ordered, space[0])


def _measured(
    run: Run, surrogate: AnySurrogate, training: Sequence[Path], held_out: Sequence[Path]
) -> tuple[tuple[FeatureSpace, int], dict[str, NDArray[np.float64]], int]:
    """The feature space and how many inputs it was fitted to, scores [horizon sample], the first horizon."""
    if isinstance(surrogate, EvolutionSurrogate):
        assert run.sequence is not None
        rollouts = measure_rollouts(surrogate, training, held_out, run.sequence.first_frame)
        space = fit(rollouts.training, rollouts.held_out)
        return (space, len(rollouts.training)), rollouts.scores, 1
    steady = measure_steady(
        surrogate,
        run.data.problem,
        run.data.scheme,
        [read_dataset(path) for path in training],
        [read_dataset(path) for path in held_out],
        symmetric=run.augmentation.d4,
    )
    space = fit(steady.training, steady.held_out)
    return (space, len(steady.training)), {name: each[None] for name, each in steady.scores.items()}, 0


def recalibrate(store: Store, version: LoadedVersion, run: Run) -> Reference:
    """Publish the weights of a version once more, with a calibration of their own.

    Its card says the ranges of the training data as before, and those of what was not looked at then.

    Raises:
        InvalidRun: it is not the run that the version comes from, or has no samples for it.
    """
    require_origin(run, version.card)
    record = version.card.files[WEIGHTS]
    calibration = measure_calibration(run, version.surrogate.eval(), record.sha256)
    measured = merge_hulls([contents.hull for contents in training_contents(run).values()])
    hull = {**measured, **version.card.training_hull}
    if (same := _published(store, version.reference.name, calibration, hull)) is not None:
        return same
    about = {"calibration": {}, "training_hull": hull, "created": datetime.now(UTC)}
    card = version.card.model_copy(update=about)
    files = {CALIBRATION: calibration.to_bytes()}
    number = store.publish(version.reference.name, version.surrogate.state_dict(), card, files)
    return Reference(version.reference.name, number)


def require_origin(run: Run, card: Card) -> None:
    """Make sure that the version of a card has learnt nothing from what a run holds out.

    Raises:
        InvalidRun: nobody can tell, or nothing is held out.
    """
    if not held_out_files(run):
        raise InvalidRun("data.families: none has calibration samples (calibration = ...)")
    if (run.data.problem, run.data.scheme, run.operator) != (card.problem, card.scheme, card.operator):
        raise InvalidRun(
            f"the version solves {card.problem} after {card.scheme} with a {card.operator.kind}, the run is "
            f"of {run.data.problem}, {run.data.scheme} and {run.operator.kind}: expected the version's run"
        )
    for file in split_files(run, "train").values():
        known = card.dataset.get(f"recipe_sha256.{file.path.name}")
        if known != file.recipe.sha256:
            raise InvalidRun(
                f"{file.path.name}: the version has learnt from other data than this run makes; expected the "
                "run file that the version's card quotes, with calibration samples added"
            )


def _published(
    store: Store, name: str, calibration: Calibration, hull: Mapping[str, float]
) -> Reference | None:
    """A version that an interrupted call has published before it moved its alias."""
    for number in store.versions(name):
        card = store.card(name, number)
        if CALIBRATION in card.files and card.training_hull == hull:
            found = store.load(name, number).calibration
            if found is not None and found.to_bytes() == calibration.to_bytes():
                return Reference(name, number)
    return None
