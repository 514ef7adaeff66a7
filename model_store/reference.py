"""How versions are named: ``darcy``, ``darcy@production``, ``darcy@3``."""

import re
from dataclasses import dataclass
from typing import Self

from model_store.errors import InvalidReference

# one path segment, safe in every object store and file system, and never hidden
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
# an alias begins with a letter, so that it cannot be taken for a number
ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,63}")
NUMBER = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class Reference:
    """One version of one model; what a version is called everywhere: ``darcy@3``."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class Selector:
    """What a user asked for; a store resolves it to a ``Reference``.

    ``wanted`` is a number, an alias, or None for ``production`` (the newest where there is no such alias).
    """

    name: str
    wanted: int | str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``name``, ``name@alias`` or ``name@number``.

        Raises:
            InvalidReference: anything else.
        """
        name, at, wanted = text.partition("@")
        checked_name(name)
        if not at:
            return cls(name)
        if NUMBER.fullmatch(wanted):
            return cls(name, int(wanted))
        return cls(name, checked_alias(wanted))

    def __str__(self) -> str:
        return self.name if self.wanted is None else f"{self.name}@{self.wanted}"


def checked_name(name: str) -> str:
    """``name``, if it can name a model."""
    if not NAME.fullmatch(name):
        raise InvalidReference(
            "expected name, name@alias or name@number, the name in lower-case letters, digits, _ and -, "
            f"got {name!r}"
        )
    return name


def checked_alias(alias: str) -> str:
    """``alias``, if it can name an alias."""
    if not ALIAS.fullmatch(alias):
        raise InvalidReference(
            "expected a version number (1, 2, ...) or an alias (lower-case letters, digits, _, -) after @, "
            f"got {alias!r}"
        )
    return alias
