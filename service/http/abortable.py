"""Connections that are bounded in everything their client controls, and that know a shorter way to an answer.

uvicorn's connection sets no limit to slow, half-sent or endless requests, and none to a client that reads
nothing; ASGI has no word for either. So this one

- refuses headers that are too large, too many or too slow, and bodies that stall or never end;
- ends itself when what it wrote is not read, and lends the application the means to do so (``abort_of``);
- gives a request that ``app.state.hot`` accepts to it once the whole body is there, without ASGI's messages,
  and cancels it when the client leaves. See ``hot.py``.
"""

from __future__ import annotations

import asyncio
import enum
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol, cast, final

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.settings import Limits

__all__ = ["AbortableProtocol", "Buffer", "Hold", "HotHead", "HotPath", "HotRequest", "abort_of"]

EXTENSION: Final = "mno.abort"
# written and not yet read by the client [B]; an answer of the usual size does not wait for its reader
HIGH_WATER: Final = 256 * 1024
# for the rest of a body whose answer is sent: a client that still sends might not see it else [s]
LINGER_SECONDS: Final = 2.0

# requests that a client may send before the first of them is answered
MOST_PIPELINED: Final = 8
HEAD_ENDS: Final = b"\r\n\r\n"

Buffer = bytes | bytearray | memoryview


class HotPath(ABC):
    """What answers requests without ASGI."""

    limits: Limits

    @abstractmethod
    def accept(self, url: bytes, headers: list[tuple[bytes, bytes]]) -> HotHead | None:
        """What it needs of a POST request that it will answer; None: ASGI has to."""

    @abstractmethod
    def hold(self) -> Hold:
        """A share of what all requests together may hold."""

    @abstractmethod
    async def answer(self, request: HotRequest) -> None:
        """Answer a whole request by ``request.respond``; cancelled when its client leaves."""

    @abstractmethod
    def refusal(self, status: int, slug: str, detail: str) -> tuple[bytes, bytes]:
        """Header lines and body that refuse what is no request yet, or not in time."""


class Hold(Protocol):
    """A share of what all requests together may hold."""

    def take(self, count: int) -> None:
        """Hold more bytes, or raise."""

    def release(self) -> None:
        """Give everything back."""


@final
class HotHead:
    """What a request says before its body; the same for all requests that begin with the same bytes.

    Attributes:
        target: what the application made of the path.
        headers: by name, in lower case.
        length: of the body [B].
        weight: how many bytes of memory a byte of the body counts for.
        keep_alive: whether the connection goes on after the answer.
    """

    __slots__ = ("headers", "keep_alive", "length", "target", "weight")

    def __init__(self, target: Any, headers: Mapping[bytes, bytes], length: int, weight: int = 1) -> None:
        self.target = target
        self.headers = headers
        self.length = length
        self.weight = weight
        self.keep_alive = True


@final
class _Over:
    """What a request that was answered has in the place of its own event."""

    def set(self) -> None:
        """Nobody waits."""


_OVER: Final = _Over()


@final
class HotRequest:
    """A request on the short way. To uvicorn's connection it is a cycle, and the event that its client left.

    Attributes:
        head: what came before the body.
        chunks: the body as it came.
        missing: what is still to come of it [B].
        received: ``time.perf_counter()`` when its headers were there [s].
        fault: why no more of the body was kept.
    """

    __slots__ = (
        "_connection",
        "_task",
        "chunks",
        "disconnected",
        "fault",
        "head",
        "hold",
        "keep_alive",
        "message_event",
        "missing",
        "more_body",
        "received",
        "response_complete",
        "response_started",
    )

    def __init__(self, head: HotHead, hold: Hold, connection: AbortableProtocol) -> None:
        self.head = head
        self.hold = hold
        self._connection = connection
        self.chunks: list[Buffer] = []
        self.missing = head.length
        self.received = time.perf_counter()
        self.fault: Exception | None = None
        self._task: asyncio.Task[None] | None = None
        self.disconnected = self.response_complete = self.response_started = False
        self.keep_alive = head.keep_alive
        self.more_body = True
        self.message_event: HotRequest | _Over = self

    @property
    def body(self) -> Buffer:
        """The whole body; copied only where it came in parts."""
        chunks = self.chunks
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def keep(self, chunk: Buffer) -> None:
        """Keep a part of the body, while there is room for it."""
        self.missing -= len(chunk)
        if self.fault is None:
            try:
                self.hold.take(self.head.weight * len(chunk))
            except Exception as fault:  # the answer will say it
                self.fault = fault
                self.chunks.clear()
            else:
                self.chunks.append(chunk)

    def set(self) -> None:
        """The connection's word for: the client has left, or there is more of the body."""
        if self.disconnected:
            if self._task is None:
                self.hold.release()
            else:
                self._task.cancel()

    def respond(self, status: int, headers: bytes, body: Sequence[Buffer], length: int) -> None:
        """Write the whole answer.

        Args:
            status: of HTTP.
            headers: their lines, each with its end.
            body: its parts, which are not copied: nobody may write to them any more.
            length: of the body [B].
        """
        if not self.disconnected:
            self._connection.write_answer(self, status, headers, body, length)

    async def run_asgi(self, _: object) -> None:
        """What uvicorn's connection calls in a task of its own."""
        connection = self._connection
        self._task = asyncio.current_task()
        try:
            if not self.disconnected:
                await connection.hot.answer(self)
            if connection.flow.write_paused:
                # what the request holds is released when its answer was read, or nobody will
                await connection.flow.drain()
        except asyncio.CancelledError:
            # by the connection, when it was lost; anybody else means the whole service
            if not self.disconnected:
                raise
        finally:
            self.hold.release()
            # while it refers to itself it waits for the garbage collector, and its body with it
            self.message_event = _OVER
            self.chunks.clear()
            connection.hot_ended(self)


