"""Where an output may be put."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bulk.objects import Place, RemotePlace
from service.errors import InvalidField
from service.files.field_file import ZARR, unknown_extension

__all__ = ["check_output"]

# the mark of what is whole
ZARR_ROOT: Final = "zarr.json"


def check_output(place: Place, source: Place, known: Sequence[str]) -> None:
    """Refuse an output that could not be written at the end, or would replace the input ``source``.

    Raises:
        ServiceFault: its extension is not among the ``known`` ones, or it cannot be there.
    """
    if place.suffix.lower() not in known:
        raise unknown_extension(place, known)
    if place == source or _is_same_file(place, source):
        raise InvalidField("OUTPUT", "path", f"{place} is the input itself; choose another output")
    if isinstance(place, RemotePlace):
        # it is stored last: without it the rest is what a killed upload left, which is continued
        if place.suffix.lower() == ZARR and RemotePlace(f"{place.url}/{ZARR_ROOT}").identify():
            message = f"{place}: expected nothing there yet; remove it, or choose another output"
            raise InvalidField("OUTPUT", "path", message)
        return
    if not place.parent.is_dir():
        raise InvalidField("OUTPUT", "path", f"{place}: expected a folder that exists, got {place.parent}")
    if not _is_replaceable(place):
        kind = "a Zarr group or array" if place.suffix.lower() == ZARR else "a file"
        message = f"{place}: expected nothing there yet, or {kind}; remove it, or choose another output"
        raise InvalidField("OUTPUT", "path", message)


def _is_replaceable(place: Path) -> bool:
    """Whether nothing is there, or something of the kind that will be."""
    if place.suffix.lower() == ZARR:
        return (place / ZARR_ROOT).is_file() or not place.exists()
    return not place.is_dir()


def _is_same_file(place: Place, source: Place) -> bool:
    if not isinstance(place, Path) or not isinstance(source, Path):
        return False
    return place.exists() and place.samefile(source)
