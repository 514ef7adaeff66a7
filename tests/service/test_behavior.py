"""How a service behaves where others fail: a slow model, bad neighbours, clients that leave, and SIGTERM.

Each test is a row of the table in ``docs/serving_benchmark.md``, which shows the same for other servers.
"""

import asyncio
import http.client
import io
import json
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from served_models import BREAK, KILL, NOT_A_NUMBER
from server_process import Server, running

from service.client import AsyncClient, ServiceError, Unreachable

NPY = "application/x-npy"
SOLVE = "/v1/problems/darcy/solve"
INFER = "/v2/models/slow/infer"
SECONDS = 0.5


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("behaviour") / "computed"
    path.touch()
    return path


@pytest.fixture(scope="module")
def server(log: Path) -> Iterator[Server]:
    with running(MNO_IMPORTED=imported(log), MNO_MODELS="darcy") as server:
        yield server


def imported(log: Path) -> str:
    arguments = {"seconds": SECONDS, "log": str(log)}
    return json.dumps({"slow": {"function": "served_models:slow", "arguments": arguments}})


def npy(values: NDArray[np.float32]) -> bytes:
    body = io.BytesIO()
    np.save(body, values)
    return body.getvalue()


def field(side: int = 64, value: float = 1.0) -> NDArray[np.float32]:
    return np.full((side, side), value, dtype=np.float32)


def computed(log: Path) -> list[float]:
    return [float(line) for line in log.read_text().split()]


async def solve(
    client: httpx.AsyncClient, values: NDArray[np.float32], source: float = 1.0
) -> httpx.Response:
    query = {"model": "slow", "error": "none", "source": source}
    headers = {"Content-Type": NPY, "Accept": NPY}
    return await client.post(SOLVE, content=npy(values), params=query, headers=headers)


def answered(response: httpx.Response, values: NDArray[np.float32]) -> bool:
    return response.status_code == 200 and bool(
        np.array_equal(np.load(io.BytesIO(response.content)), 2 * values)
    )


def client_of(server: Server) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=100)
    return httpx.AsyncClient(base_url=server.address, timeout=60, limits=limits)


