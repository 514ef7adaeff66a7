"""What a client may not do with a connection: be slow, send too much, never end, read nothing."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import Response

from service.http.abortable import AbortableProtocol, Hold, HotHead, HotPath, HotRequest
from service.http.faults import early_refusal
from service.settings import Limits

# whatever a test waits for comes as soon as these have passed, or it hangs and fails
SHORT = {"header_seconds": 0.1, "body_stall_seconds": 0.1, "body_seconds": 0.3, "stall_seconds": 0.1}
HOST = b"Host: x\r\n"


class Counter:
    def __init__(self, most: int) -> None:
        self.held = 0
        self.most = most

    def take(self, count: int) -> None:
        if self.held + count > self.most:
            raise MemoryError
        self.held += count

    def release(self) -> None:
        self.held = 0


@dataclass
class Echo(HotPath):
    """Sends bodies back on the short way, once the gate is open; knows who was cancelled."""

    limits: Limits
    holds: list[Counter] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    begun: int = 0
    cancelled: int = 0
    accepted: int = 0
    most: int = 10**9

    def accept(self, url: bytes, headers: list[tuple[bytes, bytes]]) -> HotHead | None:
        named = dict(headers)
        if not url.startswith(b"/hot") or b"content-length" not in named:
            return None
        self.accepted += 1
        return HotHead(url, named, int(named[b"content-length"]))

    def hold(self) -> Hold:
        self.holds.append(Counter(self.most))
        return self.holds[-1]

    async def answer(self, request: HotRequest) -> None:
        self.begun += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if request.fault is not None:
            request.respond(503, b"", (b"full",), 4)
            return
        times = int(request.head.headers.get(b"times", b"1"))
        body = bytes(request.body)
        request.respond(200, b"way: hot\r\n", (body,) * times, times * len(body))

    def refusal(self, status: int, slug: str, detail: str) -> tuple[bytes, bytes]:
        return early_refusal(status, slug, detail)


@dataclass
class Line:
    """A connection, spoken by hand."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next response."""
        async with asyncio.timeout(20):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            body = await self.reader.readexactly(int(headers["content-length"]))
        return int(first.split()[1]), headers, body

    async def ended(self) -> bytes:
        """What still comes until the server closes."""
        async with asyncio.timeout(20):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""


@dataclass
class Place:
    """A server and whoever connects to it."""

    hot: Echo
    port: int
    server: uvicorn.Server
    lines: list[Line] = field(default_factory=list)

    async def connect(self) -> Line:
        self.lines.append(Line(*await asyncio.open_connection("127.0.0.1", self.port)))
        return self.lines[-1]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0)


def build_app(hot: Echo) -> FastAPI:
    app = FastAPI()
    app.state.hot = hot

    @app.post("/echo")
    async def echo(request: Request) -> Response:
        return Response(await request.body(), headers={"way": "long"})

    @app.post("/early")
    async def early() -> Response:
        return Response("no", 413)

    @app.get("/large")
    async def large() -> Response:
        return Response(bytes(2**24))

    return app


@asynccontextmanager
async def running(**limits: Any) -> AsyncIterator[Place]:
    hot = Echo(Limits(**{**SHORT, **limits}))
    config = uvicorn.Config(
        build_app(hot),
        http=AbortableProtocol,
        port=0,
        log_level="critical",
        lifespan="off",
        proxy_headers=False,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0)
    place = Place(hot, server.servers[0].sockets[0].getsockname()[1], server)
    try:
        yield place
    finally:
        for line in place.lines:
            line.writer.transport.abort()
        server.should_exit = True
        await serving
        assert all(hold.held == 0 for hold in hot.holds)


def story(**limits: Any) -> Callable[[Callable[[Place], Awaitable[None]]], Callable[[], None]]:
    def told(tell: Callable[[Place], Awaitable[None]]) -> Callable[[], None]:
        async def run() -> None:
            async with running(**limits) as place:
                await tell(place)

        def test() -> None:
            asyncio.run(run())

        test.__name__, test.__doc__ = tell.__name__, tell.__doc__
        return test

    return told


