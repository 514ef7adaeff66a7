"""What a user types for a file: a path, or the URL of an object, with nothing secret in it."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bulk.chunks import BucketChunks, open_chunks
from bulk.engine import EngineUnavailable
from bulk.objects import RemotePlace, parse_place, part_bytes


@pytest.mark.parametrize("text", ["fields.h5", "folder/fields.zarr", "/a/b.npy", "C:fields.h5"])
def test_paths(text: str) -> None:
    assert parse_place(text) == Path(text)


def test_urls() -> None:
    place = parse_place("s3://bucket/some/fields.zarr/")
    assert place == RemotePlace("s3://bucket/some/fields.zarr")
    assert (place.name, place.suffix, str(place)) == ("fields.zarr", ".zarr", place.url)
    assert place.beside("x.partial") == RemotePlace("s3://bucket/some/x.partial")
    assert parse_place("gs://bucket/fields.zarr") == RemotePlace("gs://bucket/fields.zarr")


@pytest.mark.parametrize(
    "text",
    [
        "http://host/fields.h5",
        "s3://bucket",
        "s3://bucket/",
        "s3:///fields.h5",
        "s3://key:secret@bucket/fields.h5",
        "s3://bucket/fields.h5?token=secret",
    ],
)
def test_what_names_no_object_is_refused_and_no_secret_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="expected") as refusal:
        parse_place(text)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("size", [0, 1, 5 * 2**20, 48 * 2**30, 5 * 2**40])
def test_no_upload_breaks_the_limits_of_s3(size: int) -> None:
    assert -(-size // part_bytes(size)) <= 10_000
    assert 5 * 2**20 <= part_bytes(size) <= 5 * 2**30


PLACE = RemotePlace("s3://bucket/out.h5")
USES: dict[str, Callable[[], Any]] = {
    "list": PLACE.identify,
    "write": lambda: PLACE.put(Path("whole")),
    "read": PLACE.open_file,
    "begin": lambda: open_chunks(PLACE, {}).__enter__(),
    "keep": lambda: BucketChunks(PLACE, "").put(0, {}),
    "continue": lambda: BucketChunks(PLACE, "").get(0),
    "end": lambda: BucketChunks(PLACE, "").remove(),
}


@pytest.mark.parametrize("use", USES)
def test_without_the_package_the_way_out_is_shown(use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("obstore", "obstore.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EngineUnavailable, match=r'pip install "mno\[object-store\]"'):
        USES[use]()
