"""Thousands of requests while everything changes: versions swap, processes die, clients leave."""

import asyncio
import io
import os
import random
import re
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import grpc.aio
import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from server_process import Server, running
from small_models import SMALL, small_card

from model_store import Card, Store, open_store
from operators import surrogate_from_config
from service.client import AsyncClient, ServiceError
from service.pb import solver_pb2 as pb

REQUESTS, CLIENTS, SWAPS = 9_000, 60, 20
# rollouts of a client for as many requests of another one, and their frames
ROLLOUTS, STEPS = 0.1, 24
# what is killed, one after the other; darcy: one of its versions
KILLS = (
    "darcy", "steward", "darcy", "shallow_water@1", "darcy", "zygote", "darcy", "front", "numerics", "darcy",
    "shallow_water@1",
)  # fmt: skip
# how gRPC calls a connection that broke while it sent
BROKEN = "Internal error from Core"
# requests that a client has under way in a stream
WINDOW = 4
STREAM = "/mno.v1.Solver/SolveStream"
NPY = "application/x-npy"
EXTENT = (1.0, 1.0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, water_card: Card) -> Store:
    """``shallow_water@1``, and ``darcy@1`` and ``darcy@2``, which answer differently; the first answers."""
    store = open_store(f"file:{tmp_path_factory.mktemp('chaos') / 'store'}")
    card = small_card()
    for seed in (1, 2):
        torch.manual_seed(seed)
        store.publish("darcy", surrogate_from_config(SMALL).state_dict(), card)
    store.set_alias("darcy", "production", 1, expected=None)
    water = water_card.model_copy(update={"grids": ((16, 24),)})
    store.publish("shallow_water", surrogate_from_config(water.operator).state_dict(), water)
    return store


@pytest.fixture(scope="module")
def server(store: Store) -> Iterator[Server]:
    with running(
        "--store", store.url, "--models", "darcy,shallow_water", MNO_ALIAS_POLL_SECONDS="600"
    ) as server:
        yield server


@dataclass
class Tally:
    """What became of the requests.

    Attributes:
        kinds: ``right``, ``refused`` (come again), ``left`` (the client did), ``broken`` (the connection).
        streams: of requests, that broke; what had no answer was asked again in the next one.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    streams: int = 0

    @property
    def total(self) -> int:
        return self.kinds.total() + len(self.wrong)

    def judge(self, right: bool, what: str) -> None:
        if right:
            self.kinds["right"] += 1
        else:
            self.wrong.append(what)


@dataclass(frozen=True)
class Question:
    """A field, and what each version answers to a source of 1."""

    field: NDArray[np.float32]
    answers: dict[str, NDArray[np.float32]]

    def answered(self, version: str, pressure: NDArray[Any], source: float, tally: Tally) -> None:
        expected = source * self.answers[version]
        close = np.allclose(pressure, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())
        tally.judge(close, f"{version} answered what it does not answer to this field and source {source}")


@dataclass(frozen=True)
class Load:
    """A server, and what it is asked.

    Attributes:
        water: states (h, hu, hv), and the frames that follow.
    """

    server: Server
    questions: list[Question]
    water: list[tuple[NDArray[np.float32], list[NDArray[np.float32]]]]


def questions(store: Store) -> list[Question]:
    rng = np.random.default_rng(0)
    fields = np.exp(rng.standard_normal((16, 32, 32))).astype(np.float32)
    answers: dict[str, NDArray[np.float32]] = {}
    for number in (1, 2):
        surrogate = store.load("darcy", number).surrogate
        with torch.inference_mode():
            given = torch.from_numpy(fields)[:, None]
            answers[f"darcy@{number}"] = surrogate(given, torch.ones(len(fields)), EXTENT).numpy()[:, 0]
    # an answer of one version must not be taken for one of the other
    assert not np.allclose(answers["darcy@1"], answers["darcy@2"], rtol=1e-2)
    return [
        Question(values, {name: rows[row] for name, rows in answers.items()})
        for row, values in enumerate(fields)
    ]


def npy(values: NDArray[np.float32]) -> bytes:
    body = io.BytesIO()
    np.save(body, values)
    return body.getvalue()


async def frames(client: AsyncClient, state: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """The fields [channel y x] of every frame; model's number, since another one would go on otherwise."""
    rollout = client.rollout("shallow_water", state, steps=STEPS, model="shallow_water@1")
    found = [(frame.step, np.stack([*frame.fields.values()])) async for frame in rollout]
    assert [step for step, _ in found] == list(range(1, STEPS + 1))
    return [values for _, values in found]


async def water(server: Server) -> list[tuple[NDArray[np.float32], list[NDArray[np.float32]]]]:
    rng = np.random.default_rng(1)
    depths = 1 + rng.random((3, 1, 16, 24)) / 4
    states = np.concatenate([depths, rng.standard_normal((3, 2, 16, 24)) / 10], axis=1).astype(np.float32)
    async with AsyncClient(server.address, timeout=120) as client:
        return [(state, await frames(client, state)) for state in states]


