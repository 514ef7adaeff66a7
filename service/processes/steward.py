"""The process that reads the model stores: nobody who answers requests waits for a disk or a network."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from model_store import Catalog, open_catalog
from model_store.cache import CachePlace
from model_store.errors import StoreError, StoreUnreachable, UnknownModel
from service.errors import WorkerLost
from service.processes.control import answer_questions
from service.telemetry.logs import LogSettings, set_up_logs
from service.versions import stores
from service.versions.routing import Route
from service.workers.lane import BlockingLane, LaneClosed

__all__ = ["main", "table"]


def main(control: socket.socket, spec: Mapping[str, Any]) -> int:
    """Answer questions about the store ``spec["store"]`` and the built-in models; returns the exit status.

    What is read of that over a network is kept in ``spec["kept"]``.
    """
    began = time.perf_counter()
    set_up_logs(LogSettings.model_validate(spec.get("logs", {})), "steward")
    lane = BlockingLane(control)
    try:
        kept = spec.get("kept")
        place = None if kept is None else CachePlace(Path(kept["folder"]), kept["limit"])
        catalog = open_catalog(spec["store"], place)
        stores.require_atomic_writes(catalog)
    except StoreError as error:
        lane.send({"failed": str(error)})
        return 1
    lane.send({"ready": {}, "seconds": time.perf_counter() - began})
    try:
        answer_questions(lane, lambda what, arguments: _answer(catalog, what, arguments))
    except LaneClosed:
        return 0
    return 0


def _answer(catalog: Catalog, what: str, arguments: Mapping[str, Any]) -> Any:
    match what:
        case "table":
            return table(catalog, **arguments)
        case "index":
            with _away():
                return [entry.model_dump(mode="json") for entry in stores.index(catalog)]
        case "describe":
            with _away():
                entry, cards = stores.describe(catalog, arguments["name"])
            return {"entry": entry.model_dump(mode="json"), "cards": cards}
    raise ValueError(f"expected table, index or describe, got {what!r}")


@contextlib.contextmanager
def _away() -> Iterator[None]:
    """What clients are told when a store does not answer: that it will."""
    try:
        yield
    except StoreUnreachable as error:
        raise WorkerLost(stores.AWAY) from error


def table(
    catalog: Catalog,
    wanted: Iterable[str],
    others: bool,
    without: Iterable[str],
    stores_of: Mapping[str, str],
) -> dict[str, Any]:
    """What names mean now; models that cannot be resolved are told apart, and why it may be old news.

    Args:
        catalog: where to look.
        wanted: ``darcy`` or ``darcy@3``.
        others: all other models of the stores are wanted too.
        without: names of models that are not.
        stores_of: where models came from. One that is not there any more does not turn into its namesake
            of another store: whoever unmounts a store does not mean that.
    """
    found: dict[str, Route] = {}
    broken: dict[str, str] = {}
    found_in: dict[str, str] = {}
    try:
        present = catalog.models() if others else []
    except StoreError as error:
        if not stores_of:
            raise
        # those that are known cannot be read
        present = []
        broken = dict.fromkeys(stores_of, str(error))
    for each in dict.fromkeys([*wanted, *((*present, *stores_of) if others else ())]):
        model = each.partition("@")[0]
        if each in without or model in without:
            continue
        try:
            store = _store_of(catalog, model, stores_of.get(model))
            found |= stores.table_of(catalog, (each,))
            found_in[model] = store
            broken.pop(each, None)
        except StoreError as error:
            broken[each] = str(error)
    return {
        "table": {name: route.model_dump() for name, route in found.items()},
        "broken": broken,
        "stores_of": found_in,
        "stale": catalog.stale,
    }


def _store_of(catalog: Catalog, model: str, known: str | None) -> str:
    has = [store.url for store in catalog.stores if store.versions(model)]
    if known is not None and known not in has:
        raise UnknownModel(f"{known} has {model} no more; unload it to serve what other stores have")
    return catalog.store_of(model).url
