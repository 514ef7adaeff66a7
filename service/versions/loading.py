"""Loads versions from the stores, and says what they are. The only part of the service that reads weights."""

from __future__ import annotations

from typing import Final

from model_store import Calibration, Catalog, LoadedVersion, Reference
from operators import EvolutionSurrogate, evolves
from problems import EVOLUTION_PROBLEMS, PROBLEMS
from service.settings import InvalidSettings
from service.versions.served import ServedVersion
from service.workers.device_bounds import bounds_on

__all__ = ["load_version", "served_version"]


# of the errors that a service states, and of the estimates by which it tells a bad answer
COVERAGE: Final = 0.9
USUAL: Final = 0.95
# of steady problems: errors, and their estimates by one solver step
_JUDGED: Final = frozenset({"relative_l2", "l2_estimate"})


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
    """What a service has to know of a version that it serves, whose weights lie where they are used."""
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
        hard_range=card.hard_range,
        calibration={**card.calibration, **_quantiles(loaded.calibration)},
        frame_interval=card.frame_interval,
        walls=card.walls,
        first_frame=card.first_frame,
        history=0 if evolution is None else evolution.history,
        frames=0 if evolution is None else evolution.frames,
        digests={name: record.sha256 for name, record in card.files.items()},
        bounds_errors=any(bounds_on(each.device, card.problem) for each in surrogate.parameters()),
        weights_bytes=sum(each.numel() * each.element_size() for each in surrogate.parameters()),
    )


def _quantiles(found: Calibration | None) -> dict[str, float]:
    """``<score>_q90.frame_<horizon>`` of every score, ``<score>_q95`` of those that answers are judged by."""
    if found is None:
        return {}
    quantiles = {
        f"{name}_q{round(100 * COVERAGE)}.frame_{horizon}": value
        for name in found.scores
        for horizon, value in found.quantiles(name, COVERAGE).items()
    }
    # that of a steady problem has no horizons
    for name in _JUDGED & found.scores.keys() if found.origin.horizons == (0,) else ():
        usual = found.quantiles(name, USUAL)
        quantiles |= {f"{name}_q{round(100 * USUAL)}": value for value in usual.values()}
    return quantiles
