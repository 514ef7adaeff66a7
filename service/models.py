"""The versions that a service has loaded, and the names under which clients ask for them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, final

import model_store
from model_store import Catalog, LoadedVersion, Reference, StoreError
from operators import evolves
from problems import EVOLUTION_PROBLEMS, PROBLEMS
from service.errors import LONGEST_QUOTE, InvalidField, UnknownModel, UnsupportedGrid
from service.settings import InvalidSettings

__all__ = ["Models", "load_models", "require_tested"]

log = logging.getLogger("mno.service")


@final
class Models:
    """What is loaded. Lookups touch no file; descriptions read the stores."""

    def __init__(self, loaded: Mapping[str, LoadedVersion], catalog: Catalog) -> None:
        """``loaded`` maps every name that clients may use (``darcy``, ``darcy@production``, ``darcy@3``)."""
        self._loaded = dict(loaded)
        self._catalog = catalog

    @property
    def versions(self) -> tuple[LoadedVersion, ...]:
        """Each loaded version once."""
        return tuple({version.reference: version for version in self._loaded.values()}.values())

    def find(self, problem: str, wanted: str | None) -> LoadedVersion:
        """The loaded version that a request means; without a name, the problem's own, or else its first."""
        if wanted is None:
            return self._default(problem)
        if wanted not in self._loaded:
            loaded = sorted(self._loaded) or "none at all"
            raise UnknownModel(f"{wanted[:LONGEST_QUOTE]!r} is not loaded; expected one of {loaded}")
        version = self._loaded[wanted]
        if version.card.problem != problem:
            message = (
                f"{wanted} solves {version.card.problem}, not {problem}; choose another model or endpoint"
            )
            raise InvalidField("model", "problem", message)
        return version

    def _default(self, problem: str) -> LoadedVersion:
        if problem in self._loaded and self._loaded[problem].card.problem == problem:
            return self._loaded[problem]
        for version in self.versions:
            if version.card.problem == problem:
                return version
        raise UnknownModel(f"no model for {problem} is loaded; publish one, or ask for method=solver")

    def identify(self, problem: str, wanted: str | None, *, solver: bool) -> dict[str, Any] | None:
        """The version that answers, or whose operator the reference solver takes, with its files' hashes."""
        if solver and wanted is None:
            return None
        version = self.find(problem, wanted)
        hashes = {name: record.sha256 for name, record in version.card.files.items()}
        # stores have equal names for different versions
        return {"name": str(version.reference), "scheme": version.card.scheme, "sha256": hashes}

    def of_problem(self, problem: str) -> list[str]:
        """Loaded versions that solve ``problem``."""
        return [str(version.reference) for version in self.versions if version.card.problem == problem]

    def grids(self, problem: str) -> list[tuple[int, int]]:
        """Grids (ny, nx) on which some loaded surrogate of ``problem`` answers."""
        return sorted({grid for v in self.versions if v.card.problem == problem for grid in v.card.grids})

    def catalog(self) -> list[dict[str, Any]]:
        """Summaries of all models in the stores; one that is damaged says so."""
        return [self._summary_or_error(name) for name in self._catalog.models()]

    def describe(self, name: str) -> dict[str, Any]:
        """The summary of a model with the cards of all its versions."""
        try:
            summary = self._summary(name)
            cards = {str(n): self._catalog.card(name, n).model_dump(mode="json") for n in summary["versions"]}
        except model_store.UnknownModel as error:
            raise UnknownModel(str(error)) from error
        return summary | {"cards": cards}

    def _summary_or_error(self, name: str) -> dict[str, Any]:
        try:
            return self._summary(name)
        except StoreError as error:
            log.warning("%s cannot be described: %s", name, error)
            # the error's own words may name places on the server
            what = f"a card or the aliases of {name} are damaged; `mno store verify` says more"
            return {"name": name, "error": what}

    def _summary(self, name: str) -> dict[str, Any]:
        versions = self._catalog.versions(name)
        loaded = {version.reference for version in self.versions}
        return {
            "name": name,
            "problem": self._catalog.card(name, versions[-1]).problem,
            "aliases": self._catalog.aliases(name),
            "versions": versions,
            "loaded": [number for number in versions if Reference(name, number) in loaded],
        }


def require_tested(version: LoadedVersion, field: str, grid: tuple[int, int]) -> None:
    """Refuse a grid (ny, nx) that the version was not tested on; ``field`` is the one that has it."""
    if grid not in version.card.grids:
        supported = ", ".join(f"{ny}x{nx}" for ny, nx in version.card.grids)
        got = "x".join(map(str, grid))
        message = f"{version.reference} was tested on grids {supported}, got {got}; or ask for method=solver"
        raise UnsupportedGrid(field, "grid", message)


def load_models(catalog: Catalog, wanted: Iterable[str] = ()) -> Models:
    """Load versions, verified.

    Args:
        catalog: where to look.
        wanted: ``darcy`` (the version it means, and all that its aliases mean) or ``darcy@3``; empty: all.

    Raises:
        InvalidSettings: a model that does not exist, does not load, or solves no known problem.
    """
    try:
        names = tuple(wanted) or tuple(catalog.models())
        references = {text: reference for name in names for text, reference in _names(catalog, name)}
        versions = {reference: _load(catalog, reference) for reference in set(references.values())}
    except StoreError as error:
        raise InvalidSettings(f"a model cannot be loaded: {error}") from error
    loaded = {text: versions[reference] for text, reference in references.items()}
    return Models(loaded | {str(reference): version for reference, version in versions.items()}, catalog)


def _names(catalog: Catalog, wanted: str) -> list[tuple[str, Reference]]:
    """The names under which ``wanted`` is served, with the versions they mean."""
    if "@" in wanted:
        return [(wanted, catalog.resolve(wanted))]
    aliases = catalog.aliases(wanted).items()
    return [
        (wanted, catalog.resolve(wanted)),
        *((f"{wanted}@{alias}", Reference(wanted, number)) for alias, number in aliases),
    ]


def _load(catalog: Catalog, reference: Reference) -> LoadedVersion:
    version = catalog.load(reference.name, reference.version)
    problem = version.card.problem
    if problem not in PROBLEMS:
        message = f"{reference} solves {problem!r}; this service knows {sorted(PROBLEMS)}"
        raise InvalidSettings(f"{message}; leave it out of the models")
    if evolves(version.card.operator) != (problem in EVOLUTION_PROBLEMS):
        message = f"{reference} has the operator {version.card.operator.kind}, which is none for {problem}"
        raise InvalidSettings(f"{message}; leave it out of the models")
    return version