class _Phase(enum.Enum):
    IDLE = enum.auto()
    HEADERS = enum.auto()
    BODY = enum.auto()
    ANSWERING = enum.auto()


@final
class _Plain(HotPath):
    """Takes no request the short way: for applications that have none."""

    limits = Limits()

    def accept(self, url: bytes, headers: list[tuple[bytes, bytes]]) -> HotHead | None:  # noqa: ARG002
        return None

    def hold(self) -> Hold:
        raise AssertionError("nothing was accepted, and nothing is held")

    async def answer(self, request: HotRequest) -> None:
        raise AssertionError(f"nothing was accepted, and yet {request} is to be answered")

    def refusal(self, status: int, slug: str, detail: str) -> tuple[bytes, bytes]:  # noqa: ARG002
        return b"content-type: text/plain\r\n", detail.encode()


@final
class AbortableProtocol(HttpToolsProtocol):
    """uvicorn's connection with limits, and the shorter way."""

    def __init__(self, config: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options)
        state = getattr(config.app, "state", None)
        self.hot: HotPath = getattr(state, "hot", None) or _Plain()
        self._limits = self.hot.limits
        self._phase = _Phase.IDLE
        self._head_bytes = 0
        self._head_ends: float | None = None
        self._body_ends: float | None = None
        self._common: tuple[object, bytes] = (None, b"")
        self._refusal: tuple[int, str, str] | None = None
        self._incoming: HotRequest | None = None
        self._running: HotRequest | None = None
        # the bytes with which this client's last request on the short way began, and what they say
        self._known: HotHead | None = None
        self._known_bytes = b""
        self._accepted: HotHead | None = None
        self._unparsed = False
        self._begun = 0
        # one timer, which moves at most once for many requests; what it waits for is ``_deadline``
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    # --- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See ``asyncio.Protocol``."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=HIGH_WATER)
        if len(self.connections) > self._limits.connections:
            self._refuse(503, "overloaded", "too many connections are open; come back later")
            return
        self._expect(self._limits.idle_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        self._forget_timers()
        for cycle in (self._running, self._incoming, *(cycle for cycle, _ in self.pipeline)):
            if isinstance(cycle, HotRequest) and not cycle.response_complete:
                cycle.disconnected = True
                cycle.set()
        self.pipeline.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        if self._phase is _Phase.IDLE and self._known is not None and data.startswith(self._known_bytes):
            # clients begin request after request with the same bytes, and parsing is most of the work
            self._begin_hot(self._known)
            self._take(memoryview(data)[len(self._known_bytes) :])
        elif self._phase is _Phase.BODY and self._unparsed:
            self._take(memoryview(data))
        else:
            self._parse(data)
        if self._phase is not _Phase.ANSWERING:
            self._watch(len(data))

    def _take(self, data: memoryview) -> None:
        """A part of a body that the parser does not see, and perhaps what comes after it."""
        request = self._incoming
        assert request is not None
        more = data[request.missing :]
        request.keep(data[: request.missing] if more else data)
        if not request.missing:
            self._unparsed = False
            self.on_message_complete()
            if more:
                self._parse(bytes(more))

    def _parse(self, data: bytes) -> None:
        begins = self._phase is _Phase.IDLE
        self._begun = 0
        super().data_received(data)
        if self._accepted is not None:
            # nothing but this request may have begun in ``data``, and that with its first byte
            if begins and self._begun == 1 and data.startswith(b"POST "):
                self._remember(self._accepted, data)
            self._accepted = None

    def _remember(self, head: HotHead, data: bytes) -> None:
        """Know a head again, if it is as plain as its parser may have found it."""
        end = data.find(HEAD_ENDS) + len(HEAD_ENDS)
        lines = data.count(b"\r\n", 0, end)
        # the request's own line, those of its headers, and an empty one, none of which ends otherwise
        if head.keep_alive and lines == data.count(b"\n", 0, end) == len(self.headers) + 2:
            self._known, self._known_bytes = head, data[:end]

    def _watch(self, count: int) -> None:
        """Set a time for what is still to come of the request."""
        phase = self._phase
        if phase is _Phase.IDLE or self.transport.is_closing():
            return
        if phase is _Phase.HEADERS:
            if self._head_ends is None:
                self._head_ends = self.loop.time() + self._limits.header_seconds
                self._expect_at(self._head_ends)
            # httptools keeps what it has of a header's value, however long it gets
            self._head_bytes += count
            if self._head_bytes > 2 * self._limits.header_bytes:
                self._refuse(431, "header-too-large", self._too_large())
        elif self._incoming is not None or not self.cycle.response_complete:
            now = self.loop.time()
            if self._body_ends is None:
                self._body_ends = now + self._limits.body_seconds
            self._expect_at(min(now + self._limits.body_stall_seconds, self._body_ends))

    def pause_writing(self) -> None:
        """See ``asyncio.Protocol``."""
        super().pause_writing()
        if self._stalled is None:
            self._expect_reading()

    def _expect_reading(self, unread: int | None = None) -> None:
        """Let the client go if it reads nothing at all, of so many bytes, for too long."""
        left = self.transport.get_write_buffer_size()
        if unread is not None and left >= unread:
            self.transport.abort()
            return
        self._stalled = self.loop.call_later(self._limits.stall_seconds, self._expect_reading, left)

    def resume_writing(self) -> None:
        """See ``asyncio.Protocol``."""
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    # --- what the parser finds

    def on_message_begin(self) -> None:
        """See ``httptools``."""
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        self._phase = _Phase.HEADERS
        self._begun += 1
        self._head_bytes = 0
        self._head_ends = None

    def on_header(self, name: bytes, value: bytes) -> None:
        """See ``httptools``."""
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))
        self._head_bytes += len(name) + len(value)

    def on_headers_complete(self) -> None:
        """See ``httptools``."""
        self._phase = _Phase.BODY
        self._body_ends = None
        limits = self._limits
        if self._head_bytes + len(self.url) > limits.header_bytes or len(self.headers) > limits.headers:
            self._refusal = (431, "header-too-large", self._too_large())
            raise ValueError("large headers")
        parser = self.parser
        if parser.get_method() == b"POST" and parser.get_http_version() == "1.1":
            head = self.hot.accept(self.url, self.headers)
            if head is not None:
                head.keep_alive = parser.should_keep_alive()
                self._accepted = head
                self._incoming = HotRequest(head, self.hot.hold(), self)
                return
        self._begin_asgi()

    def _begin_hot(self, head: HotHead) -> None:
        self._phase = _Phase.BODY
        self._body_ends = None
        self._unparsed = True
        self._incoming = HotRequest(head, self.hot.hold(), self)

    def _begin_asgi(self) -> None:
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.headers, self.expect_100_continue = url, headers, expects
        self.scope["headers"] = headers
        extensions: dict[str, Any] = {EXTENSION: self.transport.abort}
        self.scope["extensions"] = extensions
        super().on_headers_complete()
        self._bound_pipeline()

    def _bound_pipeline(self) -> None:
        """Read on, so that it is seen when the client leaves, unless it sends ever more requests."""
        if len(self.pipeline) >= MOST_PIPELINED:
            self.flow.pause_reading()
        elif self.pipeline:
            self.flow.resume_reading()

    def on_body(self, body: bytes) -> None:
        """See ``httptools``."""
        if self._incoming is None:
            super().on_body(body)
        else:
            self._incoming.keep(body)

    def on_message_complete(self) -> None:
        """See ``httptools``."""
        self._phase = _Phase.ANSWERING
        self._deadline = None
        request, self._incoming = self._incoming, None
        if request is None:
            super().on_message_complete()
            if self.cycle is not None and self.cycle.response_complete:
                # it was answered before it was read to its end
                self._rest()
            return
        before, self.cycle = self.cycle, cast(RequestResponseCycle, request)
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.pipeline.appendleft((self.cycle, self.app))
            self._bound_pipeline()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if isinstance(cycle, HotRequest):
            self._running = cycle
            # it leaves ``tasks`` by itself, see ``hot_ended``
            self.tasks.add(self.loop.create_task(cycle.run_asgi(app)))
        else:
            super()._start_asgi_task(cycle, app)

    # --- answers

    def write_answer(
        self, request: HotRequest, status: int, headers: bytes, body: Sequence[Buffer], length: int
    ) -> None:
        """Write an answer of the short way; see ``HotRequest.respond``."""
        request.response_started = request.response_complete = True
        given, common = self._common
        if given is not self.server_state.default_headers:
            given = self.server_state.default_headers
            common = b"".join([b"%b: %b\r\n" % pair for pair in given])
            self._common = given, common
        end = b"\r\n" if request.keep_alive else b"connection: close\r\n\r\n"
        head = b"%b%b%bcontent-length: %d\r\n%b" % (STATUS_LINE[status], common, headers, length, end)
        self.transport.writelines([head, *body])
        if not request.keep_alive:
            self.transport.close()

    def hot_ended(self, request: HotRequest) -> None:
        """A request of the short way has ended, answered or not."""
        self._running = None
        task = asyncio.current_task()
        assert task is not None
        self.tasks.discard(task)
        if not request.response_complete and not request.disconnected:
            self.transport.close()
        self.on_response_complete()

    def on_response_complete(self) -> None:
        """What uvicorn's cycles call when they have written their answer."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        elif self._phase is _Phase.BODY and self._incoming is None:
            # answered before it was read to its end
            self._expect(LINGER_SECONDS)
        elif self._phase is _Phase.ANSWERING:
            self._rest()

    def _rest(self) -> None:
        self._phase = _Phase.IDLE
        self._expect(self._limits.idle_seconds)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP, or too much of it."""
        status, slug, detail = self._refusal or (400, "bad-request", msg)
        self._refuse(status, slug, detail)

    def _refuse(self, status: int, slug: str, detail: str) -> None:
        before = self._being_answered()
        if before is not None:
            # an answer comes first: the client would take the refusal for it
            before.keep_alive = False
            self.flow.pause_reading()
            return
        headers, body = self.hot.refusal(status, slug, detail)
        length = b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + headers + length + body)
        self.transport.close()

    def _being_answered(self) -> HotRequest | RequestResponseCycle | None:
        """The request that is answered while a later one is read."""
        if self._running is not None:
            return self._running
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return None
        reads_itself = self._phase is _Phase.BODY and self._incoming is None and not self.pipeline
        return None if reads_itself else cycle

    def _too_large(self) -> str:
        limits = self._limits
        return (
            f"expected at most {limits.headers} headers and {limits.header_bytes} bytes of them; send fewer"
        )

    # --- time

    def _expect(self, seconds: float) -> None:
        self._expect_at(self.loop.time() + seconds)

    def _expect_at(self, deadline: float) -> None:
        """Give the client until ``deadline`` for what comes next."""
        self._deadline = deadline
        if self._timer is not None:
            if self._timer.when() <= deadline:
                return
            self._timer.cancel()
        self._timer = self.loop.call_at(deadline, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._deadline is None or self.transport.is_closing():
            return
        if self.loop.time() < self._deadline:
            self._expect_at(self._deadline)
        elif self._phase is _Phase.BODY and self.flow.read_paused:
            # not the client's fault: the application does not take what it sends
            self._expect(self._limits.body_stall_seconds)
        else:
            self._give_up()

    def _give_up(self) -> None:
        cycle = self._incoming or self.cycle
        if self._phase is _Phase.IDLE or (self._phase is _Phase.BODY and cycle.response_started):
            # what the client has not read by now it never will
            self.transport.abort() if self.transport.get_write_buffer_size() else self.transport.close()
            return
        what = "headers" if self._phase is _Phase.HEADERS else "body"
        self._refuse(408, "request-timeout", f"the {what} took too long; send them faster, or send less")

    def _forget_timers(self) -> None:
        for timer in (self._timer, self._stalled):
            if timer is not None:
                timer.cancel()
        self._timer = self._stalled = self._deadline = None


def abort_of(scope: Scope) -> Callable[[], None] | None:
    """What ends the connection of a request at once; None: its server cannot."""
    found: Callable[[], None] | None = scope.get("extensions", {}).get(EXTENSION)
    return found
