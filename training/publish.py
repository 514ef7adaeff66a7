"""Publishing: a checkpoint's averaged weights become a version, if they meet the run's acceptance limits."""

import hashlib
import importlib.metadata
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from model_store import Card, FieldRecord, Reference, Store
from problems import PROBLEMS, FieldSpec
from training.checkpoint import Checkpoint
from training.config import Limits, Run
from training.dataset import read_dataset
from training.learner import averaged_state
from training.splits import split_files

Metrics = Mapping[str, Mapping[str, float]]


class LimitsMissed(RuntimeError):
    """The weights are not good enough to be published."""


def publish(
    store: Store, model: str, run: Run, checkpoint: Checkpoint, metrics: Metrics, description: str
) -> Reference:
    """Add a version to the store, unless an earlier attempt has added it already.

    Args:
        store: where to.
        model: name of the model.
        run: the run of the checkpoint.
        checkpoint: the weights, and the text of the run file.
        metrics: family -> summary of its test split.
        description: one sentence for the card.

    Raises:
        LimitsMissed: a limit of the run's ``[acceptance]`` is missed.
    """
    check_limits(run.acceptance, metrics)
    card = make_card(run, checkpoint, metrics, description)
    return _published(store, model, card) or Reference(
        model, store.publish(model, averaged_state(checkpoint), card)
    )


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
    """The card of the version; reads the data sets for their hash and hull."""
    problem = PROBLEMS[run.data.problem]
    paths = [file.path for file in split_files(run, "train").values()]
    contrasts = [read_dataset(path).contrast for path in paths]
    return Card(
        description=description,
        problem=run.data.problem,
        scheme=run.data.scheme,
        operator=run.operator,
        grids=(run.data.grid,),
        extent=run.data.extent,
        inputs=_records(problem.inputs + problem.parameters),
        outputs=_records(problem.outputs),
        training_hull={
            "contrast_min": min(float(contrast.min()) for contrast in contrasts),
            "contrast_max": max(float(contrast.max()) for contrast in contrasts),
        },
        dataset={"sha256": hash_files(paths), "samples": sum(map(len, contrasts)), "files": len(paths)},
        run=checkpoint.run,
        metrics=metrics,
        code_version=code_version(),
        created=datetime.now(UTC),
    )


def _published(store: Store, model: str, card: Card) -> Reference | None:
    """The version that an interrupted run has published before it moved its alias."""
    for version in store.versions(model):
        other = store.card(model, version)
        if (other.run, other.dataset, other.metrics) == (card.run, card.dataset, card.metrics):
            return Reference(model, version)
    return None


def hash_files(paths: Iterable[Path]) -> str:
    """SHA-256 over the names and SHA-256 of the files."""
    total = hashlib.sha256()
    for path in sorted(paths):
        with path.open("rb") as file:
            total.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def code_version() -> str:
    """The package's version, and the commit where the code is a git checkout."""
    try:
        version = importlib.metadata.version("mno")
    except importlib.metadata.PackageNotFoundError:
        version = "not installed"
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    commit = described.stdout.strip()
    return f"{version} ({commit})" if commit else version


def _records(specs: Iterable[FieldSpec]) -> tuple[FieldRecord, ...]:
    return tuple(FieldRecord(name=spec.name, unit=spec.unit, description=spec.description) for spec in specs)
