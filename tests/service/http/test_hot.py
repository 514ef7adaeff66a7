"""The short way for small binary requests: the same answers, refusals, counts and rights as the long one."""

import asyncio
import contextlib
import http.client as http_client
import io
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
import uvicorn
from numpy.typing import NDArray

from model_store import Catalog, open_catalog
from service.access.audit import Audit
from service.access.gate import Guard
from service.access.rate import RateLimits, RateSettings
from service.access.security import Security, SecuritySettings, open_security
from service.access.tokens import Scope, TokenRecord, edit_tokens, new_token
from service.batching.admission import BatchRules
from service.http.abortable import AbortableProtocol
from service.http.in_flight import Budget
from service.http.routes import create_app
from service.settings import Limits, Settings
from service.telemetry.metrics import Metrics
from service.versions.local import LocalRepository
from service.versions.routing import Route

SOLVE = "/v1/problems/darcy/solve"
NPY = {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}
# what only the long way reads, and what means nothing
LONG = {"Content-Encoding": "identity"}
UNSTEADY = ("date", "server-timing", "x-request-id")


def npy(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def told(response: httpx.Response) -> tuple[Any, ...]:
    """All of a response but what differs each time."""
    headers = {name: value for name, value in response.headers.items() if name not in UNSTEADY}
    if response.headers["content-type"].endswith("json"):
        document = response.json()
        document.pop("request_id", None)
        headers.pop("content-length")
        return response.status_code, headers, document
    return response.status_code, headers, response.content


@pytest.mark.parametrize(
    "query", ["", "?error=none", "?source=2.5&priority=bulk", "?method=solver", "?model=darcy@2"]
)
@pytest.mark.parametrize("dtype", ["f4", "f8", ">f4", "f2"])
def test_both_ways_lead_to_the_same_answer(
    http: httpx.Client, permeability: NDArray[np.float32], query: str, dtype: str
) -> None:
    for array in (permeability[0], permeability, np.asfortranarray(permeability[1])):
        # one fixed batch size: else rounding depends on who else asks
        path = f"{SOLVE}{query}{'&' if query else '?'}reproducible=true"
        body = npy(array.astype(dtype))
        short = http.post(path, content=body, headers=NPY)
        long = http.post(path, content=body, headers=NPY | LONG)
        assert short.status_code == 200, short.text
        assert told(short) == told(long)
        assert short.headers["server-timing"].startswith("queue;dur=")
        assert len({short.headers["x-request-id"], long.headers["x-request-id"]}) == 2


def test_json_takes_both_ways(http: httpx.Client, permeability: NDArray[np.float32]) -> None:
    json = {"Content-Type": "application/json"}
    for given in (
        {"permeability": permeability.tolist(), "reproducible": True},
        {"permeability": np.ones((32, 32)).tolist(), "error": "none", "reproducible": True},
        {"permeability": [[True]]},
        {"permeability": [[1.0]], "sorce": 1},
        [1],
    ):
        body = orjson.dumps(given)
        for accepted in ("gzip", "identity"):
            headers = json | {"Accept-Encoding": accepted}
            short, long = (http.post(SOLVE, content=body, headers=headers | more) for more in ({}, LONG))
            ours, theirs = told(short), told(long)
            for answer in (ours, theirs):
                answer[2].pop("timing_ms", None)
                answer[1].pop("content-length", None)
            assert ours == theirs
    assert http.post(f"{SOLVE}?source=2", content=b"{}", headers=json).status_code == 422
    assert http.post(SOLVE, content=b"", headers=json).status_code == 422


@pytest.mark.parametrize(
    ("body", "query"),
    [
        (npy(-np.ones((32, 32))), ""),
        (npy(np.ones((8, 8))), ""),
        (npy(np.ones((32, 32)))[:-1], ""),
        (b"nonsense", ""),
        (npy(np.ones((32, 32))), "?sorce=1"),
        (npy(np.ones((32, 32))), "?source=x"),
        (npy(np.ones((32, 32))), "?model=nobody"),
        (npy(np.ones((32, 32))), "?tolerance=2"),
        (npy(np.ones((32, 32))), "?tolerance=1e-300"),
        (npy(np.ones((9, 32, 32), "f2")), ""),
        (npy(np.ones((65, 32), "f2")), ""),
    ],
)
def test_both_ways_refuse_in_the_same_words(http: httpx.Client, body: bytes, query: str) -> None:
    short = http.post(SOLVE + query, content=body, headers=NPY)
    assert short.is_client_error or short.status_code == 501
    assert told(short) == told(http.post(SOLVE + query, content=body, headers=NPY | LONG))
    assert short.json()["request_id"] == short.headers["x-request-id"]


def asked(address: str, target: str, body: bytes, fields: list[tuple[str, str]]) -> tuple[int, str, Any]:
    """Status, media type and what is told, of a request whose fields and address are sent as they are."""
    host = address.removeprefix("http://")
    with contextlib.closing(http_client.HTTPConnection(host, timeout=60)) as connection:
        connection.putrequest("POST", target)
        for name, value in (*fields, ("Content-Length", str(len(body)))):
            connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        media, content = response.headers["content-type"], response.read()
        request_id = response.headers["x-request-id"]
    if not media.endswith("json"):
        return response.status, media, content
    document = orjson.loads(content)
    document.pop("timing_ms", None)
    assert document.pop("request_id", request_id) == request_id
    return response.status, media, document


@pytest.mark.parametrize(
    ("target", "twice", "status"),
    [
        (SOLVE, ("Accept", "application/json"), 200),
        (SOLVE, ("Content-Type", "text/plain"), 400),
        (SOLVE, ("Authorization", "Bearer mno_x"), 400),
        (SOLVE, ("Mno-Key", "other"), 400),
        (f"{SOLVE}?source=2#fragment", ("X-Unknown", ""), 200),
        (f"{SOLVE}#?source=x", ("X-Unknown", ""), 200),
    ],
)
def test_both_ways_read_what_can_be_read_in_two_ways_alike(
    address: str, permeability: NDArray[np.float32], target: str, twice: tuple[str, str], status: int
) -> None:
    fields = [*NPY.items(), ("Mno-Key", "one"), ("Authorization", "Bearer mno_y")]
    bodies = [npy(permeability[0]), npy(permeability[1])]
    for given in ([twice, *fields], [*fields, twice]):
        for body in bodies:
            short = asked(address, target, body, given)
            assert short == asked(address, target, body, [*given, *LONG.items()])
            assert short[0] == status, short


def test_an_id_that_is_sent_twice_is_the_first_one(http: httpx.Client) -> None:
    two = [("X-Request-Id", "one"), ("X-Request-Id", "two")]
    for way in ({}, LONG):
        answer = http.post(SOLVE, content=b"nonsense", headers=[*(NPY | way).items(), *two])
        assert answer.headers["x-request-id"] == "one"


@pytest.mark.parametrize("method", ["PUT", "HEAD", "DELETE", "PATCH"])
def test_only_post_is_answered(http: httpx.Client, method: str) -> None:
    body = npy(np.ones((32, 32), "f4"))
    answer = http.request(method, SOLVE, content=body, headers=NPY)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    assert http.post(SOLVE, content=body, headers=NPY).status_code == 200


def test_an_id_is_handed_back(http: httpx.Client) -> None:
    headers = NPY | {"X-Request-Id": "mine-7"}
    for body in (npy(np.ones((32, 32), "f4")), b"nonsense"):
        assert http.post(SOLVE, content=body, headers=headers).headers["x-request-id"] == "mine-7"
    bad = http.post(SOLVE, content=b"nonsense", headers=NPY | {"X-Request-Id": "no good"})
    assert bad.headers["x-request-id"] != "no good"


def infer(array: NDArray[np.float32], **more: Any) -> tuple[bytes, dict[str, str]]:
    tensor = {
        "name": "permeability",
        "datatype": "FP32",
        "shape": array.shape,
        "parameters": {"binary_data_size": array.nbytes},
    }
    parameters = {"binary_data_output": True, "reproducible": True}
    head = orjson.dumps({"inputs": [tensor], "parameters": parameters, **more})
    return head + array.tobytes(), {"Inference-Header-Content-Length": str(len(head))}


def test_inference_takes_both_ways(http: httpx.Client, permeability: NDArray[np.float32]) -> None:
    for path in ("/v2/models/darcy/infer", "/v2/models/darcy@2/infer", "/v2/models/darcy/versions/2/infer"):
        body, headers = infer(permeability, id="1")
        short, long = (http.post(path, content=body, headers=headers | more) for more in ({}, LONG))
        assert short.status_code == 200, short.text
        assert told(short) == told(long)
        assert short.headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize(
    "more", [{"id": 7}, {"outputs": [{"name": "heat"}]}, {"parameters": {"a": [1]}}, {"b": 1}]
)
def test_inference_is_refused_on_both_ways(http: httpx.Client, more: dict[str, Any]) -> None:
    body, headers = infer(np.ones((32, 32), "f4"), **more)
    short = http.post("/v2/models/darcy/infer", content=body, headers=headers)
    assert short.status_code == 400
    assert list(short.json()) == ["error"]
    assert told(short) == told(http.post("/v2/models/darcy/infer", content=body, headers=headers | LONG))


@dataclass
class Guarded:
    """A guarded service, its client, and the headers of those who may ask."""

    client: httpx.AsyncClient
    guard: Guard
    tokens: dict[str, str]
    budget: Budget

    @asynccontextmanager
    async def sending(self, headers: dict[str, str], body: bytes) -> AsyncIterator["Sending"]:
        """A request of which half of the body was sent."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"POST {SOLVE}?error=none HTTP/1.1\r\nHost: x\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
        url = self.client.base_url
        reader, writer = await asyncio.open_connection(url.host, url.port)
        half = len(body) // 2
        writer.write(head.encode() + body[:half])
        yield Sending(reader, writer, body[half:])
        writer.close()

    def counted(self, name: str) -> float:
        """The sum of all samples of a metric."""
        page = self.guard.metrics.render()[0].decode()
        lines = [line for line in page.splitlines() if line.startswith(f"{name}{{")]
        return sum(float(line.rsplit(" ")[-1]) for line in lines)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let others run until the condition holds."""
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0)


