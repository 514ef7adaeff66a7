"""A service whose store is a bucket: it goes on while that is away, and starts without it."""

import io
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import seaweed
from played_s3 import PlayedS3, Refused, Request
from played_s3 import running as playing
from server_process import Server, running

from model_store import Store, open_catalog, open_store
from service.check import check
from service.processes.steward import table
from service.settings import InvalidSettings, Settings

NPY = "application/x-npy"
SOLVE = "/v1/problems/darcy/solve?error=none"
# how long anything may take on a machine that is busy with other things [s]
PATIENCE = 120
BUCKET = f"s3://{seaweed.BUCKET}/models"


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Iterator[PlayedS3]:
    with playing() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server


def test_a_store_that_would_let_publishers_overwrite_each_other_stops_the_start(played: PlayedS3) -> None:
    played.ignored = {"if-none-match"}
    with pytest.raises(InvalidSettings, match="ignores If-None-Match"):
        check(Settings(store=BUCKET))


def test_a_store_that_can_only_be_read_is_enough(played: PlayedS3, store_url: str) -> None:
    store = open_store(BUCKET)
    source = open_store(store_url)
    source.copy(source.resolve("darcy"), store)
    played.ignored = {"if-none-match"}
    played.before = only_reading
    check(Settings(store=BUCKET, models=("darcy",)))


@pytest.mark.parametrize("others", [False, True])
def test_what_was_served_is_wanted_still_where_nothing_is_remembered(
    played: PlayedS3, store_url: str, others: bool
) -> None:
    source = open_store(store_url)
    source.copy(source.resolve("darcy"), open_store(BUCKET))
    catalog = open_catalog(BUCKET)
    wanted: dict[str, Any] = {"wanted": [] if others else ["darcy"], "others": others, "without": []}
    before = table(catalog, **wanted, stores_of={})
    assert before["stores_of"]["darcy"] == BUCKET
    assert before["stale"] == ()
    played.before = away
    after = table(catalog, **wanted, stores_of=before["stores_of"])
    # not the built-in model of this name
    assert after["table"] == {}
    assert "HTTP 500" in after["broken"]["darcy"]
    (stale,) = after["stale"]
    assert stale.startswith(f"versions and aliases are the last known ones: {BUCKET} cannot be reached")


def away(_: Request) -> None:
    raise Refused(500, "InternalError")


def only_reading(request: Request) -> None:
    if request.changes:
        raise Refused(403, "AccessDenied")


# --- a real server, and a real service


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[seaweed.Seaweed]:
    """One that the test may stop."""
    with seaweed.running(tmp_path) as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def store(bucket: seaweed.Seaweed, store_url: str) -> Store:  # noqa: ARG001
    """``darcy@1`` and ``darcy@2`` in a bucket; production is the first."""
    store, loaded = open_store(BUCKET), open_store(store_url).load("darcy", 1)
    for _ in range(2):
        store.publish("darcy", loaded.surrogate.state_dict(), loaded.card)
    store.set_alias("darcy", "production", 1, expected=None)
    return store


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "did not come true"


def answered_by(client: httpx.Client) -> str:
    file = io.BytesIO()
    np.save(file, np.ones((32, 32), dtype=np.float32))
    headers = {"Content-Type": NPY, "Accept": NPY}
    answer = client.post(SOLVE, content=file.getvalue(), headers=headers)
    # 503: its worker is being started
    return answer.headers["Mno-Model"] if answer.status_code == 200 else str(answer.status_code)


def troubles(client: httpx.Client) -> list[str]:
    answer = client.get("/healthz/ready")
    assert answer.status_code == 200
    found: list[str] = answer.json()["problems"]
    return found


def is_reachable(client: httpx.Client) -> bool:
    (line,) = [
        line for line in client.get("/metrics").text.splitlines() if line.startswith("mno_store_reachable{")
    ]
    return line.endswith(" 1.0")


def serving(cache: Path, *arguments: str) -> AbstractContextManager[Server]:
    """``mno serve`` on the bucket, which the environment says where to find."""
    variables = {"MNO_ALIAS_POLL_SECONDS": "0.5", "MNO_STORE_CACHE": str(cache)}
    return running("--store", BUCKET, *arguments, **variables)


@pytest.mark.slow
def test_a_service_goes_on_while_its_store_is_away_and_follows_it_again(
    bucket: seaweed.Seaweed, store: Store, tmp_path: Path
) -> None:
    with (
        serving(tmp_path / "cache") as server,
        httpx.Client(base_url=server.address, timeout=PATIENCE) as client,
    ):
        assert answered_by(client) == "darcy@1"
        assert troubles(client) == []
        assert is_reachable(client)
        described = client.get("/v1/models/darcy").json()
        bucket.stop()
        until(lambda: troubles(client) != [])
        (trouble,) = troubles(client)
        assert trouble == "versions and aliases are the last known ones: ... cannot be reached: no connection"
        assert not is_reachable(client)
        assert answered_by(client) == "darcy@1"
        # a worker that dies now is started again from what is kept here
        (worker,) = server.named()["darcy@1"]
        os.kill(worker, signal.SIGKILL)
        until(
            lambda: answered_by(client) == "darcy@1" and server.named().get("darcy@1") not in (None, [worker])
        )
        # a steward, too
        (steward,) = server.named()["steward"]
        os.kill(steward, signal.SIGKILL)
        until(lambda: client.get("/v1/models/darcy").status_code == 200 and troubles(client) == [trouble])
        assert client.get("/v1/models/darcy").json() == described
        # what nobody asked for before the store went away
        assert client.get("/v1/models/wave").status_code == 503

        bucket.start()
        store.set_alias("darcy", "production", 2, expected=1)
        until(lambda: answered_by(client) == "darcy@2")
        until(lambda: troubles(client) == [])
        assert is_reachable(client)
        assert server.stop() == 0


@pytest.mark.slow
def test_a_service_starts_while_its_store_is_away_with_what_it_knew_last(
    bucket: seaweed.Seaweed, store: Store, tmp_path: Path
) -> None:
    with serving(tmp_path / "cache", "--models", "darcy") as server:
        assert server.stop() == 0
    bucket.stop()
    with (
        serving(tmp_path / "cache", "--models", "darcy") as server,
        httpx.Client(base_url=server.address, timeout=PATIENCE) as client,
    ):
        assert answered_by(client) == "darcy@1"
        assert "last known" in " ".join(troubles(client))
        bucket.start()
        store.set_alias("darcy", "production", 2, expected=1)
        until(lambda: answered_by(client) == "darcy@2")
        until(lambda: troubles(client) == [])
        assert server.stop() == 0
