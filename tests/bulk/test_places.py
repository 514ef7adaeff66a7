"""What a user types for a file: a path, or the URL of an object, with nothing secret in it."""

from pathlib import Path

import pytest

from bulk.objects import RemotePlace, parse_place


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
