"""Publishing: a checkpoint's averaged weights become a version, if they meet the run's acceptance limits."""

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime

import click

from model_store import CALIBRATION, Calibration, Card, FieldRecord, FileRecord, Reference, Store
from model_store import weights as stored
from problems import EVOLUTION_PROBLEMS, PROBLEMS, FieldSpec
from training.checkpoint import Checkpoint
from training.config import Limits, Run
from training.hashes import hash_files
from training.hull import first_frame, merge_hulls, training_contents
from training.learner import averaged_state
from training.provenance import provenance

Metrics = Mapping[str, Mapping[str, float]]
# what is known of the errors of a version, once the hash of its weights is
Calibrate = Callable[[str], Calibration | None]


class LimitsMissed(RuntimeError):
    """The weights are not good enough to be published."""


def uncalibrated(_: str) -> None:
    """Measures nothing: what is known of the version stands on its card."""


def publish(
    store: Store,
    model: str,
    run: Run,
    checkpoint: Checkpoint,
    metrics: Metrics,
    description: str,
    calibrate: Calibrate = uncalibrated,
) -> Reference:
    """Add a version to the store, unless an earlier attempt has added it already.

    Args:
        store: where to.
        model: name of the model.
        run: the run of the checkpoint.
        checkpoint: the weights, and the text of the run file.
        metrics: family -> summary of its test split.
        description: one sentence for the card.
        calibrate: measures what the service's estimates are made from, see ``training.calibrate``.

    Raises:
        LimitsMissed: a limit of the run's ``[acceptance]`` is missed.
    """
    check_limits(run.acceptance, metrics)
    card = make_card(run, checkpoint, metrics, description)
    if (published := _published(store, model, card)) is not None:
        return published
    if (gap := provenance().gap) is not None:
        click.echo(f"warning: {gap}: the card cannot say which code made the version", err=True)
    state = averaged_state(checkpoint)
    calibration = calibrate(FileRecord.of(stored.to_bytes(state, card.operator)).sha256)
    files = {} if calibration is None else {CALIBRATION: calibration.to_bytes()}
    return Reference(model, store.publish(model, state, card, files))


def check_limits(limits: Limits, metrics: Metrics) -> None:
    """Compare what was measured with what is asked for."""
    missed = [
        f"{family}.{name} = {metrics[family][name]:.4g}, limit {limit:.4g}"
        for family, chosen in limits.items()
        for name, limit in chosen.items()
        # written so that NaN misses every limit
        if not metrics[family][name] <= limit
    ]
    if missed:
        raise LimitsMissed(
            f"not published: {'; '.join(missed)}. Train longer, or change [acceptance] in the run file"
        )


def move_alias(store: Store, reference: Reference, alias: str) -> None:
    """Point ``alias`` at a version."""
    current = store.aliases(reference.name).get(alias)
    store.set_alias(reference.name, alias, reference.version, expected=current)


def make_card(run: Run, checkpoint: Checkpoint, metrics: Metrics, description: str) -> Card:
    """The card of the version; reads the data sets for their hashes and hull."""
    problem = PROBLEMS[run.data.problem]
    evolution = EVOLUTION_PROBLEMS.get(run.data.problem)
    contents = training_contents(run)
    return Card(
        description=description,
        problem=run.data.problem,
        scheme=run.data.scheme,
        operator=run.operator,
        grids=(run.data.grid,),
        extent=run.data.extent,
        inputs=_records(problem.inputs + problem.parameters),
        outputs=_records(problem.outputs),
        frame_interval=None if evolution is None else evolution.frame_interval,
        walls=None if evolution is None else run.data.walls or evolution.walls[0],
        first_frame=first_frame(run),
        training_hull=merge_hulls([content.hull for content in contents.values()]),
        hard_range="flag" if run.publish is None else run.publish.hard_range,
        dataset={
            "sha256": hash_files(list(contents)),
            "samples": sum(content.samples for content in contents.values()),
            "files": len(contents),
            **{f"recipe_sha256.{path.name}": content.recipe for path, content in contents.items()},
        },
        run=checkpoint.run,
        metrics=metrics,
        code_version=str(provenance()),
        created=datetime.now(UTC),
    )


def _published(store: Store, model: str, card: Card) -> Reference | None:
    """The version that an interrupted run has published before it moved its alias."""
    for version in store.versions(model):
        other = store.card(model, version)
        if (other.run, other.dataset, other.metrics) == (card.run, card.dataset, card.metrics):
            return Reference(model, version)
    return None


def _records(specs: Iterable[FieldSpec]) -> tuple[FieldRecord, ...]:
    return tuple(FieldRecord(name=spec.name, unit=spec.unit, description=spec.description) for spec in specs)