@dataclass
class Sending:
    """A request whose client has not sent all of it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    rest: bytes

    async def status(self) -> int:
        async with asyncio.timeout(20):
            head = await self.reader.readuntil(b"\r\n\r\n")
        return int(head.split()[1])


def with_tokens(folder: Path) -> tuple[Security, dict[str, str]]:
    """Security for tokens of which each grants one thing."""
    path = folder / "tokens.toml"
    headers: dict[str, str] = {}
    scopes: tuple[Scope, ...] = ("solve", "admin", "metrics")
    with edit_tokens(path) as records:
        for scope in scopes:
            secret, kept = new_token()
            records.append(TokenRecord(name=f"the-{scope}", hash=kept, scopes=(scope,)))
            headers[scope] = f"Bearer {secret}"
    return open_security(SecuritySettings(tokens=path), "127.0.0.1", mutual_tls=False), headers


@pytest.fixture
def guarded(
    tmp_path: Path, settings: Settings, serve_with: Any, gated_worker: Any
) -> Callable[..., AbstractAsyncContextManager[Guarded]]:
    assert settings.store is not None
    version = open_catalog(settings.store).load("darcy", 1)

    @asynccontextmanager
    async def run(inflight_bytes: int = 2**20, **rate: Any) -> AsyncIterator[Guarded]:
        limits = Limits(inflight_bytes=inflight_bytes)
        worker = gated_worker()
        worker.gate.set()
        served = serve_with(worker, [version], limits, BatchRules(), {"darcy": Route(name="darcy", main=1)})
        repository = LocalRepository(Catalog([]), served.models, lambda _: served.surrogates)
        security, tokens = with_tokens(tmp_path)
        audit = Audit(tmp_path / "audit.jsonl")
        guard = Guard(security, RateLimits(RateSettings(**rate)), Metrics(), audit)
        app = create_app(served.solver, served.models, repository, limits, guard=guard)
        config = uvicorn.Config(
            app, http=AbortableProtocol, port=0, log_config=None, lifespan="off", proxy_headers=False
        )
        server = uvicorn.Server(config)
        async with served.solver:
            running = asyncio.create_task(server.serve())
            while not server.started:
                await asyncio.sleep(0)
            port = server.servers[0].sockets[0].getsockname()[1]
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                yield Guarded(client, guard, tokens, app.state.hot.budget)
            server.should_exit = True
            await running
        audit.close()

    return run


Run = Callable[..., AbstractAsyncContextManager[Guarded]]
ONES = npy(np.ones((32, 32), "f4"))


@pytest.mark.parametrize("way", [{}, LONG])
def test_nobody_is_answered_without_a_token(guarded: Run, way: dict[str, str]) -> None:
    async def story() -> None:
        async with guarded() as service:
            path = f"{SOLVE}?error=none"
            for authorization, status in (
                (None, 401),
                ("Bearer mno_wrong", 401),
                ("Basic eA==", 401),
                (service.tokens["metrics"], 403),
                (service.tokens["solve"], 200),
            ):
                given = {} if authorization is None else {"Authorization": authorization}
                answer = await service.client.post(path, content=ONES, headers=NPY | way | given)
                assert answer.status_code == status, answer.text
                if status == 401:
                    assert answer.headers["www-authenticate"] == "Bearer"
                    assert answer.json()["type"] == "unauthenticated"
            body, headers = infer(np.ones((32, 32), "f4"), outputs=[{"name": "pressure"}])
            refused = await service.client.post("/v2/models/darcy/infer", content=body, headers=headers | way)
            assert (refused.status_code, list(refused.json())) == (401, ["error"])

    asyncio.run(story())


@pytest.mark.parametrize("way", [{}, LONG], ids=["short", "long"])
@pytest.mark.parametrize("token", [None, "metrics"])
def test_who_may_not_ask_is_told_before_the_body_and_holds_nothing(
    guarded: Run, way: dict[str, str], token: str | None
) -> None:
    async def story() -> None:
        # room for two bodies: strangers who send theirs all but for the end would lock everybody out
        async with guarded(inflight_bytes=2 * len(ONES)) as service, AsyncExitStack() as stack:
            headers = NPY | way | ({} if token is None else {"Authorization": service.tokens[token]})
            strangers = [await stack.enter_async_context(service.sending(headers, ONES)) for _ in range(6)]
            assert [await each.status() for each in strangers] == 6 * [401 if token is None else 403]
            assert service.budget.held == 0
            allowed = NPY | way | {"Authorization": service.tokens["solve"]}
            answer = await service.client.post(f"{SOLVE}?error=none", content=ONES, headers=allowed)
            assert answer.status_code == 200

    asyncio.run(story())


@pytest.mark.parametrize("way", [{}, LONG], ids=["short", "long"])
def test_a_request_is_under_way_from_its_head_on(guarded: Run, way: dict[str, str]) -> None:
    async def story() -> None:
        async with guarded(concurrent=1) as service:
            headers = NPY | way | {"Authorization": service.tokens["solve"]}
            path = f"{SOLVE}?error=none"
            async with service.sending(headers, ONES) as slow:
                await service.until(lambda: service.counted("mno_requests_in_flight") == 1)
                seen = time.perf_counter()
                for _ in range(3):
                    second = await service.client.post(path, content=ONES, headers=headers)
                    assert (second.status_code, second.json()["type"]) == (429, "overloaded")
                assert service.counted("mno_requests_in_flight") == 1
                others, waited = service.counted("mno_request_seconds_sum"), time.perf_counter() - seen
                slow.writer.write(slow.rest)
                assert await slow.status() == 200
                await service.until(lambda: service.counted("mno_requests_in_flight") == 0)
            # its time has that in it which its client took for the body
            assert service.counted("mno_request_seconds_sum") - others >= waited
            async with service.sending(headers, ONES) as leaving:
                await service.until(lambda: service.counted("mno_requests_in_flight") == 1)
                leaving.writer.transport.abort()
            await service.until(lambda: service.counted("mno_requests_in_flight") == 0)
            assert (await service.client.post(path, content=ONES, headers=headers)).status_code == 200

    asyncio.run(story())


@pytest.mark.parametrize("way", [{}, LONG], ids=["short", "long"])
def test_what_is_refused_before_its_body_is_counted_once(guarded: Run, way: dict[str, str]) -> None:
    async def story() -> None:
        async with guarded() as service:
            async with service.sending(NPY | way, ONES) as stranger:
                assert await stranger.status() == 401
                stranger.writer.write(stranger.rest)
                await service.until(lambda: service.counted("mno_requests_in_flight") == 0)
            assert service.counted("mno_requests_total") == service.counted("mno_refused_total") == 1

    asyncio.run(story())


def test_what_is_no_request_is_counted(guarded: Run) -> None:
    async def story() -> None:
        async with guarded() as service:
            url = service.client.base_url
            reader, writer = await asyncio.open_connection(url.host, url.port)
            writer.write(b"rubbish\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
            writer.close()
            page = service.guard.metrics.render()[0].decode()
            assert 'reason="bad-request"} 1.0' in page

    asyncio.run(story())


def test_what_each_token_may(guarded: Run, tmp_path: Path) -> None:
    paths = [
        ("GET", "/healthz/live", None),
        ("GET", "/healthz/ready", None),
        ("GET", "/v2/health/ready", None),
        ("GET", "/metrics", "metrics"),
        ("GET", "/openapi.json", None),
        ("GET", "/docs", None),
        ("GET", "/v1/models", "solve"),
        ("GET", "/v1/problems", "solve"),
        ("GET", "/v2/models/darcy", "solve"),
        ("POST", "/v2/repository/index", "solve"),
        ("POST", "/v2/repository/models/nobody/load", "admin"),
        ("POST", "/v2/repository/models/nobody/unload", "admin"),
        ("POST", "/v2/logging", "admin"),
        ("GET", "/nowhere", "solve"),
    ]

    async def story() -> None:
        async with guarded() as service:
            for method, path, right in paths:
                assert (await service.client.request(method, path)).status_code == (401 if right else 200), (
                    path
                )
                for name, token in service.tokens.items():
                    answer = await service.client.request(method, path, headers={"Authorization": token})
                    allowed = right in (None, name) or (right == "metrics" and name == "admin")
                    assert (answer.status_code == 403) == (not allowed), (path, name, answer.text)

    asyncio.run(story())
    noted = [orjson.loads(line) for line in (tmp_path / "audit.jsonl").read_bytes().splitlines()]
    done = {(entry["action"], entry["subject"], entry["principal"], entry["outcome"]) for entry in noted}
    assert ("load", "nobody", "the-admin", "failed") in done
    assert ("unload", "nobody", "the-admin", "failed") in done
    refused = {(each["subject"], each["principal"]) for each in noted if each["action"] == "refused"}
    load, unload = (f"POST /v2/repository/models/nobody/{what}" for what in ("load", "unload"))
    assert {(load, "the-solve"), (load, "the-metrics"), (unload, "the-solve")} <= refused
    # whoever has no token is not noted
    assert all(principal for _, principal in refused)


@pytest.mark.parametrize("way", [{}, LONG])
def test_who_asks_too_often_is_told_when_to_come_back(guarded: Run, way: dict[str, str]) -> None:
    async def story() -> None:
        async with guarded(requests_per_second=0.01, burst=2) as service:
            headers = NPY | way | {"Authorization": service.tokens["solve"]}
            path = f"{SOLVE}?error=none"
            answers = [await service.client.post(path, content=ONES, headers=headers) for _ in range(3)]
            assert [answer.status_code for answer in answers] == [200, 200, 429]
            assert int(answers[-1].headers["retry-after"]) > 10

    asyncio.run(story())


def test_both_ways_are_counted_alike(guarded: Run) -> None:
    async def story() -> None:
        async with guarded() as service:
            headers = NPY | {"Authorization": service.tokens["solve"]}
            for more in ({}, {}, LONG):
                await service.client.post(f"{SOLVE}?error=none", content=ONES, headers=headers | more)
                await service.client.post(SOLVE, content=b"x", headers=headers | more)
            page = service.guard.metrics.render()[0].decode()
            lines = [line for line in page.splitlines() if SOLVE.replace("darcy", "{problem}") in line]
            counted = {
                line.split('status="')[1][:3]: line.rsplit(" ")[-1] for line in lines if 'status="' in line
            }
            assert counted == {"200": "3.0", "422": "3.0"}
            assert any(line.startswith("mno_requests_in_flight") and line.endswith(" 0.0") for line in lines)
            assert "mno_refused_total{" in page
            assert 'reason="invalid-field"' in page

    asyncio.run(story())
