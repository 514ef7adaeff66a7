"""Publishers that race on a real S3 server, and publishers that are killed between any two requests."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
from played_s3 import LostAnswer, PlayedS3, Request
from torch import Tensor

import mno
from model_store import Card, Store, open_store

ROOT = Path(__file__).parents[2]
ROUNDS = 200
URL = "s3://bucket/models"
# a publisher without the seconds that torch takes to be imported
PUBLISHER = """
import sys
from pathlib import Path
from model_store.backends import TreeExists, open_backend

files = {path.name: path.read_bytes() for path in Path(sys.argv[2]).iterdir()}
backend = open_backend(sys.argv[1])
for number in range(1, 1000):
    try:
        backend.create_tree(f"darcy/versions/{number}", files)
    except TreeExists:
        continue
    break
"""

pytestmark = pytest.mark.slow


# 400 versions, and a list of all of them before each
@pytest.mark.timeout(3600)
def test_two_publishers_racing_lose_double_and_halve_nothing(
    bucket: str, state: Mapping[str, Tensor], card: Card
) -> None:
    start = threading.Barrier(2)
    given: dict[str, int] = {}
    failures: list[BaseException] = []

    def publish(name: str) -> None:
        store = open_store(bucket)
        try:
            for number in range(ROUNDS):
                what = f"{name} {number}"
                start.wait(60)
                given[what] = store.publish("darcy", state, card.model_copy(update={"description": what}))
        except BaseException as error:
            failures.append(error)
            start.abort()

    racers = [threading.Thread(target=publish, args=(name,)) for name in ("first", "second")]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert not failures, failures
    store = open_store(bucket)
    assert store.versions("darcy") == list(range(1, 2 * ROUNDS + 1))
    # each is the one that its publisher was told, and there once
    assert {store.card("darcy", number).description: number for number in given.values()} == given
    for number in given.values():
        store.verify("darcy", number)
    # both won sometimes, or it was no race
    first = [min(("first", "second"), key=lambda name: given[f"{name} {turn}"]) for turn in range(ROUNDS)]
    assert set(first) == {"first", "second"}
    assert store.gc() == []
    # nothing hidden is left but the claims
    hidden = store._backend._all_keys(".mno")
    assert len(hidden) == 2 * ROUNDS
    assert all(key.startswith(".mno/claims/") for key in hidden)


@pytest.fixture
def files(tmp_path: Path, state: Mapping[str, Tensor], card: Card) -> Path:
    """The files of a version."""
    open_store(str(tmp_path / "store")).publish("darcy", state, card, {"notes.txt": b"of a model"})
    return tmp_path / "store/darcy/versions/1"


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_publisher_killed_at_any_request_leaves_whole_versions_only(
    played: PlayedS3, files: Path, when: str, state: Mapping[str, Tensor], card: Card
) -> None:
    store, versions, step = open_store(URL), list[int](), 0
    while not killed_publisher(played, files, step, when):
        found = store.versions("darcy")
        assert found == list(range(1, len(found) + 1))
        assert set(versions) <= set(found)
        for number in found:
            store.verify("darcy", number)
        versions, step = found, step + 1
    # conditions are tried, three files and a claim are written, three copied, and the rest is cleared away
    assert step > 8
    # those that died after their claim had published; the next publisher finished what they began
    done = store.publish("darcy", state, card)
    assert store.versions("darcy") == list(range(1, done + 1))
    assert 1 < done < step
    for number in store.versions("darcy"):
        store.verify("darcy", number)
    played.age(48 * 3600)
    assert all(leftover.startswith((".mno/staging/", ".mno/probes/")) for leftover in store.gc())
    assert store.gc() == []
    assert store.versions("darcy") == list(range(1, done + 1))


def killed_publisher(played: PlayedS3, files: Path, step: int, when: str) -> bool:
    """Run a publisher that is killed at its change number ``step``; whether it was done before."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", PUBLISHER, URL, files], env=environment) as process:
        changes = iter(range(10**6))

        def kill(request: Request) -> None:
            if request.changes and next(changes) >= step:
                process.send_signal(signal.SIGKILL)
                raise LostAnswer

        setattr(played, when, kill)
        try:
            status = process.wait()
        finally:
            setattr(played, when, lambda _: None)
    assert status in (0, -signal.SIGKILL)
    return status == 0


def test_versions_go_from_a_folder_to_s3_and_back(
    bucket: str, tmp_path: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> str:
        assert mno.run(["store", *arguments]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    here, there = f"file:{tmp_path / 'store'}", f"file:{tmp_path / 'there'}"
    assert run("--store", here, "copy", "darcy", "--to", bucket).endswith(f"is darcy@1 of {bucket}\n")
    assert run("--store", bucket, "alias", "darcy", "production", "1") == "darcy@production: new -> 1\n"
    assert run("--store", bucket, "verify") == "darcy@1: ok\n"
    assert run("--store", bucket, "gc") == "0 leftovers removed\n"
    assert run("--store", bucket, "list").splitlines()[1].split()[:2] == ["darcy@1", "production"]
    run("--store", bucket, "copy", "darcy@production", "--to", there)
    copied = tmp_path / "there/darcy/versions/1"
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == {
        path.name: path.read_bytes() for path in files.iterdir()
    }


def test_what_any_tool_copies_is_a_store(
    bucket: str, tmp_path: Path, state: Mapping[str, Tensor], card: Card
) -> None:
    store = open_store(bucket)
    store.publish("darcy", state, card)
    store.set_alias("darcy", "production", 1, expected=None)
    backend = store._backend
    for key in backend._all_keys(""):
        path = tmp_path / "synced" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(backend.get(key) if not key.startswith(".") else b"")
    copied: Store = open_store(str(tmp_path / "synced"))
    assert str(copied.resolve("darcy@production")) == "darcy@1"
    copied.verify("darcy", 1)
    assert copied.publish("darcy", state, card) == 2