def probe(address: str) -> float:
    """Time of a health check on a connection that is open [s]."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    with closing(connection):
        connection.connect()
        began = time.perf_counter()
        connection.request("GET", "/healthz/live")
        assert connection.getresponse().read() == b'{"status":"live"}'
        return time.perf_counter() - began


@pytest.mark.slow
def test_health_is_answered_while_a_forward_runs(server: Server, log: Path) -> None:
    def median(number: int) -> float:
        source = 50.0 + number
        with ThreadPoolExecutor(1) as pool:
            forward = pool.submit(asyncio.run, one(server, source))
            while source not in computed(log):
                pass
            times = []
            while not forward.done():
                times.append(probe(server.address))
            assert forward.result()
        # many fit into one forward pass: a blocked event loop would answer one
        assert len(times) > 5
        return statistics.median(times)

    # of several: other processes of this machine may have the cores for a while
    assert min(map(median, range(5))) < 0.010


async def one(server: Server, source: float) -> bool:
    async with client_of(server) as client:
        return answered(await solve(client, field(), source), field())


def large_json() -> tuple[str, bytes, dict[str, str]]:
    """A field as large as there is one, with all its digits: 16 MiB."""
    numbers = np.random.default_rng(0).lognormal(size=(900, 900)).tolist()
    return SOLVE, json.dumps({"permeability": numbers}).encode(), {"Content-Type": "application/json"}


def many_names() -> tuple[str, bytes, dict[str, str]]:
    """4 MiB of options that nobody knows."""
    body = json.dumps({f"{n:07d}": 1 for n in range(350_000)}, separators=(",", ":")).encode()
    return SOLVE, body, {"Content-Type": "application/json"}


def numbers_from_bytes() -> tuple[str, bytes, dict[str, str]]:
    """A batch of FP16 whose answer is JSON, several times as long."""
    batch = np.ones((96, 64, 64), dtype=np.float16)
    given = {"name": "permeability", "datatype": "FP16", "shape": batch.shape}
    given["parameters"] = {"binary_data_size": batch.nbytes}
    head = json.dumps({"inputs": [given], "outputs": [{"name": "pressure"}]}).encode()
    return INFER, head + batch.tobytes(), {"Inference-Header-Content-Length": str(len(head))}


@pytest.mark.slow
@pytest.mark.parametrize("large", [large_json, many_names, numbers_from_bytes])
def test_health_is_answered_while_a_large_request_is_read_and_written(
    server: Server, large: Callable[[], tuple[str, bytes, dict[str, str]]]
) -> None:
    path, body, headers = large()

    def ask() -> int:
        return httpx.post(server.address + path, content=body, headers=headers, timeout=60).status_code

    def longest() -> float:
        times = [0.0]
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask)
            while not asked.done():
                times.append(probe(server.address))
            # refused or not: what counts is how long it takes to know
            assert asked.result() in (200, 400, 422)
        return max(times)

    # of several, and with much to spare: other processes of this machine may have the cores for a while
    assert min(longest() for _ in range(3)) < 1.0


@pytest.mark.slow
@pytest.mark.parametrize("poison", [BREAK, KILL, None])
def test_a_bad_neighbour_fails_alone(server: Server, poison: float | None) -> None:
    async def ask() -> tuple[list[httpx.Response], httpx.Response]:
        async with client_of(server) as client:
            busy = asyncio.create_task(solve(client, field()))
            values = field(value=-1.0) if poison is None else field()
            bad = asyncio.create_task(solve(client, values, 1.0 if poison is None else poison))
            good = await asyncio.gather(*(solve(client, field(value=n + 1.0)) for n in range(7)))
            assert answered(await busy, field())
            return good, await bad

    good, bad = asyncio.run(ask())
    if poison == BREAK:
        # a batch that raises fails whole: its rows were computed together, and are asked for again
        assert bad.status_code in (500, 503)
    else:
        assert bad.status_code == (422 if poison is None else 503)
    assert [answered(response, field(value=n + 1.0)) for n, response in enumerate(good)] == [True] * 7


@pytest.mark.slow
def test_shapes_may_be_mixed(server: Server) -> None:
    async def ask() -> list[bool]:
        async with client_of(server) as client:
            fields = [field(128, 2.0), field(64, 3.0)] * 4
            answers = await asyncio.gather(*(solve(client, values) for values in fields))
            return [answered(answer, values) for answer, values in zip(answers, fields, strict=True)]

    assert asyncio.run(ask()) == [True] * 8


@pytest.mark.slow
def test_what_is_not_finite_is_valid_json(server: Server) -> None:
    document = {
        "permeability": field(32).tolist(), "source": NOT_A_NUMBER, "model": "slow", "error": "none"
    }  # fmt: skip
    answer = httpx.post(server.address + SOLVE, json=document, timeout=60)

    def refuse(constant: str) -> float:
        raise AssertionError(constant)

    assert isinstance(json.loads(answer.content, parse_constant=refuse), dict)


@pytest.mark.slow
def test_nothing_is_computed_for_clients_that_left(server: Server, log: Path) -> None:
    async def ask() -> bool:
        async with client_of(server) as client, client_of(server) as leaving:
            busy = asyncio.create_task(solve(client, field(), 1.5))
            while 1.5 not in computed(log):
                await asyncio.sleep(0)
            waiting = [asyncio.create_task(solve(leaving, field(), 100.0 + n)) for n in range(20)]
            # all of them are in the queue when the service says so
            while await queued(client) < 20:
                pass
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            await leaving.aclose()
            last = await solve(client, field(), 2.5)
            return answered(await busy, field()) and answered(last, field())

    assert asyncio.run(ask())
    assert 2.5 in computed(log)
    assert [source for source in computed(log) if source >= 100 and source < 120] == []


async def queued(client: httpx.AsyncClient) -> float:
    """Rows that wait, by the service's own metrics."""
    text = (await client.get("/metrics")).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("mno_queue_rows"))


