"""What the service asks of the model stores. Reads files: for threads, and for processes that may wait."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, Final

from model_store.alias import AliasTarget
from model_store.catalog import Catalog
from model_store.errors import AccessRefused, StoreError, StoreUnreachable
from service.versions.repository import ModelEntry, VersionState
from service.versions.routing import Route

__all__ = ["AWAY", "describe", "index", "require_atomic_writes", "table_of"]

log = logging.getLogger("mno.service")

# what clients are told of a store that does not answer
AWAY: Final = "the stores cannot be read at the moment; try again"


def require_atomic_writes(catalog: Catalog) -> None:
    """See that the stores keep publishers apart, as far as this service can see it.

    Raises:
        UnsafeStore: one does not.
    """
    for store in catalog.stores:
        try:
            store.require_atomic_writes()
        except AccessRefused:
            # all that a service needs; whoever publishes looks by itself
            log.info("%s can be read, and not written", store.url)
        except StoreUnreachable as error:
            log.warning("%s", error)


def table_of(catalog: Catalog, wanted: Iterable[str]) -> dict[str, Route]:
    """The names under which models are served: ``darcy`` with all its aliases, or ``darcy@3`` alone.

    Raises:
        StoreError: a model, alias or version that does not exist, or aliases that are damaged.
    """
    return {name: route for each in wanted for name, route in _names(catalog, each)}


def _names(catalog: Catalog, wanted: str) -> list[tuple[str, Route]]:
    reference = catalog.resolve(wanted)
    targets = catalog.targets(reference.name)
    model, _, alias = wanted.partition("@")
    # what the bare name means is what `production` means, where there is such an alias
    target = targets.get(alias or "production", AliasTarget(version=reference.version))
    own = _route(model, target)
    if alias:
        return [(wanted, own)]
    return [(wanted, own), *((f"{wanted}@{each}", _route(model, to)) for each, to in targets.items())]


def _route(model: str, target: AliasTarget) -> Route:
    canary = target.canary
    return Route(
        name=model,
        main=target.version,
        canary=None if canary is None else canary.version,
        weight=0.0 if canary is None else canary.weight,
        shadow=target.shadow,
    )


def index(catalog: Catalog) -> tuple[ModelEntry, ...]:
    """All models; one that is damaged says so."""
    return tuple(_entry_or_error(catalog, name) for name in catalog.models())


def describe(catalog: Catalog, name: str) -> tuple[ModelEntry, dict[str, Any]]:
    """A model, and the cards of all its versions by number.

    Raises:
        StoreError: there is none of that name, or something is damaged.
    """
    entry = _entry(catalog, name)
    cards = (each.version for each in entry.versions)
    return entry, {str(number): catalog.card(name, number).model_dump(mode="json") for number in cards}


def _entry_or_error(catalog: Catalog, name: str) -> ModelEntry:
    try:
        return _entry(catalog, name)
    except StoreError as error:
        log.warning("%s cannot be described: %s", name, error)
        # the error's own words may name places on the server
        what = f"a card or the aliases of {name} are damaged; `mno store verify` says more"
        return ModelEntry(name=name, error=what)


def _entry(catalog: Catalog, name: str) -> ModelEntry:
    versions = catalog.versions(name)
    return ModelEntry(
        name=name,
        problem=catalog.card(name, versions[-1]).problem,
        aliases=catalog.targets(name),
        versions=tuple(VersionState(version=number, state="UNAVAILABLE") for number in versions),
    )