async def ask_over_http(load: Load, number: int, count: int, tally: Tally, *, leaving: bool) -> None:
    rng = random.Random(number)
    async with httpx.AsyncClient(base_url=load.server.address, timeout=120) as client:
        for _ in range(count):
            question, source = rng.choice(load.questions), float(rng.randint(1, 1000))
            query = {"error": "none", "source": source}
            headers = {"Content-Type": NPY, "Accept": NPY}
            asking = client.post(
                "/v1/problems/darcy/solve", content=npy(question.field), params=query, headers=headers
            )
            try:
                async with asyncio.timeout(rng.uniform(0.0, 0.1) if leaving else None):
                    response = await asking
            except TimeoutError:
                tally.kinds["left"] += 1
            except httpx.TransportError:
                tally.kinds["broken"] += 1
            else:
                await take_http(response, question, source, tally)


async def take_http(response: httpx.Response, question: Question, source: float, tally: Tally) -> None:
    if response.status_code in (429, 503) and "retry-after" in response.headers:
        tally.kinds["refused"] += 1
        await asyncio.sleep(float(response.headers["retry-after"]))
    elif response.status_code != 200:
        tally.wrong.append(f"{response.status_code} {dict(response.headers)}: {response.text}")
    else:
        found = np.load(io.BytesIO(response.content))
        question.answered(response.headers["mno-model"], found, source, tally)


async def ask_over_grpc(load: Load, number: int, count: int, tally: Tally) -> None:
    """One after the other, with a client that asks again by itself."""
    rng = random.Random(number)
    async with AsyncClient(f"grpc://{load.server.grpc_address}", timeout=120) as client:
        for _ in range(count):
            question, source = rng.choice(load.questions), float(rng.randint(1, 1000))
            try:
                answer = await client.solve("darcy", question.field, error="none", source=source)
            except Exception as error:  # whatever it is, it is to be counted
                take_error(error, tally)
            else:
                assert answer.model is not None
                question.answered(answer.model, answer.fields["pressure"], source, tally)


async def roll_out(load: Load, number: int, count: int, tally: Tally) -> None:
    """Streams of frames, which go on from their last frame when they break."""
    rng = random.Random(number)
    async with AsyncClient(f"grpc://{load.server.grpc_address}", timeout=120) as client:
        for _ in range(count):
            state, expected = rng.choice(load.water)
            try:
                found = await frames(client, state)
            except Exception as error:  # whatever it is, it is to be counted
                take_error(error, tally)
            else:
                tally.judge(np.allclose(found, expected, rtol=1e-4, atol=1e-6), "frames of another rollout")


def take_error(error: Exception, tally: Tally) -> None:
    if isinstance(error, ServiceError) and error.status in (429, 503):
        tally.kinds["refused"] += 1
    else:
        tally.wrong.append(repr(error))


async def pipeline(load: Load, number: int, count: int, tally: Tally) -> None:
    """Streams of requests; what has no answer when one breaks is asked in the next one."""
    rng = random.Random(number)
    left = {str(n): (rng.choice(load.questions), float(rng.randint(1, 1000))) for n in range(count)}
    async with grpc.aio.insecure_channel(load.server.grpc_address) as channel:
        while left:
            call = channel.stream_stream(
                STREAM, pb.SolveRequest.SerializeToString, pb.SolveResponse.FromString
            )(wait_for_ready=True)
            try:
                await one_stream(call, left, tally)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                code = await call.code()
                tally.streams += 1
                # the second is gRPC's own word for a connection that broke while it sent: no service says it
                broken = code is grpc.StatusCode.INTERNAL and await call.details() == BROKEN
                if code is not grpc.StatusCode.UNAVAILABLE and not broken:
                    tally.wrong.append(f"a stream ended with {code}: {await call.details()}")


async def one_stream(call: Any, left: dict[str, tuple[Question, float]], tally: Tally) -> None:
    names = iter(list(left))
    for name in islice(names, WINDOW):
        await call.write(request(name, *left[name]))
    while left:
        answer = await call.read()
        if answer is grpc.aio.EOF:
            raise asyncio.InvalidStateError
        question, source = left.pop(answer.id)
        if answer.fault.retry_after:
            tally.kinds["refused"] += 1
            await asyncio.sleep(answer.fault.retry_after)
        elif answer.HasField("fault"):
            tally.wrong.append(str(answer.fault))
        else:
            pressure = np.frombuffer(answer.fields["pressure"].data, np.float32).reshape(32, 32)
            question.answered(answer.model, pressure, source, tally)
        for name in islice(names, 1):
            await call.write(request(name, *left[name]))
    await call.done_writing()


def request(name: str, question: Question, source: float) -> pb.SolveRequest:
    values = question.field
    tensor = pb.Tensor(dtype="float32", shape=values.shape, data=values.tobytes())
    return pb.SolveRequest(
        id=name,
        problem="darcy",
        fields={"permeability": tensor},
        parameters={"source": source},
        error=pb.ERROR_REQUEST_NONE,
    )


