"""What object stores and networks do to a store, played: ignored headers, lost answers, writers that die."""

import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from obstore.store import LocalStore, MemoryStore
from played_s3 import LostAnswer, PlayedS3, Refused, Request

import mno
from model_store import AccessRefused, InvalidStoreUrl, StoreError, StoreUnreachable, UnsafeStore
from model_store.backends import Backend, TreeExists, open_backend
from model_store.backends.object import Handles, ObjectBackend

URL = "s3://bucket/models"
TREE = {"card.json": b"{}", "weights.safetensors": b"\0\1\2"}
OTHER = {"card.json": b"[]", "weights.safetensors": b"\3"}


def fails(times: int, error: Exception, which: Callable[[Request], bool]) -> Callable[[Request], None]:
    """A hook: the first so many requests that ``which`` is true of fail."""
    left = iter(range(times))

    def hook(request: Request) -> None:
        if which(request) and next(left, None) is not None:
            raise error

    return hook


def is_claim(request: Request) -> bool:
    return request.method == "PUT" and "/.mno/claims/" in request.key


def stored(backend: Backend, prefix: str = "darcy/versions/1") -> dict[str, bytes]:
    return {key.rpartition("/")[2]: backend.get(key) for key in backend.keys(prefix)}


# --- servers that cannot be trusted


@pytest.mark.parametrize(
    ("ignored", "complaint"),
    [
        ({"if-none-match"}, "ignores If-None-Match: .* and overwrites"),
        ({"if-match"}, "ignores If-Match and overwrites"),
        ({"if-match", "if-none-match"}, "ignores If-None-Match"),
    ],
)
def test_a_server_that_ignores_conditions_is_refused_before_anything_is_published(
    played: PlayedS3, ignored: set[str], complaint: str
) -> None:
    played.ignored = ignored
    backend = open_backend(URL)
    with pytest.raises(UnsafeStore, match=complaint):
        backend.require_atomic_writes()
    with pytest.raises(UnsafeStore, match=complaint):
        backend.create_tree("darcy/versions/1", TREE)
    with pytest.raises(UnsafeStore, match=complaint):
        backend.compare_and_set("darcy/aliases.json", None, b"{}")
    assert played.things == {}


def test_a_server_that_refuses_conditions_is_refused(played: PlayedS3) -> None:
    def refuse(request: Request) -> None:
        if "if-match" in request.headers:
            raise Refused(412, "PreconditionFailed")

    played.before = refuse
    with pytest.raises(UnsafeStore, match="refuses conditional writes whose condition holds"):
        open_backend(URL).require_atomic_writes()


def test_conditions_are_looked_at_once(played: PlayedS3) -> None:
    backend = open_backend(URL)
    backend.create_tree("darcy/versions/1", TREE)
    before = sum("/.mno/probes/" in request.key for request in played.requests)
    backend.create_tree("darcy/versions/2", TREE)
    assert sum("/.mno/probes/" in request.key for request in played.requests) == before > 0


def test_reading_writes_nothing_and_needs_no_leave_to(played: PlayedS3) -> None:
    open_backend(URL).create_tree("darcy/versions/1", TREE)

    def read_only(request: Request) -> None:
        if request.changes:
            raise Refused(403, "AccessDenied")

    played.before = read_only
    backend = open_backend(URL)
    assert stored(backend) == TREE
    with pytest.raises(AccessRefused, match=r"s3://bucket/models refuses this access: HTTP 403 AccessDenied"):
        backend.create_tree("darcy/versions/2", TREE)


# --- errors


def test_passing_errors_are_not_noticed(played: PlayedS3) -> None:
    # every other request of each kind fails
    tried: set[tuple[str, str, frozenset[str]]] = set()

    def every_first(request: Request) -> None:
        what = (request.method, request.key, frozenset(request.headers))
        if what not in tried:
            tried.add(what)
            raise Refused(503, "SlowDown")

    played.before = every_first
    backend = open_backend(URL)
    backend.create_tree("darcy/versions/1", TREE)
    assert backend.compare_and_set("darcy/aliases.json", None, b"{}")
    assert stored(backend) == TREE


