"""Versions that come and go while requests run: nobody waits for it, nobody is failed by it."""

import io
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from server_process import Server, running

from model_store import Store, open_store
from model_store.alias import AliasTarget, Canary
from service.client import Client

pytestmark = pytest.mark.slow

NPY = "application/x-npy"
SOLVE = "/v1/problems/darcy/solve?error=none"
# how long anything may take on a machine that is busy with other things [s]
PATIENCE = 120


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, store_url: str) -> Store:
    """``darcy`` in four versions, of which production is the first; the fourth is damaged."""
    store = open_store(f"file:{tmp_path_factory.mktemp('swap') / 'store'}")
    loaded = open_store(store_url).load("darcy", 1)
    for _ in range(4):
        store.publish("darcy", loaded.surrogate.state_dict(), loaded.card)
    weights = Path(store.url.removeprefix("file:")) / "darcy/versions/4/weights.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    store.set_alias("darcy", "production", 1, expected=None)
    return store


@pytest.fixture(scope="module")
def server(store: Store) -> Iterator[Server]:
    # polled so seldom that only what tells the service at once moves anything
    with running("--store", store.url, "--models", "darcy", MNO_ALIAS_POLL_SECONDS="3600") as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.address, timeout=PATIENCE) as client:
        yield client


@pytest.fixture
def move(server: Server, store: Store, client: httpx.Client) -> Iterator[Callable[..., None]]:
    """Moves production, and tells the service; after the test it is at the first version again."""

    def move(target: int | AliasTarget) -> None:
        store.set_alias("darcy", "production", target, store.targets("darcy")["production"])
        server.process.send_signal(signal.SIGHUP)

    yield move
    move(1)
    until(lambda: answered_by(client) == "darcy@1" and loaded(client) == [1] and troubles(client) == [])


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "did not come true"


def body(side: int = 32) -> bytes:
    file = io.BytesIO()
    np.save(file, np.ones((side, side), dtype=np.float32))
    return file.getvalue()


def solve(client: httpx.Client, **headers: str) -> httpx.Response:
    return client.post(SOLVE, content=body(), headers={"Content-Type": NPY, "Accept": NPY, **headers})


def answered_by(client: httpx.Client) -> str:
    answer = solve(client)
    assert answer.status_code == 200, answer.text
    return answer.headers["Mno-Model"]


def loaded(client: httpx.Client) -> list[int]:
    found: list[int] = client.get("/v1/models/darcy").json()["loaded"]
    return found


def troubles(client: httpx.Client) -> list[str]:
    answer = client.get("/healthz/ready")
    assert answer.status_code == 200
    found: list[str] = answer.json().get("problems", [])
    return found


class Load:
    """Clients that ask one after the other as fast as they are answered, half of them over gRPC."""

    def __init__(self, server: Server, clients: int = 4) -> None:
        self.models: Counter[str] = Counter()
        self.failed: list[str] = []
        self._addresses = [server.address, f"grpc://{server.grpc_address}"] * (clients // 2)
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(each,)) for each in self._addresses]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, address: str) -> None:
        field = np.ones((32, 32), dtype=np.float32)
        # nothing is asked a second time: every failure counts
        with Client(address, timeout=PATIENCE, retries=0) as client:
            while not self._over.is_set():
                try:
                    answer = client.solve("darcy", field, error="none")
                except Exception as error:  # whatever it is, nobody was to notice
                    self.failed.append(f"{address}: {error!r}")
                else:
                    self.models[str(answer.model)] += 1


def test_twenty_swaps_under_load_fail_no_request(
    server: Server, client: httpx.Client, move: Callable[..., None]
) -> None:
    with Load(server) as load:
        for turn in range(20):
            wanted = turn % 3 + 1
            move(wanted)
            until(lambda wanted=wanted: answered_by(client) == f"darcy@{wanted}")  # type: ignore[misc]
    assert load.failed == []
    assert set(load.models) == {"darcy@1", "darcy@2", "darcy@3"}
    # those that were replaced are gone
    until(lambda: set(server.named()) == {"zygote", "steward", f"darcy@{wanted}", "numerics", "front"})


def test_a_version_that_does_not_load_leaves_the_old_one_serving_and_is_spoken_of(
    server: Server, client: httpx.Client, store: Store, move: Callable[..., None]
) -> None:
    move(2)
    until(lambda: answered_by(client) == "darcy@2")
    with Load(server) as load:
        move(4)
        until(lambda: troubles(client) != [] and bool(load.models))
    assert load.failed == []
    assert set(load.models) == {"darcy@2"}
    (trouble,) = troubles(client)
    assert trouble.startswith("darcy@4 does not load: ")
    assert "damaged" in trouble
    # in words that say nothing about the machine
    assert store.url.removeprefix("file:") not in trouble
    page = client.get("/metrics").text
    assert 'mno_model_loads_total{model="darcy",outcome="failed",process="supervisor"}' in page
    states = {each["version"]: each for each in index(client)}
    assert states["4"]["state"] == "UNAVAILABLE"
    assert "damaged" in states["4"]["reason"]
    assert states["2"]["state"] == "READY"


