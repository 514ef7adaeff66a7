"""Loads versions from the stores, and says what they are. The only part of the service that reads weights."""

from __future__ import annotations

from model_store import Catalog, LoadedVersion, Reference
from operators import EvolutionSurrogate, evolves
from problems import EVOLUTION_PROBLEMS, PROBLEMS
from service.settings import InvalidSettings
from service.versions.served import ServedVersion

__all__ = ["load_version", "served_version"]


def load_version(catalog: Catalog, reference: Reference) -> LoadedVersion:
    """A version, verified, that solves a problem that this service knows.

    Raises:
        StoreError: it does not load.
        InvalidSettings: it solves no known problem.
    """
    version = catalog.load(reference.name, reference.version)
    problem = version.card.problem
    if problem not in PROBLEMS:
        message = f"{reference} solves {problem!r}; this service knows {sorted(PROBLEMS)}"
        raise InvalidSettings(f"{message}; leave it out of the models")
    if evolves(version.card.operator) != (problem in EVOLUTION_PROBLEMS):
        message = f"{reference} has the operator {version.card.operator.kind}, which is none for {problem}"
        raise InvalidSettings(f"{message}; leave it out of the models")
    return version


def served_version(loaded: LoadedVersion) -> ServedVersion:
    """What a service has to know of a version that it serves."""
    card, surrogate = loaded.card, loaded.surrogate
    evolution = surrogate if isinstance(surrogate, EvolutionSurrogate) else None
    return ServedVersion(
        name=loaded.reference.name,
        version=loaded.reference.version,
        problem=card.problem,
        scheme=card.scheme,
        grids=card.grids,
        extent=card.extent,
        training_hull=dict(card.training_hull),
        calibration=dict(card.calibration),
        frame_interval=card.frame_interval,
        walls=card.walls,
        first_frame=card.first_frame,
        history=0 if evolution is None else evolution.history,
        frames=0 if evolution is None else evolution.frames,
        digests={name: record.sha256 for name, record in card.files.items()},
        weights_bytes=sum(each.numel() * each.element_size() for each in surrogate.parameters()),
    )
