"""What clients read names no files and no stores, wherever these are."""

from pathlib import Path

import pytest

from service.versions.places import without_places


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("darcy@3 in file:/a/b: card.json is damaged", "darcy@3 in ...: card.json is damaged"),
        ("cannot open '/a/b.json', sorry", "cannot open '...', sorry"),
        ("s3://bucket/models lacks darcy", "... lacks darcy"),
        ("no s3://key:sec/ret@host/bucket/x: closed", "no ...: closed"),
        ("S3://key:secret@host is down", "... is down"),
        (
            "[Errno 2] No such file or directory: '/srv/my models/x'",
            "[Errno 2] No such file or directory: '...'",
        ),
        ("/srv/my models/x: permission denied", "...: permission denied"),
        ("/a,b/c;d:e@f is gone (see ./log.txt, ~/x or ../y).", "... is gone (see ..., ...)."),
        ("10 m/s, and/or 1/2 in darcy@2", "10 m/s, and/or 1/2 in darcy@2"),
        (
            "the model's card isn't there: ended by signal 9",
            "the model's card isn't there: ended by signal 9",
        ),
    ],
)
def test_clients_are_told_no_places(text: str, shown: str) -> None:
    assert without_places(text) == shown


@pytest.mark.parametrize(
    ("store", "text", "shown"),
    [
        ("models", "models/darcy/aliases.json: broken models", "...: broken models"),
        ("file:models", "file:models/darcy is bad; models are not", "... is bad; models are not"),
        ("file:models", f"file:{Path.cwd()}/models/darcy is bad", "... is bad"),
        ("file:/srv/all my models", "in /srv/all my models: damaged", "in ...: damaged"),
        ("file:/srv/my%20models", "file:/srv/my models has /srv/my%20models/x", "... has ..."),
        ("s3://key:secret@host/bucket", "s3://key:secret@host/bucket: no", "...: no"),
        ("memory:", "out of memory: killed", "out of memory: killed"),
    ],
)
def test_the_store_is_known_by_all_its_names(store: str, text: str, shown: str) -> None:
    assert without_places(text, store) == shown
