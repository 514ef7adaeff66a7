"""A front and those it is connected with; the supervisor and the workers are played."""

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import httpx
import numpy as np
import pytest

from service.access.rate import Ledger
from service.processes.control import Link
from service.processes.front import Front
from service.processes.ports import listen_on
from service.settings import Settings
from service.versions.served import ServedVersion
from service.workers.lane import lane_pair
from service.workers.lane_server import HostRunner, LaneServer, Watch
from service.workers.worker import Batch, Solutions


class Worker:
    """A worker in a thread, which answers a number, once its gate is open."""

    def __init__(self, number: float) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.busy = threading.Event()
        self._number = number
        self._watch = Watch()
        self._server = LaneServer(HostRunner(self._compute), self._watch)
        self._thread = threading.Thread(target=self._watch.run)
        self._thread.start()

    def _compute(self, batch: Batch) -> Solutions:
        self.busy.set()
        assert self.gate.wait(60)
        return Solutions(
            {"pressure": np.full_like(batch.fields["permeability"], self._number)}, (0,) * batch.rows
        )

    def lane(self, arena: int) -> socket.socket:
        """The front's end of a lane."""
        ours, theirs = lane_pair()
        self._watch.order(lambda: self._server.add("front 0", theirs, os.dup(arena)))
        return ours

    def end(self) -> None:
        self._watch.drain()
        self._thread.join(60)
        assert not self._thread.is_alive()
        self._server.close()


