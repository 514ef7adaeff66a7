"""What was read of a store behind a network is not read again, and goes on when that is down."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pytest
from played_s3 import PlayedS3, Refused, Request
from torch import Tensor

from model_store import Card, Store, StoreUnreachable, UnknownModel, open_store
from model_store.backends import remembering
from model_store.cache import CachePlace, FolderCache, open_cache
from model_store.store import open_kept_store

URL = "s3://bucket/models"


@pytest.fixture(autouse=True)
def ask_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # no test waits until a store that was away is asked again
    monkeypatch.setattr(remembering, "PAUSE", 0.0)


@pytest.fixture
def place(tmp_path: Path) -> CachePlace:
    return CachePlace(tmp_path / "cache", 2**20)


@pytest.fixture
def published(played: PlayedS3, state: Mapping[str, Tensor], card: Card) -> Store:
    store = open_store(URL)
    store.publish("darcy", state, card)
    store.set_alias("darcy", "production", 1, expected=None)
    played.requests.clear()
    return store


def weights_read(played: PlayedS3) -> int:
    return sum(each.method == "GET" and each.key.endswith("weights.safetensors") for each in played.requests)


def away(_: Request) -> None:
    raise Refused(500, "InternalError")


def back(_: Request) -> None:
    pass


def test_a_version_is_read_once(played: PlayedS3, published: Store, place: CachePlace) -> None:
    for _ in range(3):
        # as each process of a service does
        assert open_kept_store(URL, place).load("darcy", 1).card == published.card("darcy", 1)
    assert weights_read(played) == 1
    # whoever wants to know what is stored is not told what is kept
    open_kept_store(URL, place).verify("darcy", 1)
    assert weights_read(played) == 2


@pytest.mark.usefixtures("published")
def test_what_is_remembered_are_no_files_of_versions(played: PlayedS3, place: CachePlace) -> None:
    open_kept_store(URL, place).load("darcy", 1)
    (weights,) = (each.read_bytes() for each in (place.folder / "files").iterdir())
    known = [each.read_bytes() for each in (place.folder / "known").rglob("*") if each.is_file()]
    assert len(known) > 1
    # otherwise they would stay without a limit
    assert not any(weights in each for each in known)
    played.before = away
    # a copy that is lost is gone
    next((place.folder / "files").iterdir()).unlink()
    with pytest.raises(StoreUnreachable):
        open_kept_store(URL, place).load("darcy", 1)


@pytest.mark.parametrize("damage", [b"", b"\0" * 100, None])
def test_what_is_damaged_is_read_again(
    played: PlayedS3, published: Store, place: CachePlace, damage: bytes | None
) -> None:
    expected = published.load("darcy", 1).surrogate.state_dict()
    open_kept_store(URL, place).load("darcy", 1)
    (kept,) = (place.folder / "files").iterdir()
    kept.write_bytes(kept.read_bytes()[:-1] + b"\1" if damage is None else damage)
    played.requests.clear()
    found = open_kept_store(URL, place).load("darcy", 1).surrogate.state_dict()
    assert all(bool((found[name] == values).all()) for name, values in expected.items())
    assert weights_read(played) == 1
    # and is whole again
    open_kept_store(URL, place).load("darcy", 1)
    assert weights_read(played) == 1


@pytest.mark.usefixtures("published")
def test_a_store_that_is_down_is_what_it_was_last(played: PlayedS3, place: CachePlace) -> None:
    store = open_kept_store(URL, place)
    store.load("darcy", store.resolve("darcy@production").version)
    assert store.stale is None
    played.before = away
    # in a process that never saw the store, too
    for each in (store, open_kept_store(URL, place)):
        assert each.load("darcy", each.resolve("darcy@production").version).reference.version == 1
        assert each.stale is not None
        assert each.stale.startswith(
            "versions and aliases are the last known ones: s3://bucket/models cannot"
        )
        # what was never asked is not known
        with pytest.raises(StoreUnreachable):
            each.versions("wave")
    played.before = back
    assert store.resolve("darcy@production").version == 1
    assert store.stale is None


def test_an_alias_that_moved_meanwhile_is_seen_when_the_store_is_back(
    played: PlayedS3, published: Store, place: CachePlace, state: Mapping[str, Tensor], card: Card
) -> None:
    store = open_kept_store(URL, place)
    assert store.resolve("darcy@production").version == 1
    published.publish("darcy", state, card)
    published.set_alias("darcy", "production", 2, expected=1)
    played.before = away
    assert store.resolve("darcy@production").version == 1
    played.before = back
    assert store.resolve("darcy@production").version == 2
    played.before = away
    assert store.resolve("darcy@production").version == 2


@pytest.mark.usefixtures("published")
def test_what_was_removed_is_not_remembered(played: PlayedS3, place: CachePlace) -> None:
    store = open_kept_store(URL, place)
    assert store.aliases("darcy") == {"production": 1}
    del played.things["models/darcy/aliases.json"]
    assert store.aliases("darcy") == {}
    played.before = away
    assert store.aliases("darcy") == {}


def test_a_bucket_that_was_filled_anew_is_not_mistaken_for_the_old_one(
    played: PlayedS3, published: Store, place: CachePlace, state: Mapping[str, Tensor], card: Card
) -> None:
    open_kept_store(URL, place).load("darcy", 1)
    played.things.clear()
    other = {name: 2.0 * values for name, values in state.items()}
    published.publish("darcy", other, card)
    found = open_kept_store(URL, place).load("darcy", 1).surrogate.state_dict()
    assert all(bool((found[name] == values).all()) for name, values in other.items())


@pytest.mark.usefixtures("published")
def test_a_damaged_memory_is_none(played: PlayedS3, place: CachePlace) -> None:
    open_kept_store(URL, place).aliases("darcy")
    for path in (place.folder / "known").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-1] + b"7")
    played.before = away
    with pytest.raises(StoreUnreachable):
        open_kept_store(URL, place).aliases("darcy")


@pytest.mark.usefixtures("published")
def test_nothing_is_kept_where_nobody_wants_it(played: PlayedS3, tmp_path: Path) -> None:
    store = open_kept_store(URL, None)
    store.load("darcy", 1)
    played.before = away
    with pytest.raises(StoreUnreachable):
        store.load("darcy", 1)
    assert store.stale is not None
    # a folder needs no copy of itself
    with pytest.raises(UnknownModel):
        open_kept_store(str(tmp_path / "store"), CachePlace(tmp_path / "cache", 1)).resolve("darcy")
    assert not (tmp_path / "cache").exists()


def test_the_oldest_files_go_first(place: CachePlace) -> None:
    cache = FolderCache(CachePlace(place.folder, 250))
    names = [hashlib.sha256(bytes([number]) * 100).hexdigest() for number in range(4)]
    cache.keep(names[0], b"\0" * 100)
    cache.keep(names[1], b"\1" * 100)
    # it was used since
    assert cache.find(names[0]) is not None
    cache.keep(names[2], b"\2" * 100)
    assert [cache.find(name) is not None for name in names] == [True, False, True, False]
    # what would leave no room for others is not kept
    large = bytes(251)
    cache.keep(hashlib.sha256(large).hexdigest(), large)
    assert cache.find(hashlib.sha256(large).hexdigest()) is None
    assert cache.find(names[2]) is not None


def test_a_folder_that_cannot_be_written_is_complained_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    cache = open_cache(CachePlace(tmp_path / "file" / "cache", 100))
    for _ in range(3):
        cache.keep("0" * 64, b"1")
        cache.remember("s3://bucket", "keys ", b"[]")
    assert cache.find("0" * 64) is None
    assert cache.recall("s3://bucket", "keys ") is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