@pytest.mark.slow
def test_sigterm_loses_nothing(log: Path) -> None:
    async def ask(server: Server) -> tuple[list[bool], int]:
        async with client_of(server) as client:
            asked = [asyncio.create_task(solve(client, field(), 200.0 + n)) for n in range(8)]
            while 200.0 not in computed(log):
                await asyncio.sleep(0)
            # those that are under way are accepted when the service counts them
            server.process.terminate()
            answers = await asyncio.gather(*asked)
            code = await asyncio.to_thread(server.process.wait, 60)
            return [answered(answer, field()) for answer in answers], code

    with running(MNO_IMPORTED=imported(log), MNO_MODELS="darcy") as server:
        before = list(server.tree())
        answers, code = asyncio.run(ask(server))
        assert answers == [True] * 8
        assert code == 0
        assert len(before) >= 4
        # and nobody is left behind
        assert server.tree() == {}


@pytest.mark.slow
def test_sigterm_under_load_answers_whatever_was_accepted(log: Path) -> None:
    """Clients ask one request after the other until they are turned away: what was computed was answered."""
    answers: list[float] = []
    refused: list[int] = []

    async def ask_on(server: Server, number: int) -> None:
        async with client_of(server) as client:
            for turn in range(1000):
                source = 1000.0 * (number + 1) + turn
                try:
                    answer = await solve(client, field(32), source)
                except httpx.TransportError:
                    # nobody accepts any more, or the connection was closed before the request was read
                    return
                if answer.status_code == 200:
                    answers.append(source)
                else:
                    refused.append(answer.status_code)

    async def ask_on_over_grpc(server: Server, number: int) -> None:
        async with AsyncClient(f"grpc://{server.grpc_address}", retries=0) as client:
            for turn in range(1000):
                source = 1000.0 * (number + 1) + turn
                try:
                    await client.solve("darcy", field(32), model="slow", error="none", source=source)
                except Unreachable:
                    return
                except ServiceError as error:
                    refused.append(error.status)
                else:
                    answers.append(source)

    async def run(server: Server) -> int:
        # a third of them over gRPC
        kinds = [ask_on, ask_on, ask_on_over_grpc]
        clients = [asyncio.create_task(kinds[number % 3](server, number)) for number in range(33)]
        while len(answers) < 100:
            await asyncio.sleep(0.01)
        server.process.terminate()
        await asyncio.gather(*clients)
        return await asyncio.to_thread(server.process.wait, 60)

    arguments = {"seconds": 0.02, "log": str(log)}
    model = json.dumps({"slow": {"function": "served_models:slow", "arguments": arguments}})
    with running(MNO_IMPORTED=model, MNO_MODELS="darcy") as server:
        assert asyncio.run(run(server)) == 0
    lost = {source for source in computed(log) if source >= 1000} - set(answers)
    assert lost == set()
    # who came too late may be told to come again, but nothing broke
    assert set(refused) <= {429, 503}


@pytest.mark.slow
def test_only_what_computes_with_models_has_loaded_pytorch(server: Server) -> None:
    def has_pytorch(pid: int) -> bool:
        return "libtorch" in Path(f"/proc/{pid}/maps").read_text()

    commands = server.tree()
    found = {command.split("-m ")[-1].split()[0] for pid, command in commands.items() if has_pytorch(pid)}
    assert found == {"service.processes.forking"}
    assert {"service", "service.processes.front", "service.workers.numerics"} <= {
        command.split("-m ")[-1].split()[0] for command in commands.values()
    }


@pytest.mark.slow
def test_each_lane_of_the_reference_solvers_is_one_thread(store_url: str) -> None:
    many = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "7")
    with running("--store", store_url, "--models", "darcy", **many) as server:
        (pid,) = (pid for pid, command in server.tree().items() if "service.workers.numerics" in command)
        # how many threads a BLAS makes of it depends on the cores; what it is told does not
        told = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert {f"{name}=1".encode() for name in many} <= set(told)
        assert not {f"{name}=7".encode() for name in many} & set(told)
