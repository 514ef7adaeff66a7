"""Which version answers a request: an alias means one version, and may give a share to a second one."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Final, final

from pydantic import BaseModel, ConfigDict, Field

from model_store.reference import Reference

__all__ = ["Route", "Table", "available", "goes_to_canary", "mentioned"]

_HASHES: Final = 2**64


@final
class Route(BaseModel):
    """What a name means; travels between processes as JSON.

    Attributes:
        name: of the model in the store.
        main: the version that answers.
        canary: the version that answers a share of the requests instead.
        weight: this share.
        shadow: the version that answers for comparison only: no client sees its numbers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    main: int
    canary: int | None = None
    weight: float = Field(default=0.0, ge=0, le=1)
    shadow: int | None = None

    @property
    def versions(self) -> tuple[Reference, ...]:
        """All versions that the name needs, the one that answers first."""
        numbers = (self.main, self.canary, self.shadow)
        return tuple(Reference(self.name, number) for number in dict.fromkeys(numbers) if number is not None)

    def __str__(self) -> str:
        canary = "" if self.canary is None else f", {100 * self.weight:g} % {self.canary}"
        shadow = "" if self.shadow is None else f", shadow {self.shadow}"
        return f"{self.name}@{self.main}{canary}{shadow}"


# names that clients may use -> what they mean
Table = Mapping[str, Route]


def goes_to_canary(route: Route, key: str) -> bool:
    """Whether the request with this key is one of the canary's share.

    The same key always goes the same way, and a larger share keeps those that it already had.
    """
    if route.canary is None:
        return False
    # by name, so that the first to try one model are not the first to try every other
    digest = hashlib.blake2b(f"{route.name}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < route.weight * _HASHES


def available(wanted: Table, present: Table, loaded: Collection[Reference]) -> dict[str, Route]:
    """What can be served of what is wanted: a name whose version is not loaded keeps what it means now.

    A canary or shadow that is not loaded is left out.
    """
    table = {}
    for name, route in wanted.items():
        if Reference(route.name, route.main) in loaded:
            table[name] = _without_missing(route, loaded)
        elif name in present and Reference(present[name].name, present[name].main) in loaded:
            table[name] = _without_missing(present[name], loaded)
    return table


def mentioned(table: Table) -> dict[Reference, None]:
    """Every version that some name needs, in the order of the names."""
    return dict.fromkeys(version for route in table.values() for version in route.versions)


def _without_missing(route: Route, loaded: Collection[Reference]) -> Route:
    missing: dict[str, object] = {}
    if route.canary is not None and Reference(route.name, route.canary) not in loaded:
        missing |= {"canary": None, "weight": 0.0}
    if route.shadow is not None and Reference(route.name, route.shadow) not in loaded:
        missing |= {"shadow": None}
    return route.model_copy(update=missing)
