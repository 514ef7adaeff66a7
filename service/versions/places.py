"""Texts for clients, without the names of files and stores, and without the credentials in their URLs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

__all__ = ["without_places"]

HIDDEN: Final = "..."
# the rest of a place: up to a space or quote, without what ends a sentence or its part
_REST: Final = r"[^\s'\"]*[^\s'\":;,.)\]]"
# a folder may have spaces in its name: then a word with a slash follows soon
_SPACED: Final = rf"(?: (?:[^\s/:,;'\"]+ ){{0,2}}[^\s/:,;'\"]*/(?:{_REST})?)*"
# what is quoted and has a slash; a URL; an absolute path, also with a scheme; one that begins with ./ ../ ~/
_PLACE: Final = re.compile(
    rf"(?<!\w)(?P<quote>['\"])[^'\"\n]*/[^'\"\n]*(?P=quote)(?!\w)"
    rf"|\b[a-z][a-z0-9+.-]*:/{_REST}{_SPACED}"
    rf"|(?<![\w/.])(?:\.{{1,2}}|~\w*)?/{_REST}{_SPACED}",
    re.IGNORECASE,
)


def without_places(text: str, store: str | None = None) -> str:
    """The text without places, which are nobody's business.

    Args:
        text: an error's, perhaps.
        store: URL or path of a store, whose names are hidden however they look.
    """
    for place in sorted(set(_names(store or "")), key=len, reverse=True):
        # a plain word may mean something else: it is a place where something lies in it
        ending = f"(?:/(?:{_REST})?)?" if re.search(r"[/:]", place) else f"/(?:{_REST})?"
        text = re.sub(rf"(?<![\w/.-]){re.escape(place)}(?![\w-]){ending}", HIDDEN, text)
    return _PLACE.sub(_hidden, text)


def _hidden(found: re.Match[str]) -> str:
    quote = found["quote"] or ""
    return f"{quote}{HIDDEN}{quote}"


def _names(store: str) -> Iterator[str]:
    """The names under which texts may speak of a store."""
    parts = urlsplit(store)
    for place in (store, parts.path, unquote(parts.path)):
        if place.strip("/.") and not place.endswith(":"):
            absolute = str(Path(place).expanduser().absolute())
            yield from (place.rstrip("/"), *(() if parts.netloc else (f"file:{absolute}", absolute)))