def index(client: httpx.Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.post("/v2/repository/index").json()
    return [each for each in found if each["name"] == "darcy"]


def test_going_back_is_moving_the_alias_back(client: httpx.Client, move: Callable[..., None]) -> None:
    for number in (2, 1):
        move(number)
        until(lambda number=number: answered_by(client) == f"darcy@{number}")  # type: ignore[misc]


def test_a_canary_gets_its_share_and_the_same_clients_each_time(
    client: httpx.Client, move: Callable[..., None]
) -> None:
    move(AliasTarget(version=1, canary=Canary(version=2, weight=0.25)))
    until(lambda: loaded(client) == [1, 2])

    def chosen(key: int) -> str:
        return solve(client, **{"Mno-Key": f"client-{key}"}).headers["Mno-Model"]

    until(lambda: "darcy@2" in {chosen(key) for key in range(20)})
    first, second = ([chosen(key) for key in range(200)] for _ in range(2))
    assert first == second
    # four standard deviations
    assert abs(first.count("darcy@2") - 50) < 25


def test_a_shadow_is_compared_and_answers_nobody(client: httpx.Client, move: Callable[..., None]) -> None:
    move(AliasTarget(version=1, shadow=3))
    until(lambda: loaded(client) == [1, 3])
    count = 'mno_shadow_relative_l2_count{model="darcy",process="front-0",shadow="3",version="1"}'

    def compared() -> bool:
        assert answered_by(client) == "darcy@1"
        return count in client.get("/metrics").text

    until(compared)


def test_what_is_unloaded_is_not_served_until_it_is_loaded_again(client: httpx.Client) -> None:
    assert client.post("/v2/repository/models/darcy/unload").status_code == 200
    until(lambda: solve(client).status_code == 404)
    assert client.post("/v2/repository/models/darcy/load").status_code == 200
    # loading answers when the model does
    assert answered_by(client) == "darcy@1"
    assert client.post("/v2/repository/models/navier/load").status_code in (400, 404)
    assert client.post("/v2/repository/models/navier/unload").status_code in (400, 404)


def test_a_version_of_its_own_can_be_loaded_beside(client: httpx.Client) -> None:
    assert client.post("/v2/repository/models/darcy@3/load").status_code == 200
    assert loaded(client) == [1, 3]
    assert client.post("/v2/repository/models/darcy@3/unload").status_code == 200
    until(lambda: loaded(client) == [1])


def test_aliases_are_followed_without_being_told(store: Store) -> None:
    with (
        running("--store", store.url, "--models", "darcy", MNO_ALIAS_POLL_SECONDS="0.1") as server,
        httpx.Client(base_url=server.address, timeout=PATIENCE) as client,
    ):
        assert answered_by(client) == "darcy@1"
        store.set_alias("darcy", "production", 2, expected=1)
        try:
            until(lambda: answered_by(client) == "darcy@2")
            # whatever else happens to the file, what was meant last is served
            aliases = Path(store.url.removeprefix("file:")) / "darcy/aliases.json"
            whole = aliases.read_bytes()
            aliases.chmod(0o644)
            aliases.write_text("{")
            until(lambda: troubles(client) != [])
            assert answered_by(client) == "darcy@2"
            aliases.write_bytes(whole)
            until(lambda: troubles(client) == [])
        finally:
            store.set_alias("darcy", "production", 1, expected=2)
        assert server.stop() == 0


@pytest.mark.parametrize("which", ["darcy@1", "numerics", "front", "steward", "zygote"])
def test_whatever_dies_is_started_again_and_requests_are_answered(
    server: Server, client: httpx.Client, which: str
) -> None:
    def pids() -> dict[str, list[int]]:
        found = server.named()
        return found if set(found) == {"zygote", "steward", "darcy@1", "numerics", "front"} else {}

    until(lambda: bool(pids()))
    before = pids()
    os.kill(before[which][0], signal.SIGKILL)
    bound = SOLVE.replace("none", "bound")

    def answered() -> bool:
        try:
            with httpx.Client(base_url=server.address, timeout=PATIENCE) as another:
                answers = [
                    another.post(bound, content=body(), headers={"Content-Type": NPY}),
                    # the steward reads the stores for this
                    another.get("/v1/models/darcy"),
                ]
        except httpx.HTTPError:
            return False
        assert {answer.status_code for answer in answers} <= {200, 503}
        return all(answer.status_code == 200 for answer in answers)

    until(answered)
    until(lambda: bool(pids()))
    # with the zygote go those that it forked
    gone = {"zygote", "steward", "darcy@1"} if which == "zygote" else {which}
    assert {name for name, each in pids().items() if each != before[name]} == gone
    with Client(f"grpc://{server.grpc_address}", timeout=PATIENCE) as over_grpc:
        assert over_grpc.solve("darcy", np.ones((32, 32), dtype=np.float32)).model == "darcy@1"
    # a single death is nothing to speak of
    until(lambda: troubles(client) == [])