async def ask(load: Load, requests: int, tally: Tally) -> int:
    """All clients at once, a third of them over gRPC; returns how many requests there were."""
    asking, total = [], 0
    for number in range(CLIENTS):
        count = requests // CLIENTS
        match number % 9:
            case 2:
                client = ask_over_grpc(load, number, count, tally)
            case 5:
                client = pipeline(load, number, count, tally)
            case 8:
                count = round(ROLLOUTS * count)
                client = roll_out(load, number, count, tally)
            case _:
                client = ask_over_http(load, number, count, tally, leaving=number % 3 == 0)
        total += count
        asking.append(client)
    await asyncio.gather(*asking)
    return total


async def swap(server: Server, store: Store, tally: Tally) -> int:
    """Move the alias to and fro while requests go on; returns how often it was served."""
    async with httpx.AsyncClient(base_url=server.address, timeout=120) as client:
        for turn in range(SWAPS):
            await reached(tally, (turn + 1) / (SWAPS + 2))
            old, new = (1, 2) if turn % 2 == 0 else (2, 1)
            await asyncio.to_thread(store.set_alias, "darcy", "production", new, expected=old)
            while not await served(client, new):
                # whoever loads it, or was asked to, was killed
                await asyncio.sleep(0.1)
    return SWAPS


async def served(client: httpx.AsyncClient, version: int) -> bool:
    try:
        response = await client.post("/v2/repository/models/darcy/load")
        loaded = await client.get("/v1/models/darcy")
    except httpx.TransportError:
        return False
    for answer in (response, loaded):
        assert answer.status_code in (200, 409, 503), answer.text
    # what the repository says is served is
    assert response.status_code != 200 or loaded.status_code != 200 or version in loaded.json()["loaded"]
    return response.status_code == loaded.status_code == 200


async def kill(server: Server, tally: Tally) -> list[str]:
    """Kill one process after the other while requests go on; returns what they were."""
    rng, killed = random.Random(1), []
    for turn, wanted in enumerate(KILLS):
        await reached(tally, (2 * turn + 1) / (2 * len(KILLS) + 1))
        while not (
            pids := [
                (name, pid)
                for name, pids in server.named().items()
                for pid in pids
                if name.startswith(wanted)
            ]
        ):
            await asyncio.sleep(0.01)
        name, pid = rng.choice(pids)
        os.kill(pid, signal.SIGKILL)
        killed.append(name)
    return killed


async def reached(tally: Tally, share: float) -> None:
    # of those that certainly come
    while tally.total < share * 0.85 * REQUESTS:
        await asyncio.sleep(0.01)


async def settled(server: Server) -> str:
    """Wait until one version of each model is left, and everything is up; returns the metrics."""
    async with httpx.AsyncClient(base_url=server.address, timeout=60) as client:
        while True:
            text = (await client.get("/metrics")).text
            if counted(text, "mno_version_served") == 2 and len(server.named()) == 6:
                return text
            await asyncio.sleep(0.05)


def counted(text: str, name: str, **labels: str) -> float:
    """Sum of a metric over all its label sets that have ``labels``."""
    found = re.findall(rf"^{name}\{{(.*)\}} (\S+)$", text, re.MULTILINE)
    return sum(float(v) for have, v in found if all(f'{k}="{each}"' in have for k, each in labels.items()))


@pytest.mark.slow
def test_every_request_has_one_right_answer_or_one_error_that_can_be_retried(
    server: Server, store: Store
) -> None:
    load = Load(server, questions(store), asyncio.run(water(server)))

    async def quiet_load() -> None:
        tally = Tally()
        total = await ask(load, 1800, tally)
        assert tally.wrong == []
        # where nothing dies, nobody is sent away
        assert tally.kinds["right"] + tally.kinds["left"] == total
        await settled(server)

    async def run() -> tuple[Tally, int, list[str], str]:
        tally = Tally()
        swaps, killed, total = await asyncio.gather(
            swap(server, store, tally), kill(server, tally), ask(load, REQUESTS, tally)
        )
        assert swaps == SWAPS
        return tally, total, killed, await settled(server)

    asyncio.run(quiet_load())
    memory, files, processes = server.memory(), server.open_files(), len(server.tree())
    tally, total, killed, metrics = asyncio.run(run())
    # the same load again, so that both measurements follow the same kind of work
    asyncio.run(quiet_load())
    print(f"\n{dict(tally.kinds)}, {tally.streams} streams broke; memory {memory} -> {server.memory()} kB")
    assert tally.wrong == []
    assert tally.total == total
    assert [name.partition("@")[0] for name in killed] == [name.partition("@")[0] for name in KILLS]
    for kind in ("zygote", "front", "numerics"):
        assert counted(metrics, "mno_process_restarts_total", kind=kind) == 1
    # it goes with its zygote, too
    assert counted(metrics, "mno_process_restarts_total", kind="steward") == 2
    # few are sent away, and only those whose front was killed lose a connection
    assert tally.kinds["left"] > 0
    assert tally.kinds["refused"] <= total / 25
    assert tally.kinds["broken"] <= CLIENTS
    assert 1 <= tally.streams <= CLIENTS
    assert len(server.tree()) == processes
    assert server.open_files() == files
    assert server.memory() <= 1.05 * memory
    assert server.stop() == 0
