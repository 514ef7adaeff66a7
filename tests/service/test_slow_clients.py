"""What a client may not do with a connection: be slow, send too much, never end, read nothing."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import Response
from uvicorn.server import ServerState

from service.http.abortable import AbortableProtocol
from service.http.faults import early_refusal
from service.http.hot_path import HotHead, HotPath, HotRequest, Reply
from service.http.in_flight import Budget
from service.settings import Limits

# whatever a test waits for comes as soon as these have passed, or it hangs and fails
SHORT = {"header_seconds": 0.1, "body_stall_seconds": 0.1, "body_seconds": 0.3, "stall_seconds": 0.1}
LONG = {"header_seconds": 60, "body_stall_seconds": 60}
HOST = b"Host: x\r\n"


@dataclass
class Echo(HotPath):
    """Sends bodies back on the short way, once the gate is open; knows who was cancelled."""

    limits: Limits
    budget: Budget = field(default_factory=lambda: Budget(10**9))
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    accepted: int = 0
    entered: int = 0
    begun: int = 0
    cancelled: int = 0
    ended: int = 0

    def accept(self, url: bytes, headers: Mapping[bytes, bytes]) -> HotHead | None:
        if not url.startswith(b"/hot") or b"content-length" not in headers:
            return None
        self.accepted += 1
        return HotHead(headers, int(headers[b"content-length"]))

    def enter(self, request: HotRequest) -> None:
        self.entered += 1
        if b"stranger" in request.head.target:
            request.fault = PermissionError()

    async def answer(self, request: HotRequest) -> Reply:
        if request.fault is not None:
            status = 401 if isinstance(request.fault, PermissionError) else 429
            return Reply(status, "way: hot\r\n", (b"no",))
        self.begun += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        times = int(request.head.target.get(b"times", b"1"))
        return Reply(200, "way: hot\r\n", (bytes(request.body),) * times)

    def end(self, request: HotRequest) -> None:  # noqa: ARG002
        self.ended += 1

    def refusal(self, status: int, slug: str, detail: str) -> Reply:
        lines, body = early_refusal(status, slug, detail)
        return Reply(status, lines.decode(), (body,))


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

    @app.post("/watch")
    async def watch(request: Request) -> Response:
        """Wait until the client leaves."""
        await request.body()
        hot.begun += 1
        assert (await request.receive())["type"] == "http.disconnect"
        hot.cancelled += 1
        return Response()

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
        log_config=None,
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
        assert hot.budget.held == 0
        assert hot.ended == hot.entered


class Wire(asyncio.Transport):
    """The other end of a connection, in memory: what was written, and whether anybody reads it."""

    def __init__(self, hot: Echo) -> None:
        super().__init__()
        self.written = b""
        self.reading = True
        self.closed = False
        config = uvicorn.Config(build_app(hot), lifespan="off", log_config=None)
        self.connection = AbortableProtocol(config, ServerState(), {})
        self.connection.connection_made(self)

    async def send(self, *pieces: bytes) -> None:
        """Let the server read each of the pieces, and do all it can about it."""
        for piece in pieces:
            if self.closed:
                return
            self.connection.data_received(piece)
            await self.quiet()

    async def quiet(self) -> None:
        for _ in range(50):
            await asyncio.sleep(0)

    @property
    def statuses(self) -> list[int]:
        return [int(status) for status in re.findall(rb"HTTP/1.1 (\d+) ", self.written)]

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"sockname": ("127.0.0.1", 80), "peername": ("127.0.0.1", 1)}.get(name, default)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self.connection.connection_lost, None)


def on_a_wire(**limits: Any) -> Callable[[Callable[[Wire, Echo], Awaitable[None]]], Callable[[], None]]:
    def told(tell: Callable[[Wire, Echo], Awaitable[None]]) -> Callable[[], None]:
        async def run() -> None:
            hot = Echo(Limits(**{**LONG, **limits}))
            wire = Wire(hot)
            await tell(wire, hot)
            wire.close()
            await wire.quiet()
            assert hot.budget.held == 0
            assert hot.ended == hot.entered

        def test() -> None:
            asyncio.run(run())

        test.__name__, test.__doc__ = tell.__name__, tell.__doc__
        return test

    return told


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


@on_a_wire()
async def test_who_reads_nothing_is_not_computed_for_again(wire: Wire, hot: Echo) -> None:
    hot.gate.set()
    await wire.send(post(b"/hot", b"1"))
    # more is written than is read
    wire.connection.pause_writing()
    await wire.send(post(b"/hot", b"2"), post(b"/hot", b"3"))
    assert hot.begun == 2
    assert hot.ended == 1, "a request ends when its answer was read"
    wire.connection.resume_writing()
    await wire.quiet()
    assert (hot.begun, hot.ended) == (3, 3)


def test_a_client_is_not_blamed_for_what_the_server_does_not_read() -> None:
    @story(header_seconds=0.2)
    async def tell(place: Place) -> None:
        line = await place.connect()
        first, rest = post(b"/hot", b"0"), b"".join(post(b"/echo", b"%d" % n) for n in range(1, 24))
        # a head begins, and goes on only in what is not read
        await line.send(first + rest[:-30])
        await place.until(lambda: place.hot.begun == 1)
        await line.send(rest[-30:])
        await asyncio.sleep(0.5)
        place.hot.gate.set()
        assert [(await line.answer())[2] for _ in range(24)] == [b"%d" % n for n in range(24)]

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


FIELDS = b"a: b\r\n" * 30, b"a: " + b"b" * 3000, b"a: " + b"b" * 1000 + b"\r\n\r\n"


@pytest.mark.parametrize("trailers", FIELDS, ids=["many", "endless", "long, with those of the head"])
def test_what_trails_a_body_is_bounded_too(trailers: bytes) -> None:
    @on_a_wire(headers=20, header_bytes=1000)
    async def tell(wire: Wire, hot: Echo) -> None:  # noqa: ARG001
        chunked = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n"
        await wire.send(chunked, *(trailers[at : at + 100] for at in range(0, len(trailers), 100)))
        assert wire.statuses == [431]
        assert wire.closed

    tell()


@on_a_wire(headers=20, header_bytes=1000)
async def test_what_trails_a_body_is_no_header(wire: Wire, hot: Echo) -> None:
    hot.gate.set()
    chunked = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n"
    for _ in range(3):
        await wire.send(chunked, b"times: 9\r\nway: 7\r\n\r\n", post(b"/hot", b"x"))
    assert wire.statuses == [200] * 6
    assert b"\r\n\r\nx" in wire.written
    assert b"xx" not in wire.written


@on_a_wire(headers=20, header_bytes=400)
async def test_how_a_head_is_cut_makes_no_difference(wire: Wire, hot: Echo) -> None:  # noqa: ARG001
    # as much as may be: the address, names and values; and one byte more
    head = b"GET /none HTTP/1.1\r\nHost: x\r\nA: %b\r\nB: c\r\n\r\n" % (b"a" * 387)
    for cut in range(len(head)):
        await wire.send(head[:cut], head[cut:])
    await wire.send(*(head[at : at + 1] for at in range(len(head))))
    assert wire.statuses == [404] * (len(head) + 1)
    await wire.send(head.replace(b"B: c", b"B: cc"))
    assert wire.statuses[-1] == 431


@pytest.mark.parametrize("path", [b"/echo", b"/hot"])
def test_a_large_body_is_not_counted_as_the_head_that_follows_it(path: bytes) -> None:
    @on_a_wire(header_bytes=400)
    async def tell(wire: Wire, hot: Echo) -> None:
        hot.gate.set()
        first, second = post(path, b"x" * 5000), post(path, b"y")
        for _ in range(2):  # the second time without the parser
            await wire.send(first + second[:20], second[20:])
        assert wire.statuses == [200] * 4

    tell()


def test_more_requests_in_one_piece_than_anybody_needs_are_refused() -> None:
    @on_a_wire()
    async def tell(wire: Wire, hot: Echo) -> None:
        await wire.send(post(b"/hot", b"1") * 1000)
        assert not wire.closed
        assert hot.entered < 300
        hot.gate.set()
        await wire.quiet()
        while len(wire.statuses) < hot.entered + 1:
            await wire.quiet()
        assert wire.statuses == [200] * hot.entered + [503]
        assert wire.closed

    tell()


@on_a_wire()
async def test_reading_stops_while_much_waits(wire: Wire, hot: Echo) -> None:
    for number in range(12):
        assert wire.reading == (number < 9), number
        await wire.send(post(b"/hot", b"1"))
    hot.gate.set()
    await wire.quiet()
    assert wire.reading
    assert wire.statuses == [200] * 12


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
        b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET x HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /hot HTTP/1.1\r\nAuthorization: a\r\nAuthorization: b\r\nContent-Length: 1\r\n\r\nx",
        b"POST /echo HTTP/1.1\r\nContent-Type: a\r\nContent-Type: b\r\nContent-Length: 1\r\n\r\nx",
        b"GET /large HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
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
        place.hot.budget.take(place.hot.budget.limit, 0)
        line = await place.connect()
        await line.send(post(b"/hot", b"x" * 100_000))
        assert (await line.answer())[0] == 429
        place.hot.budget.give_back(place.hot.budget.limit)
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
        # whoever sends rubbish gets the answer that came before it, and is told
        assert (await line.answer())[2] == b"abcdefgh"
        assert (await line.answer())[0] == 400
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


@on_a_wire()
async def test_what_the_two_ways_read_differently_takes_the_long_one(wire: Wire, hot: Echo) -> None:
    hot.gate.set()
    await wire.send(post(b"/hot", b"x", b"Accept: a", b"Accept: b"))
    assert (hot.accepted, wire.statuses) == (0, [404])


@on_a_wire()
async def test_a_request_that_may_not_be_is_refused_before_its_body(wire: Wire, hot: Echo) -> None:
    stranger, friend = post(b"/hot", b"x" * 1000, b"stranger: 1"), post(b"/hot", b"y")
    for _ in range(2):  # the second time without the parser
        await wire.send(stranger[:-500])
        assert (wire.statuses.pop(), hot.budget.held) == (401, 0)
        await wire.send(stranger[-500:-1])
        assert (hot.budget.held, wire.closed) == (0, False)
        # the rest is read away, and the connection goes on
        await wire.send(stranger[-1:])
    hot.gate.set()
    await wire.send(stranger + friend)
    assert wire.statuses == [401, 401, 401, 200]
    await wire.send(post(b"/hot", b"x" * 1000, b"stranger: 1", b"Connection: close")[:-500])
    assert (wire.statuses[-1], wire.closed) == (401, False)
    await wire.send(b"x" * 500)
    assert wire.closed


@on_a_wire()
async def test_a_body_without_room_holds_nothing(wire: Wire, hot: Echo) -> None:
    whole = post(b"/hot", b"x" * 1000)
    # it waits for the one before it, and is refused all the same
    await wire.send(post(b"/hot", b"y"), whole[:-500])
    assert hot.budget.held == 501
    others = hot.budget.limit - hot.budget.held
    hot.budget.take(others, 0)
    await wire.send(whole[-500:-1])
    assert hot.budget.held == others + 1
    hot.gate.set()
    await wire.quiet()
    assert wire.statuses == [200, 429]
    await wire.send(whole[-1:])
    assert not wire.closed
    hot.budget.give_back(others)


@pytest.mark.parametrize("path", [b"/hot", b"/watch"])
@pytest.mark.parametrize("behind", [b"", b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n", post(b"/hot", b"2")])
def test_who_leaves_is_missed_whatever_they_sent_behind(path: bytes, behind: bytes) -> None:
    @on_a_wire()
    async def tell(wire: Wire, hot: Echo) -> None:
        await wire.send(post(path, b"1") + behind)
        assert (hot.begun, hot.cancelled) == (1, 0)
        wire.close()
        await wire.quiet()
        assert (hot.begun, hot.cancelled) == (1, 1)
        assert wire.written == b""

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
        assert (place.hot.entered, place.hot.budget.held) == (4, 0)

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


@pytest.mark.parametrize("path", [b"/hot", b"/echo"])
@pytest.mark.parametrize("sent", [30, -4], ids=["head", "body"])
def test_a_server_that_stops_answers_what_has_begun_to_come(path: bytes, sent: int) -> None:
    @on_a_wire()
    async def tell(wire: Wire, hot: Echo) -> None:
        hot.gate.set()
        data = post(path, b"last words")
        await wire.send(data[:sent])
        wire.connection.shutdown()
        await wire.send(data[sent:])
        assert wire.statuses == [200]
        assert b"\r\nconnection: close\r\n" in wire.written
        assert wire.written.endswith(b"last words")
        assert wire.closed

    tell()


def test_a_server_that_stops_waits_for_nobody_else() -> None:
    @on_a_wire()
    async def tell(wire: Wire, hot: Echo) -> None:
        hot.gate.set()
        await wire.send(post(b"/hot", b"x"))
        wire.connection.shutdown()
        assert wire.closed

    tell()


@on_a_wire()
async def test_nothing_is_read_after_the_last_request(wire: Wire, hot: Echo) -> None:
    hot.gate.set()
    await wire.send(post(b"/hot", b"x", b"Connection: close") + post(b"/hot", b"y") + b"rubbish")
    assert (wire.statuses, hot.entered, wire.closed) == ([200], 1, True)


OFFERS = b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__"


@pytest.mark.parametrize("path", [b"/hot", b"/echo"])
def test_an_upgrade_that_is_offered_is_not_needed(path: bytes, caplog: pytest.LogCaptureFixture) -> None:
    @on_a_wire()
    async def tell(wire: Wire, hot: Echo) -> None:
        hot.gate.set()
        whole, after = post(path, b"the body", *OFFERS), post(path, b"after it")
        for cut in range(1, len(whole), 7):
            await wire.send(whole[:cut], whole[cut:] + after)
        chunked = b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + b"\r\n".join(OFFERS)
        await wire.send(chunked + b"\r\n\r\n8\r\nthe body\r\n0\r\n\r\n")
        assert set(wire.statuses) == {200}
        assert wire.written.count(b"\r\n\r\nthe body") == wire.written.count(b"\r\n\r\nafter it") + 1

    with caplog.at_level(logging.INFO, "uvicorn.error"):
        tell()
    assert not caplog.records


def test_rubbish_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    @on_a_wire()
    async def tell(wire: Wire, hot: Echo) -> None:  # noqa: ARG001
        await wire.send(b"rubbish\r\n\r\n")
        assert wire.statuses == [400]

    with caplog.at_level(logging.INFO, "uvicorn.error"):
        tell()
    assert not caplog.records


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