def test_a_claim_whose_answer_got_lost_is_known_again(played: PlayedS3) -> None:
    played.after = fails(1, LostAnswer(), is_claim)
    backend = open_backend(URL)
    backend.create_tree("darcy/versions/1", TREE)
    assert stored(backend) == TREE
    assert sum(map(is_claim, played.requests)) == 2


def test_a_claim_that_did_not_arrive_is_made_again(played: PlayedS3) -> None:
    played.before = fails(2, LostAnswer(), is_claim)
    backend = open_backend(URL)
    backend.create_tree("darcy/versions/1", TREE)
    assert stored(backend) == TREE


def test_a_change_whose_answer_got_lost_counts_once(played: PlayedS3) -> None:
    backend = open_backend(URL)
    assert backend.compare_and_set("counter", None, b"0")
    played.after = fails(1, LostAnswer(), lambda request: request.method == "PUT")
    assert backend.compare_and_set("counter", b"0", b"1")
    # the same bytes, but another's: whoever lost does not think that they are its own
    played.after = fails(1, LostAnswer(), lambda request: request.method == "PUT")
    other = open_backend(URL)

    def overtake(request: Request) -> None:
        if request.method == "PUT":
            played.before = lambda _: None
            assert other.compare_and_set("counter", b"1", b"2")

    other.require_atomic_writes()
    played.before = overtake
    played.after = lambda _: None
    assert not backend.compare_and_set("counter", b"1", b"2")


def test_a_store_that_stays_away_is_spoken_of_without_secrets(played: PlayedS3) -> None:
    backend = open_backend(URL)
    played.before = fails(100, Refused(500, "InternalError"), lambda _: True)
    for work in (lambda: backend.keys(""), lambda: backend.create_tree("darcy/versions/1", TREE)):
        with pytest.raises(StoreUnreachable, match=r"s3://bucket/models") as caught:
            work()
        for secret in ("somebody", "Signature", "Authorization", "127.0.0.1"):
            assert secret not in str(caught.value)


def test_a_bucket_that_is_not_there_is_a_wrong_url(played: PlayedS3) -> None:
    played.before = fails(100, Refused(404, "NoSuchBucket"), lambda _: True)
    for work in (lambda: open_backend(URL).keys(""), lambda: open_backend(URL).get("darcy/aliases.json")):
        with pytest.raises(InvalidStoreUrl, match="expected a bucket"):
            work()


@pytest.mark.parametrize(
    "url",
    ["s3://key:pass-word@bucket/x", "s3://bucket/x?secret=pass-word", "s3://bucket/x#pass-word", "s3://"],
)
def test_a_url_says_where_and_no_more(url: str, played: PlayedS3, capsys: pytest.CaptureFixture[str]) -> None:
    assert mno.run(["store", "--store", url, "list"]) == 2
    err = capsys.readouterr().err
    assert "expected a store as s3://bucket/prefix" in err
    assert "pass-word" not in err
    assert not played.requests


# --- writers that die


def die_at(backend: Backend, played: PlayedS3, step: int) -> bool:
    """Begin to store a tree; from its change number ``step`` on nothing arrives. Whether it came so far."""
    count = iter(range(10**6))
    played.before = lambda request: _vanish(request.changes and next(count) >= step)
    try:
        backend.create_tree("darcy/versions/1", TREE)
    except StoreError:
        return False
    finally:
        played.before = lambda _: None
    return True


def _vanish(really: bool) -> None:
    if really:
        raise Refused(403, "AccessDenied")


@pytest.mark.parametrize("step", range(6))
@pytest.mark.parametrize("finisher", ["writer", "sweep"])
def test_a_writer_that_stops_midway_leaves_a_whole_tree_or_none(
    played: PlayedS3, step: int, finisher: str
) -> None:
    backend = open_backend(URL)
    backend.require_atomic_writes()
    assert not die_at(backend, played, step)
    # readers see all or nothing, before anybody tidies up
    seen = stored(backend)
    assert "card.json" not in seen or seen == TREE
    claimed = backend.unfinished() == {"darcy/versions/1"}
    # two files, then the claim
    assert claimed == (step > 2)
    if finisher == "sweep":
        assert backend.sweep() == []
        assert stored(backend) == (TREE if claimed else {})
    if claimed:
        with pytest.raises(TreeExists):
            backend.create_tree("darcy/versions/1", OTHER)
        assert stored(backend) == TREE
    else:
        backend.create_tree("darcy/versions/1", OTHER)
        assert stored(backend) == OTHER