def post(path: bytes, body: bytes, *headers: bytes) -> bytes:
    more = b"".join(header + b"\r\n" for header in headers)
    return b"POST %b HTTP/1.1\r\n%b%bContent-Length: %d\r\n\r\n%b" % (path, HOST, more, len(body), body)


# --- slow


@pytest.mark.parametrize(
    "sent",
    [
        b"P",
        b"POST /echo HTTP/1.1\r\n",
        b"POST /hot HTTP/1.1\r\nHost: x\r\nA: ",
        b"GET / HTTP/1.1\r\nHost: x\r\n",
    ],
)
def test_headers_that_do_not_end_are_refused(sent: bytes) -> None:
    @story()
    async def tell(place: Place) -> None:
        line = await place.connect()
        await line.send(sent)
        status, headers, body = await line.answer()
        assert (status, headers["connection"]) == (408, "close")
        assert b"request-timeout" in body
        assert headers["x-request-id"]
        assert await line.ended() == b""

    tell()


def test_headers_that_trickle_are_refused_too() -> None:
    @story()
    async def tell(place: Place) -> None:
        line = await place.connect()
        trickle = asyncio.create_task(_trickle(line, b"POST /hot HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 10**6))
        status, _, _ = await line.answer()
        assert status == 408
        trickle.cancel()

    tell()


async def _trickle(line: Line, data: bytes) -> None:
    for byte in data:
        line.writer.write(bytes([byte]))
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("path", [b"/echo", b"/hot"])
def test_a_body_that_stalls_is_refused(path: bytes) -> None:
    @story()
    async def tell(place: Place) -> None:
        line = await place.connect()
        await line.send(post(path, b"x" * 1000)[:-10])
        status, _, body = await line.answer()
        assert (status, b"body took too long" in body) == (408, True)
        assert await line.ended() == b""
        assert place.hot.begun == 0

    tell()


@pytest.mark.parametrize("path", [b"/echo", b"/hot"])
def test_a_body_that_trickles_has_an_end(path: bytes) -> None:
    @story(body_stall_seconds=0.2, body_seconds=0.3)
    async def tell(place: Place) -> None:
        line = await place.connect()
        head, _, body = post(path, b"x" * 10**6).partition(b"\r\n\r\n")
        await line.send(head + b"\r\n\r\n")
        trickle = asyncio.create_task(_trickle(line, body))
        assert (await line.answer())[0] == 408
        trickle.cancel()

    tell()


def test_a_chunked_body_that_never_ends_is_refused_by_time() -> None:
    @story()
    async def tell(place: Place) -> None:
        line = await place.connect()
        await line.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        assert (await line.answer())[0] == 408

    tell()


def test_a_connection_that_says_nothing_is_closed() -> None:
    @story(idle_seconds=1)
    async def tell(place: Place) -> None:
        silent, polite = await place.connect(), await place.connect()
        place.hot.gate.set()
        await polite.send(post(b"/hot", b"x"))
        assert (await polite.answer())[0] == 200
        assert await silent.ended() == b""
        assert await polite.ended() == b""

    tell()


def test_who_reads_nothing_is_let_go() -> None:
    @story()
    async def tell(place: Place) -> None:
        place.hot.gate.set()
        large = await place.connect()
        await large.send(post(b"/hot", b"x" * 10**6, b"times: 64"))
        long_way = await place.connect()
        await long_way.send(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        # neither reads; the server forgets both, though the connections are still open here
        await place.until(lambda: place.hot.begun == 1)
        await place.until(lambda: not place.server.server_state.connections)
        assert len(await large.ended()) < 64 * 10**6
        assert len(await long_way.ended()) < 2**24

    tell()


def test_a_slow_reader_who_does_read_gets_everything() -> None:
    @story()
    async def tell(place: Place) -> None:
        place.hot.gate.set()
        line = await place.connect()
        await line.send(post(b"/hot", bytes(range(256)) * 4096, b"times: 16"))
        status, _, body = await line.answer()
        assert (status, body) == (200, bytes(range(256)) * 4096 * 16)

    tell()


def test_an_answer_before_the_body_ends_closes_what_goes_on() -> None:
    @story(body_stall_seconds=60, body_seconds=60)
    async def tell(place: Place) -> None:
        line = await place.connect()
        await line.send(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nx")
        assert (await line.answer())[0] == 413
        # the rest may still come, for a moment
        assert await line.ended() == b""
        whole = await place.connect()
        await whole.send(post(b"/early", b"x" * 300_000))
        assert (await whole.answer())[0] == 413
        await whole.send(post(b"/echo", b"again"))
        assert (await whole.answer())[2] == b"again"

    tell()


# --- too much


@pytest.mark.parametrize(
    "head",
    [
        b"".join(b"A%d: 1\r\n" % n for n in range(30)),
        b"A: " + b"a" * 3000 + b"\r\n",
        b"a" * 3000 + b": 1\r\n",
        b"A: " + b"a" * 10**6,
    ],
)
def test_too_many_and_too_long_headers_are_refused(head: bytes) -> None:
    @story(headers=20, header_bytes=2000)
    async def tell(place: Place) -> None:
        line = await place.connect()
        line.writer.write(b"POST /hot HTTP/1.1\r\n" + HOST + head + b"\r\n")
        status, headers, body = await line.answer()
        assert (status, headers["content-type"]) == (431, "application/problem+json")
        assert b"header-too-large" in body

    tell()


def test_a_long_address_is_refused() -> None:
    @story(header_bytes=2000)
    async def tell(place: Place) -> None:
        line = await place.connect()
        await line.send(b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await line.answer())[0] == 431

    tell()


@pytest.mark.parametrize(
    "noise",
    [
        b"\x00" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"POST /hot HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /hot HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST /hot HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"POST /hot HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nx",
    ],
)
def test_what_is_no_http_is_refused_as_a_problem(noise: bytes) -> None:
    @story()
    async def tell(place: Place) -> None:
        line = await place.connect()
        await line.send(noise)
        status, headers, _ = await line.answer()
        assert (status, headers["content-type"]) == (400, "application/problem+json")
        assert await line.ended() == b""
        assert place.hot.begun == 0

    tell()


def test_more_connections_than_allowed_are_refused_and_room_is_found_again() -> None:
    @story(connections=2)
    async def tell(place: Place) -> None:
        place.hot.gate.set()
        first, second = await place.connect(), await place.connect()
        await first.send(post(b"/hot", b"1"))
        assert (await first.answer())[2] == b"1"
        third = await place.connect()
        status, headers, _ = await third.answer()
        assert (status, headers["connection"], headers["retry-after"]) == (503, "close", "1")
        second.writer.transport.abort()
        await place.until(lambda: len(place.server.server_state.connections) == 1)
        fourth = await place.connect()
        await fourth.send(post(b"/hot", b"4"))
        assert (await fourth.answer())[2] == b"4"

    tell()


def test_a_body_that_finds_no_room_is_told_so() -> None:
    @story()
    async def tell(place: Place) -> None:
        place.hot.gate.set()
        place.hot.most = 10
        line = await place.connect()
        await line.send(post(b"/hot", b"x" * 100_000))
        assert (await line.answer())[0] == 503
        await line.send(post(b"/hot", b"x"))
        assert (await line.answer())[0] == 200

    tell()


# --- the short way


def test_the_short_way_is_taken_again_and_again_whatever_the_pieces() -> None:
    @story(header_seconds=20, body_stall_seconds=20)
    async def tell(place: Place) -> None:
        place.hot.gate.set()
        line = await place.connect()
        random = np.random.default_rng(0)
        for turn in range(60):
            body = random.bytes(1000 if turn % 3 else int(random.integers(1, 3000)))
            data = post(b"/hot", body)
            cuts = sorted(random.integers(0, len(data), turn % 4).tolist())
            for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
                await line.send(data[start:stop])
                if turn % 2:
                    await asyncio.sleep(0)
            status, headers, answer = await line.answer()
            assert (status, headers["way"], answer) == (200, "hot", body)
        # most of them were known by their first bytes
        assert place.hot.accepted < 60

    tell()


def test_pipelined_requests_are_answered_in_order_on_both_ways() -> None:
    @story()
    async def tell(place: Place) -> None:
        line = await place.connect()
        kinds = [b"/hot", b"/hot", b"/echo", b"/hot", b"/echo", b"/echo", b"/hot"]
        data = b"".join(post(path, b"%d" % n * 8) for n, path in enumerate(kinds))
        await line.send(data)
        place.hot.gate.set()
        for repeat in range(3):
            for n, path in enumerate(kinds):
                status, headers, body = await line.answer()
                assert (status, body) == (200, b"%d" % n * 8)
                assert headers["way"] == ("hot" if path == b"/hot" else "long")
            if repeat < 2:
                await line.send(data)

    tell()


def test_a_known_head_does_not_hide_what_comes_after_it() -> None:
    """What follows a body is a request of its own, also where the body was not parsed."""

    @story()
    async def tell(place: Place) -> None:
        place.hot.gate.set()
        line = await place.connect()
        await line.send(post(b"/hot", b"12345678"))
        assert (await line.answer())[2] == b"12345678"
        inner = post(b"/echo", b"inner")
        await line.send(post(b"/hot", inner[:8]) + inner)
        assert (await line.answer())[2] == inner[:8]
        assert (await line.answer())[2] == b"inner"
        await line.send(post(b"/hot", b"abcdefgh") + b"rubbish\r\n\r\n")
        # whoever sends rubbish gets the answer that came before it, and no other
        assert (await line.answer())[2] == b"abcdefgh"
        assert await line.ended() == b""

    tell()


@pytest.mark.parametrize(
    "prelude", [b"\r\n", b"\r\n\r\n", post(b"/echo", b"POST "), post(b"/echo", post(b"/hot", b"1234"))]
)
def test_what_comes_before_a_head_is_never_taken_for_it(prelude: bytes) -> None:
    @story()
    async def tell(place: Place) -> None:
        place.hot.gate.set()
        line = await place.connect()
        for _ in range(3):
            await line.send(prelude + post(b"/hot", b"1234"))
            if prelude.startswith(b"POST"):
                assert (await line.answer())[1]["way"] == "long"
            status, headers, body = await line.answer()
            assert (status, headers["way"], body) == (200, "hot", b"1234")

    tell()


def test_a_client_that_leaves_is_cancelled_and_gives_back_what_it_holds() -> None:
    @story()
    async def tell(place: Place) -> None:
        running, waiting, half = [await place.connect() for _ in range(3)]
        await running.send(post(b"/hot", b"x" * 1000))
        await waiting.send(post(b"/hot", b"1") + post(b"/hot", b"2") + post(b"/echo", b"3"))
        await half.send(post(b"/hot", b"x" * 1000)[:-1])
        await place.until(lambda: place.hot.begun == 2)
        for line in (running, waiting, half):
            line.writer.transport.abort()
        await place.until(lambda: place.hot.cancelled == 2)
        await place.until(lambda: not place.server.server_state.connections)
        await place.until(lambda: not place.server.server_state.tasks)
        assert [hold.held for hold in place.hot.holds] == [0] * 4

    tell()


def test_a_connection_that_is_to_be_closed_is() -> None:
    @story()
    async def tell(place: Place) -> None:
        place.hot.gate.set()
        line = await place.connect()
        await line.send(post(b"/hot", b"x", b"Connection: close"))
        assert (await line.answer())[1]["connection"] == "close"
        assert await line.ended() == b""

    tell()


def test_a_server_that_stops_answers_what_it_has_accepted() -> None:
    @story(idle_seconds=30)
    async def tell(place: Place) -> None:
        idle, busy = await place.connect(), await place.connect()
        await busy.send(post(b"/hot", b"last"))
        await place.until(lambda: place.hot.begun == 1)
        place.server.should_exit = True
        assert await idle.ended() == b""
        place.hot.gate.set()
        status, headers, body = await busy.answer()
        assert (status, headers["connection"], body) == (200, "close", b"last")
        assert await busy.ended() == b""

    tell()


def test_an_expectation_is_met_on_the_long_way() -> None:
    @story()
    async def tell(place: Place) -> None:
        line = await place.connect()
        await line.send(
            b"POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
        )
        assert await line.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await line.send(b"hi")
        assert (await line.answer())[2] == b"hi"

    tell()
