"""Where an output may be put."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bulk.objects import Place, RemotePlace
from service.errors import InvalidField
from service.files.field_file import ZARR, unknown_extension

__all__ = ["check_output"]


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
        if place.suffix.lower() == ZARR and place.identify():
            message = f"{place}: expected nothing there yet; remove it, or choose another output"
            raise InvalidField("OUTPUT", "path", message)
        return
    replaceable = not place.is_dir() or (place.suffix.lower() == ZARR and (place / "zarr.json").is_file())
    if not place.parent.is_dir() or not replaceable:
        raise InvalidField("OUTPUT", "path", f"{place}: expected a file in a folder that exists")


def _is_same_file(place: Place, source: Place) -> bool:
    if not isinstance(place, Path) or not isinstance(source, Path):
        return False
    return place.exists() and place.samefile(source)
