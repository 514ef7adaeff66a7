"""Fields as pictures, drawn and served."""

import asyncio
import contextlib
import io
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from fastapi import FastAPI
from numpy.typing import NDArray
from PIL import Image
from server_process import running

from model_store import Catalog
from service.batching.batcher import Batcher, BatchRules
from service.errors import NotAvailableYet, Overloaded, WorkerLost
from service.http import picture
from service.http.picture import Pictures, Subject, draw
from service.http.routes import create_app
from service.settings import Limits
from service.solver import Queues, Solver
from service.versions.local import LocalRepository
from service.versions.models import Models

SOLVE = "/v1/problems/darcy/solve"
PNG = {"Accept": "image/png"}


def pixels(data: bytes) -> NDArray[np.float64]:
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"), dtype=np.float64)


def field_of(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """The part of a picture that shows the field: what is within the dark frame on the left."""
    dark = image.sum(axis=2) < 60
    rows = np.flatnonzero(dark.mean(axis=1) > 0.5)
    columns = np.flatnonzero(dark[rows[0] : rows[-1], : int(0.84 * image.shape[1])].mean(axis=0) > 0.95)
    return image[rows[0] + 2 : rows[-1] - 1, columns[0] + 2 : columns[-1] - 1]


def test_y_points_upwards_and_axes_are_equal() -> None:
    values = np.zeros((16, 32))
    values[12:, :8] = 1.0  # large y, small x: red; the rest is white
    values[0, -1] = -1.0
    shown = field_of(pixels(draw(Subject(values, "hu", "m^2/s", extent=(1.0, 2.0)))))
    height, width = shown.shape[:2]
    assert width == pytest.approx(2 * height, rel=0.02)
    upper_left, lower_left, upper_right = shown[5, 5], shown[-5, 5], shown[5, -5]
    assert upper_left[0] > 80 > upper_left[1:].max()
    assert min(lower_left.min(), upper_right.min()) > 200


@pytest.mark.parametrize(
    ("values", "colors"),
    [
        (np.linspace(1, 2, 64).reshape(8, 8), picture.COLORS),
        (np.geomspace(1, 1e6, 64).reshape(8, 8), picture.COLORS),
        (np.linspace(-1, 2, 64).reshape(8, 8), picture.SIGNED_COLORS),
        (np.full((8, 8), np.nan), picture.COLORS),
        (np.zeros((8, 8)), picture.COLORS),
    ],
)
def test_the_colors_fit_the_numbers(values: NDArray[np.float64], colors: str) -> None:
    chosen, scale = picture._scale(values)
    assert chosen == colors
    assert len(draw(Subject(values, "h", "m"))) > 1000
    if colors == picture.SIGNED_COLORS:
        assert scale.vmin == -scale.vmax


def test_logarithms_are_for_fields_that_are_small_in_many_places() -> None:
    y, x = np.meshgrid(np.linspace(0, 1, 66)[1:-1], np.linspace(0, 1, 66)[1:-1], indexing="ij")
    # a pressure that falls to zero at the walls, and a permeability
    pressure, permeability = x * (1 - x) * y * (1 - y), np.exp(8 * np.sin(5 * x + 3 * y))
    assert pressure.max() > picture.LOGARITHMIC_CONTRAST * pressure.min() > 0
    names = [type(picture._scale(values)[1]).__name__ for values in (pressure, permeability)]
    assert names == ["Normalize", "LogNorm"]


def test_the_service_answers_with_a_picture(http: httpx.Client, permeability: NDArray[np.float32]) -> None:
    answer = http.post(SOLVE, json={"permeability": permeability[0].tolist()}, headers=PNG)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert answer.headers["Mno-Model"] == "darcy@1"
    assert '"upper"' in answer.headers["Mno-Error-Estimate"]
    image = pixels(answer.content)
    assert image.shape[0] > 400
    assert image.shape[1] > 400


def test_a_batch_has_no_picture(http: httpx.Client, permeability: NDArray[np.float32]) -> None:
    answer = http.post(SOLVE, json={"permeability": permeability.tolist()}, headers=PNG)
    assert (answer.status_code, answer.json()["rule"]) == (422, "rank")


def test_a_service_without_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    # what an import system looks at first: None means that there is no such module
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(NotAvailableYet, match="pip install matplotlib"), Pictures().place():
        pass


def test_a_few_may_wait_for_a_picture() -> None:
    pictures = Pictures()
    with contextlib.ExitStack() as places:
        for _ in range(picture.MOST_WANTED):
            places.enter_context(pictures.place())
        with pytest.raises(Overloaded) as refusal, pictures.place():
            pass
        assert refusal.value.retry_after >= 1
    with pictures.place():
        pass


class Hand(Executor):
    """Draws when the test says so."""

    def __init__(self) -> None:
        self.begun: list[Future[bytes]] = []

    def submit(self, function: Any, /, *arguments: Any, **_: Any) -> "Future[Any]":
        assert function is draw
        assert isinstance(arguments[0], Subject)
        self.begun.append(Future())
        # nobody takes back what a process is at
        self.begun[-1].set_running_or_notify_cancel()
        return self.begun[-1]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


def test_nothing_is_drawn_for_those_who_left_before_their_turn() -> None:
    async def ask() -> None:
        hand = Hand()
        pictures = Pictures(lambda: hand)
        subject = Subject(np.zeros((2, 2)), "h", "m")
        waiting = [asyncio.create_task(pictures.draw(subject)) for _ in range(4)]
        await until(lambda: len(hand.begun) == 1)
        for task in waiting[:3]:
            task.cancel()
        await asyncio.wait(waiting[:3])
        # the first one's is still being drawn
        await asyncio.sleep(0)
        assert len(hand.begun) == 1
        hand.begun[0].set_result(b"for nobody")
        await until(lambda: len(hand.begun) == 2)
        hand.begun[1].set_result(b"picture")
        assert await waiting[3] == b"picture"
        assert len(hand.begun) == 2

    asyncio.run(ask())


def test_a_process_that_died_is_started_again() -> None:
    async def ask() -> None:
        hands = [Hand(), Hand()]
        pictures = Pictures(iter(hands).__next__)
        subject = Subject(np.zeros((2, 2)), "h", "m")
        first = asyncio.create_task(pictures.draw(subject))
        await until(lambda: len(hands[0].begun) == 1)
        hands[0].begun[0].set_exception(BrokenExecutor("killed"))
        with pytest.raises(WorkerLost):
            await first
        second = asyncio.create_task(pictures.draw(subject))
        await until(lambda: len(hands[1].begun) == 1)
        hands[1].begun[0].set_result(b"picture")
        assert await second == b"picture"

    asyncio.run(ask())


@dataclass
class Gallery:
    """An application whose reference solver and whose pictures are the test's."""

    worker: Any
    hand: Hand
    app: FastAPI

    async def post(self, field: NDArray[Any], **options: Any) -> httpx.Response:
        body = {"permeability": field.tolist(), "method": "solver", "error": "none", **options}
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            async with asyncio.timeout(30):
                return await client.post(SOLVE, json=body, headers=PNG)


def gallery(worker: Any, **limits: int) -> Gallery:
    hand, models, chosen = Hand(), Models(), Limits(**limits)
    queue = Batcher(worker, BatchRules(max_batch=8, queue_seconds=100.0))
    solver = Solver(models, Queues(queue, queue, queue), chosen)
    repository = LocalRepository(Catalog([]), models, lambda _: queue)
    return Gallery(
        worker, hand, create_app(solver, models, repository, chosen, pictures=Pictures(lambda: hand))
    )


def test_a_picture_keeps_the_deadline_of_its_request(gated_worker: Any) -> None:
    async def ask() -> None:
        shown = gallery(gated_worker())
        shown.worker.gate.set()
        answer = await shown.post(np.ones((8, 8)), timeout_ms=300)
        assert (answer.status_code, answer.json()["type"]) == (504, "deadline-exceeded")

    asyncio.run(ask())


def test_what_has_no_picture_is_not_computed(gated_worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> None:
        shown = gallery(gated_worker())
        answer = await shown.post(np.ones((2, 8, 8)))
        assert (answer.status_code, answer.json()["rule"]) == (422, "rank")
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        answer = await shown.post(np.ones((8, 8)))
        assert (answer.status_code, answer.json()["type"]) == (501, "not-available-yet")
        assert shown.worker.batches == []

    asyncio.run(ask())


def test_who_wants_a_picture_too_many_is_told_before_it_is_computed(gated_worker: Any) -> None:
    async def ask() -> None:
        shown = gallery(gated_worker())
        waiting = [
            asyncio.create_task(shown.post(np.full((8, 8), 1.0 + n))) for n in range(picture.MOST_WANTED)
        ]
        await until(shown.worker.busy.is_set)
        answer = await shown.post(np.full((8, 8), 100.0))
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")
        shown.worker.gate.set()
        for n in range(len(waiting)):
            await until(lambda count=n: len(shown.hand.begun) > count)  # type: ignore[misc]
            shown.hand.begun[n].set_result(b"picture")
        assert {(await each).content for each in waiting} == {b"picture"}
        assert all(batch.fields["permeability"].max() < 50 for batch in shown.worker.batches)

    asyncio.run(ask())


def test_a_client_that_leaves_waits_for_no_picture(gated_worker: Any) -> None:
    async def ask() -> None:
        shown = gallery(gated_worker())
        shown.worker.gate.set()
        body = orjson.dumps({"permeability": np.ones((8, 8)).tolist(), "method": "solver", "error": "none"})
        left = asyncio.Event()
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])
        sent: list[Any] = []

        async def receive() -> Any:
            for message in messages:
                return message
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"content-type", b"application/json"), (b"accept", b"image/png")]
        scope = {"type": "http", "method": "POST", "path": SOLVE, "query_string": b"", "headers": headers}
        asked = asyncio.create_task(shown.app(scope, receive, send))
        await until(lambda: len(shown.hand.begun) == 1)
        left.set()
        await asyncio.wait_for(asked, 20)
        assert sent[0]["status"] == 499

    asyncio.run(ask())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_whoever_draws_ends_with_the_service(number: signal.Signals) -> None:
    with running(MNO_MODELS="darcy") as server:
        field = np.ones((128, 128)).tolist()
        answer = httpx.post(server.address + SOLVE, json={"permeability": field}, headers=PNG, timeout=120)
        assert answer.headers["content-type"] == "image/png"
        drawing = {pid for pid, command in server.tree().items() if "multiprocessing" in command}
        assert drawing
        server.process.send_signal(number)
        server.process.wait(60)
        end = time.monotonic() + 30
        while any(map(runs, drawing)):
            assert time.monotonic() < end
            time.sleep(0.05)


def runs(pid: int) -> bool:
    # one that ended, and that nobody asked how, has no command line
    with contextlib.suppress(OSError):
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    return False