def test_what_dead_writers_staged_is_removed_when_it_is_old(played: PlayedS3) -> None:
    backend = open_backend(URL)
    backend.require_atomic_writes()
    assert not die_at(backend, played, 2)
    assert backend.sweep() == []
    played.age(timedelta(days=2).total_seconds())
    (folder,) = backend.sweep()
    assert folder.startswith(".mno/staging/")
    assert played.things == {}


def test_a_claim_that_nobody_can_finish_blocks_its_number_for_a_day(played: PlayedS3) -> None:
    backend = open_backend(URL)
    backend.require_atomic_writes()
    assert not die_at(backend, played, 3)
    for key in [key for key in played.things if "/staging/" in key]:
        del played.things[key]
    assert backend.sweep() == []
    with pytest.raises(TreeExists):
        backend.create_tree("darcy/versions/1", OTHER)
    played.age(timedelta(days=2).total_seconds())
    assert backend.sweep() == ["darcy/versions/1"]
    backend.create_tree("darcy/versions/1", OTHER)
    assert stored(backend) == OTHER


def test_those_who_finish_a_tree_together_do_not_disturb_each_other(played: PlayedS3) -> None:
    first, second = open_backend(URL), open_backend(URL)
    for each in (first, second):
        each.require_atomic_writes()
    copying, finished = threading.Event(), threading.Event()

    def wait_before_the_card(request: Request) -> None:
        if "x-amz-copy-source" in request.headers and request.key.endswith("card.json"):
            played.before = lambda _: None
            copying.set()
            assert finished.wait(60)

    played.before = wait_before_the_card
    writer = threading.Thread(target=first.create_tree, args=("darcy/versions/1", TREE))
    writer.start()
    assert copying.wait(60)
    assert "card.json" not in stored(second)
    with pytest.raises(TreeExists):
        second.create_tree("darcy/versions/1", OTHER)
    assert stored(second) == TREE
    finished.set()
    writer.join()
    assert stored(second) == TREE
    assert not [key for key in played.things if "/staging/" in key]


def test_a_writer_that_was_slow_does_not_claim_what_may_be_swept() -> None:
    memory = MemoryStore()
    # whatever takes time takes too long
    backend = ObjectBackend("object-memory:", Handles.all_of(memory), timedelta(microseconds=1))
    with pytest.raises(StoreUnreachable, match="publish again"):
        backend.create_tree("darcy/versions/1", TREE)
    assert backend.keys("") == []
    assert backend.unfinished() == set()


def test_files_that_another_tool_left_behind_are_no_version_and_block_a_number_until_gc(
    played: PlayedS3,
) -> None:
    backend = open_backend(URL)
    backend.create_tree("darcy/versions/1", TREE)
    played.things["models/darcy/versions/2/weights.safetensors"] = played.things[
        "models/darcy/versions/1/weights.safetensors"
    ]
    with pytest.raises(TreeExists):
        backend.create_tree("darcy/versions/2", TREE)
    assert "darcy/versions/2" not in backend.unfinished()
    backend.delete("darcy/versions/2")
    backend.create_tree("darcy/versions/2", OTHER)
    assert stored(backend, "darcy/versions/2") == OTHER


def test_what_is_gone_keeps_nothing_else_from_being_removed(tmp_path: Path) -> None:
    # a store that calls it an error when an object is not there
    strict = ObjectBackend("object-folder:", Handles.all_of(LocalStore(tmp_path)))
    (tmp_path / "here.bin").write_bytes(b"1")
    strict._remove(["gone.bin", "here.bin"])
    assert not (tmp_path / "here.bin").exists()
