"""What every backend of a store promises."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from model_store import InvalidStoreUrl, ReadOnlyStore, builtin_store
from model_store.backends import BACKENDS, REMOTE, Backend, KeyNotFound, TreeExists, open_backend

TREE = {"card.json": b"{}", "weights.safetensors": b"\0\1\2"}


def run_together(workers: int, work: Callable[[int], None]) -> None:
    """Run ``work(0) ... work(workers - 1)`` in threads that start at the same moment."""
    barrier = threading.Barrier(workers)
    failures: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            barrier.wait()
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


def test_every_kind_is_tested() -> None:
    # those behind a network are one kind to us: the library tells them apart
    assert BACKENDS.keys() == {"file", "memory"} | REMOTE.keys()


def test_new_backend_is_empty(backend: Backend) -> None:
    assert backend.keys("") == []
    assert backend.keys("darcy/versions") == []
    assert backend.sweep() == []
    with pytest.raises(KeyNotFound, match="darcy/aliases"):
        backend.get("darcy/aliases.json")


def test_tree_is_stored_whole(backend: Backend) -> None:
    backend.create_tree("darcy/versions/1", TREE)
    assert backend.keys("") == ["darcy/versions/1/card.json", "darcy/versions/1/weights.safetensors"]
    assert {name: backend.get(f"darcy/versions/1/{name}") for name in TREE} == TREE


def test_prefix_ends_at_a_segment(backend: Backend) -> None:
    backend.create_tree("darcy/versions/1", TREE)
    backend.create_tree("darcy/versions/10", TREE)
    assert backend.keys("darcy/versions/1") == [
        "darcy/versions/1/card.json",
        "darcy/versions/1/weights.safetensors",
    ]


def test_tree_is_created_once(backend: Backend) -> None:
    backend.create_tree("darcy/versions/1", TREE)
    with pytest.raises(TreeExists):
        backend.create_tree("darcy/versions/1", {"card.json": b"other", "more": b""})
    assert backend.get("darcy/versions/1/card.json") == b"{}"
    assert backend.keys("darcy/versions/1") == [f"darcy/versions/1/{name}" for name in sorted(TREE)]
    assert backend.sweep() == []


def test_tree_needs_its_last_file(backend: Backend) -> None:
    with pytest.raises(ValueError, match=r"card\.json"):
        backend.create_tree("darcy/versions/1", {"weights.safetensors": b""})
    assert backend.keys("") == []


@pytest.mark.parametrize("name", ["../card.json", ".hidden", "folder/file", "", "a\\b"])
def test_tree_refuses_names_that_are_no_plain_files(backend: Backend, name: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        backend.create_tree("darcy/versions/1", {name: b"", "card.json": b"{}"})
    assert backend.keys("") == []


@pytest.mark.parametrize("key", ["../secret", "/etc/passwd", "darcy/../../x", "darcy//x", ".mno/x", "", "a/"])
def test_no_key_leaves_the_root(backend: Backend, key: str) -> None:
    with pytest.raises(ValueError, match="expected a key"):
        backend.get(key)
    with pytest.raises(ValueError, match="expected a key"):
        backend.compare_and_set(key, None, b"")


def test_compare_and_set(backend: Backend) -> None:
    assert not backend.compare_and_set("darcy/aliases.json", b"old", b"new")
    assert backend.compare_and_set("darcy/aliases.json", None, b"first")
    assert not backend.compare_and_set("darcy/aliases.json", None, b"second")
    assert backend.compare_and_set("darcy/aliases.json", b"first", b"second")
    assert backend.get("darcy/aliases.json") == b"second"
    assert backend.keys("") == ["darcy/aliases.json"]


def test_compare_and_set_loses_no_update(backend: Backend) -> None:
    backend.compare_and_set("counter", None, b"0")

    def increment(_: int) -> None:
        for _ in range(10):
            old = backend.get("counter")
            while not backend.compare_and_set("counter", old, b"%d" % (int(old) + 1)):
                old = backend.get("counter")

    run_together(4, increment)
    assert backend.get("counter") == b"40"


def test_one_of_many_creators_wins(backend: Backend) -> None:
    winners = []

    def create(number: int) -> None:
        try:
            backend.create_tree("darcy/versions/1", {"card.json": b"%d" % number, "same": b"%d" % number})
        except TreeExists:
            return
        winners.append(number)

    run_together(8, create)
    assert len(winners) == 1
    assert {backend.get(key) for key in backend.keys("")} == {b"%d" % winners[0]}


def test_delete(backend: Backend) -> None:
    backend.create_tree("darcy/versions/1", TREE)
    backend.create_tree("darcy/versions/12", TREE)
    backend.compare_and_set("darcy/aliases.json", None, b"{}")
    backend.delete("darcy/versions/1")
    backend.delete("darcy/aliases.json")
    backend.delete("never/there")
    assert backend.keys("") == [f"darcy/versions/12/{name}" for name in sorted(TREE)]


def test_file_url_opens_the_same_bytes_again(tmp_path: Path) -> None:
    first = open_backend(str(tmp_path / "a folder # 50 %"))
    first.create_tree("darcy/versions/1", TREE)
    assert open_backend(first.url).keys("") == first.keys("")


def test_reading_creates_nothing(tmp_path: Path) -> None:
    backend = open_backend(f"file:{tmp_path / 'absent'}")
    backend.keys("")
    backend.sweep()
    assert list(tmp_path.iterdir()) == []


def test_other_users_can_read_a_version(tmp_path: Path) -> None:
    open_backend(str(tmp_path)).create_tree("darcy/versions/1", TREE)
    version = tmp_path / "darcy/versions/1"
    # a folder from tempfile.mkdtemp would be its owner's alone
    assert version.stat().st_mode & 0o055 == (tmp_path / "darcy").stat().st_mode & 0o055
    assert (version / "card.json").stat().st_mode & 0o777 == 0o444


def test_unsupported_scheme_says_what_is_supported() -> None:
    with pytest.raises(InvalidStoreUrl, match=r"file:, memory:, s3:, gs:, az: .* in ftp:$"):
        open_backend("ftp://user:password@host/x")


@pytest.mark.parametrize("url", ["", "file:", "file://host/x", "memory:named", "file:/x?y=1", "s3:///x"])
def test_malformed_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidStoreUrl, match="expected"):
        open_backend(url)


def test_built_in_models_cannot_be_changed() -> None:
    store = builtin_store()
    with pytest.raises(ReadOnlyStore, match="--store"):
        store.gc()