class Stage:
    """A front that answers, and what its supervisor knows."""

    def __init__(self, **settings: Any) -> None:
        self.arena = -1
        self.heard: list[Mapping[str, Any]] = []
        # whether the supervisor answers nothing
        self.silent = False
        ours, theirs = lane_pair()
        self.supervisor = Link(ours, self._told, self._asked, lambda: None)
        self.link = Link(theirs, lambda *_: None, self._asked, lambda: None)
        self.front = Front(self.link, 0, Settings(grpc=False, **settings), Ledger.private())
        self.listener = listen_on("127.0.0.1", 0)
        self.workers: list[Worker] = []

    def _told(self, message: Mapping[str, Any], fds: Sequence[int]) -> None:
        self.heard.append(message)
        if fds:
            (self.arena,) = fds

    async def _asked(self, what: str, _: Mapping[str, Any]) -> Any:
        if self.silent:
            await asyncio.Event().wait()
        return [] if what == "pages" else None

    def add(self, number: int, costs: Sequence[tuple[int, int, int, float]] = ()) -> Worker:
        version = ServedVersion(
            name="darcy", version=number, problem="darcy", scheme="tpfa-harmonic-v1", grids=((8, 8),)
        )
        worker = Worker(number)
        self.workers.append(worker)
        lane = f"darcy@{number}#{number}"
        self.front.attach(lane, version.model_dump(mode="json"), worker.lane(self.arena), costs)
        return worker

    def route(self, number: int) -> None:
        self.front.route({"darcy": {"name": "darcy", "main": number}})

    async def ask(self, client: httpx.AsyncClient) -> tuple[str, float]:
        body = {"permeability": [[1.0] * 8] * 8, "error": "none"}
        answer = await client.post("/v1/problems/darcy/solve", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["model"], answer.json()["pressure"][0][0]


def play(story: Callable[[Stage, httpx.AsyncClient], Coroutine[Any, Any, None]], **settings: Any) -> None:
    async def told() -> None:
        stage = Stage(**settings)
        while stage.arena < 0:
            await asyncio.sleep(0)
        stage.front.status({"draining": False, "problems": ["something"]})
        await stage.front.listen(stage.listener, None)
        address = f"http://127.0.0.1:{stage.listener.getsockname()[1]}"
        async with httpx.AsyncClient(base_url=address, timeout=60) as client, asyncio.timeout(60):
            await story(stage, client)
        await stage.front.stop(10)
        for worker in stage.workers:
            worker.end()
        stage.link.close()
        stage.supervisor.close()
        await asyncio.sleep(0)

    asyncio.run(told())


def test_names_mean_what_the_supervisor_says() -> None:
    async def story(stage: Stage, client: httpx.AsyncClient) -> None:
        stage.add(1)
        stage.route(1)
        assert await stage.ask(client) == ("darcy@1", 1.0)
        stage.add(2)
        assert await stage.ask(client) == ("darcy@1", 1.0)
        stage.route(2)
        assert await stage.ask(client) == ("darcy@2", 2.0)
        ready = await client.get("/healthz/ready")
        assert ready.json() == {"status": "ready", "problems": ["something"]}
        stage.front.status({"draining": True, "problems": []})
        assert (await client.get("/healthz/ready")).status_code == 503

    play(story)


def test_memory_is_given_back_after_work_and_not_while_nothing_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given_back: list[int] = []
    monkeypatch.setattr("service.processes.front._malloc_trim", given_back.append)

    async def story(stage: Stage, client: httpx.AsyncClient) -> None:
        stage.add(1)
        stage.route(1)
        assert (await client.get("/healthz/ready")).status_code == 200
        stage.front._give_back()
        assert given_back == []
        await stage.ask(client)
        stage.front._give_back()
        assert given_back != []

    play(story)


def test_a_retired_version_answers_what_it_has_while_the_new_one_answers_the_rest() -> None:
    async def story(stage: Stage, client: httpx.AsyncClient) -> None:
        first = stage.add(1)
        stage.route(1)
        first.gate.clear()
        asked = asyncio.ensure_future(stage.ask(client))
        await asyncio.to_thread(first.busy.wait, 60)
        stage.add(2)
        stage.route(2)
        retiring = asyncio.ensure_future(stage.front.retire("darcy@1#1"))
        assert await stage.ask(client) == ("darcy@2", 2.0)
        assert not retiring.done()
        first.gate.set()
        assert await asked == ("darcy@1", 1.0)
        await retiring
        assert (await client.get("/v1/problems/darcy")).json()["models"] == ["darcy@2"]
        # one that this front never had, or has not any more
        await stage.front.retire("darcy@1#1")

    play(story)


def test_who_waits_for_a_version_that_is_given_up_is_told_to_come_again() -> None:
    async def story(stage: Stage, client: httpx.AsyncClient) -> None:
        first = stage.add(1)
        stage.route(1)
        first.gate.clear()
        body = {"permeability": [[1.0] * 8] * 8, "error": "none"}
        asked = asyncio.ensure_future(client.post("/v1/problems/darcy/solve", json=body))
        await asyncio.to_thread(first.busy.wait, 60)
        stage.route(2)
        retiring = asyncio.ensure_future(stage.front.retire("darcy@1#1"))
        await asyncio.sleep(0)
        await stage.front.abandon("darcy@1#1")
        answer = await asked
        assert answer.status_code == 503
        assert "Retry-After" in answer.headers
        await retiring
        first.gate.set()

    play(story)


def test_the_next_process_takes_the_place_of_one_that_died() -> None:
    async def story(stage: Stage, client: httpx.AsyncClient) -> None:
        first = stage.add(1)
        stage.route(1)
        assert await stage.ask(client) == ("darcy@1", 1.0)
        first.end()
        stage.workers.remove(first)
        asked = asyncio.ensure_future(stage.ask(client))
        await asyncio.sleep(0)
        stage.add(1)
        assert await asked == ("darcy@1", 1.0)

    play(story)


def test_a_model_without_a_process_is_not_ready() -> None:
    async def story(stage: Stage, client: httpx.AsyncClient) -> None:
        first = stage.add(1)
        stage.route(1)
        assert (await client.get("/v2/models/darcy/ready")).status_code == 200
        first.end()
        stage.workers.remove(first)
        while (answer := await client.get("/v2/models/darcy/ready")).status_code == 200:
            pass
        assert answer.status_code == 503
        assert "Retry-After" in answer.headers
        stage.add(1)
        assert (await client.get("/v2/models/darcy/ready")).status_code == 200

    play(story)


def test_what_a_version_measured_is_known_from_its_first_request_on() -> None:
    async def story(stage: Stage, client: httpx.AsyncClient) -> None:
        first = stage.add(1, costs=[(8, 8, 1, 40.0), (8, 8, 2, 80.0)])
        stage.route(1)
        first.gate.clear()
        asked = asyncio.ensure_future(stage.ask(client))
        await asyncio.to_thread(first.busy.wait, 60)
        body = {"permeability": [[1.0] * 8] * 8, "error": "none", "timeout_ms": 10_000}
        assert (await client.post("/v1/problems/darcy/solve", json=body)).status_code == 429
        first.gate.set()
        await asked

    play(story)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("GET", "/v1/models/darcy"),
        ("GET", "/metrics"),
        ("POST", "/v2/repository/models/darcy/load"),
        ("POST", "/v2/repository/models/darcy/unload"),
    ],
)
def test_a_supervisor_that_hangs_holds_nobody(
    monkeypatch: pytest.MonkeyPatch, method: str, path: str
) -> None:
    for bound in ("PAGES_SECONDS", "STORES_SECONDS"):
        monkeypatch.setattr(f"service.processes.front.{bound}", 0.01)

    async def story(stage: Stage, client: httpx.AsyncClient) -> None:
        stage.silent = True
        answer = await client.request(method, path)
        assert answer.status_code == 503
        assert "Retry-After" in answer.headers

    play(story, load_seconds=0.01)
