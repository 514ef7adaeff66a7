"""The process that reads the model stores: nobody who answers requests waits for a disk or a network."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Mapping
from typing import Any

from model_store import Catalog, open_catalog
from model_store.errors import StoreError
from service import stores
from service.control import answer_questions
from service.lane import BlockingLane, LaneClosed
from service.logs import LogSettings, set_up_logs
from service.routing import Route

__all__ = ["main"]


def main(control: socket.socket, spec: Mapping[str, Any]) -> int:
    """Answer questions about the store ``spec["store"]`` and the built-in models; returns the exit status."""
    began = time.perf_counter()
    set_up_logs(LogSettings.model_validate(spec.get("logs", {})), "steward")
    lane = BlockingLane(control)
    try:
        catalog = open_catalog(spec["store"])
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
            return _table(catalog, **arguments)
        case "index":
            return [entry.model_dump(mode="json") for entry in stores.index(catalog)]
        case "describe":
            entry, cards = stores.describe(catalog, arguments["name"])
            return {"entry": entry.model_dump(mode="json"), "cards": cards}
    raise ValueError(f"expected table, index or describe, got {what!r}")


def _table(catalog: Catalog, wanted: Iterable[str], others: bool, without: Iterable[str]) -> dict[str, Any]:
    """What names mean now; models that cannot be resolved are told apart.

    Args:
        catalog: where to look.
        wanted: ``darcy`` or ``darcy@3``.
        others: all other models of the stores are wanted too.
        without: names of models that are not.
    """
    found: dict[str, Route] = {}
    broken: dict[str, str] = {}
    for each in dict.fromkeys([*wanted, *(catalog.models() if others else ())]):
        if each in without or each.partition("@")[0] in without:
            continue
        try:
            found |= stores.table_of(catalog, (each,))
        except StoreError as error:
            broken[each] = str(error)
    return {"table": {name: route.model_dump() for name, route in found.items()}, "broken": broken}
