"""Connections that are bounded in everything their client controls, and that know a shorter way to an answer.

A connection reads requests one after the other, and answers them in that order in a task of its own. One that
``app.state.hot`` accepts takes the short way: it is answered once its whole body is there, without ASGI's
messages, and cancelled when its client leaves (``hot_path.py``). All others become uvicorn's, and ASGI's.

uvicorn's own connection sets no limit to slow, half-sent or endless requests, and none to a client that reads
nothing; ASGI has no word for either. So this one

- refuses heads that are too large or too slow, and bodies that stall or never end;
- reads no more than a few requests ahead, and nothing of a body that the application does not take;
- ends itself when what it wrote is not read, and lends the application the means to do so (``abort_of``).
"""

from __future__ import annotations

import asyncio
import enum
import logging
import urllib.parse
from collections import deque
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Final, cast, final

import httptools
import uvicorn
from starlette.types import Scope
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle
from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl
from uvicorn.server import ServerState

from service.codec import Buffer
from service.http.alarm import Alarm
from service.http.head import Head, Refused
from service.http.hot_path import HotHead, HotPath, HotRequest, NoHotPath, Reply

__all__ = ["AbortableProtocol", "Buffer", "abort_of"]

log = logging.getLogger("uvicorn.error")

EXTENSION: Final = "mno.abort"
# written and not yet read by the client [B]; an answer of the usual size does not wait for its reader
HIGH_WATER: Final = 256 * 1024
# for the rest of a body whose answer is sent: a client that still sends might not see it else [s]
LINGER_SECONDS: Final = 2.0
# requests that wait: with so many nothing is read, and where they came all in one piece the next is refused
MOST_PIPELINED: Final = 8
MOST_IN_ONE_PIECE: Final = 256
# of a body that the application has not taken yet [B]
MOST_UNTAKEN: Final = 2**16

Request = HotRequest | RequestResponseCycle


@final
class _Phase(enum.Enum):
    """What is read: nothing of a request yet, its head, its body; or nothing any more."""

    IDLE = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()
    OVER = enum.auto()


# names of their own: they are looked up again and again with every request
IDLE, HEAD, BODY, OVER = _Phase


@final
class AbortableProtocol(asyncio.Protocol):
    """A connection of ``uvicorn.Server``; see the module."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        if not config.loaded:
            config.load()
        self._config = config
        self._server = server_state
        self._app_state = app_state
        self._loop = _loop or asyncio.get_running_loop()
        self.connections = server_state.connections
        self._hot: HotPath = getattr(getattr(config.app, "state", None), "hot", None) or NoHotPath()
        self._limits, self._budget = self._hot.limits, self._hot.budget
        # what is read
        self._parser = httptools.HttpRequestParser(self)
        self._phase = IDLE
        self._head = Head(self._limits)
        self._incoming: Request | None = None
        self._is_last = False
        # what the parser has taken and not told yet [B]
        self._untold = 0
        # what it reads, if a head may begin with its first byte
        self._piece = b""
        # the bytes with which this client's last request on the short way began, and what they say
        self._known: HotHead | None = None
        self._known_bytes = b""
        self._unparsed = False
        # what is answered, and what waits for it
        self._queue: deque[Request | Reply] = deque()
        self._running: Request | Reply | None = None
        self._task: asyncio.Task[None] | None = None
        self._wanted: asyncio.Future[None] | None = None
        self._common: tuple[object, bytes] = (None, b"")
        # what the client has time for, and when what it sends now has to be whole
        self._alarm = Alarm(self._loop, self._give_up)
        self._ends: float | None = None
        # back-pressure, both ways; the names are those of uvicorn's ``FlowControl``
        self._paused: float | None = None
        self.write_paused = False
        self._writable = asyncio.Event()
        self._stalled: asyncio.TimerHandle | None = None

    # --- the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See ``asyncio.Protocol``."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=HIGH_WATER)
        self.connections.add(self)  # type: ignore[arg-type]  # uvicorn names its own kinds only
        if len(self.connections) > self._limits.connections:
            self._refuse(Refused(503, "overloaded", "too many connections are open; come back later"))
        else:
            self._settle()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """See ``asyncio.Protocol``."""
        self.connections.discard(self)
        self._transport.close()
        self._read_no_more()
        while self._queue:
            self._leave(self._queue.pop())
        if isinstance(self._running, HotRequest):
            cast(asyncio.Task[None], self._task).cancel()
        else:
            self._leave(self._running)
        self.resume_writing()
        self._wake()
        self._alarm.end()
        # they refer to each other
        del self._parser

    def shutdown(self) -> None:
        """Answer what has begun to come, and nothing after it; uvicorn calls this when it stops."""
        self._is_last = True
        last: Request | Reply | None = self._incoming
        if self._phase is IDLE:
            self._phase = OVER
            last = self._queue[-1] if self._queue else self._running
        if isinstance(last, HotRequest | RequestResponseCycle):
            last.keep_alive = False
        elif not self._is_busy():
            self._settle()

    def _leave(self, request: Request | Reply | None) -> None:
        """Its client has left, and nobody is answering it but perhaps ASGI, which is told."""
        if isinstance(request, HotRequest):
            request.release(self._budget)
            self._hot.end(request)
        elif isinstance(request, RequestResponseCycle):
            request.disconnected = True
            request.message_event.set()

    # --- reading

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        known = self._known
        if known is not None and self._phase is IDLE and data.startswith(self._known_bytes):
            # clients begin request after request with the same bytes, and parsing is most of the work
            self._begin_hot(known, keep_alive=True)
            self._unparsed = True
            if len(data) > len(self._known_bytes):
                self._take(memoryview(data)[len(self._known_bytes) :])
        elif self._unparsed:
            self._take(memoryview(data))
        elif self._phase is not OVER:
            self._parse(data)
        if self._phase is HEAD or self._phase is BODY:
            self._watch()

    def _take(self, data: memoryview) -> None:
        """A part of a body that the parser does not see, and perhaps what comes after it."""
        request = cast(HotRequest, self._incoming)
        size = request.missing
        self._keep(request, data if len(data) <= size else data[:size])
        if not request.missing:
            self._unparsed = False
            self.on_message_complete()
            if len(data) > size and self._phase is not OVER:
                self._parse(bytes(data[size:]))

    def _keep(self, request: HotRequest, chunk: Buffer) -> None:
        had_fault = request.fault is not None
        request.keep(chunk, self._budget)
        if request.fault is not None and not had_fault:
            self._enqueue(request)

    def _parse(self, data: bytes) -> None:
        self._piece = data if self._phase is IDLE and data.startswith(b"POST ") else b""
        self._untold += len(data)
        try:
            self._feed(data)
            if self._untold > 2 * self._limits.header_bytes:
                # it keeps a header until it is whole, however long that gets
                raise self._head.too_large()
        except Refused as refused:
            self._refuse(refused)
        self._piece = b""

    def _feed(self, data: bytes) -> None:
        while data:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as offer:
                # who speaks no other protocol answers as if none had been offered; the parser skips the body
                method, version = self._parser.get_method(), self._parser.get_http_version()
                data = self._head.without_upgrade(method, version) + data[offer.args[0] :]
            except httptools.HttpParserError as error:
                if self._phase is OVER:
                    # after the last request: nobody wants to know
                    return
                # what was raised by those whom the parser calls
                cause = error.__context__
                if isinstance(cause, Refused):
                    raise cause from None
                if cause is not None:
                    raise
                raise Refused(400, "bad-request", f"expected a request of HTTP/1.1: {error}") from error

    # what the parser calls: see ``httptools``

    def on_message_begin(self) -> None:
        """The first byte of a head."""
        if self._phase is OVER:
            raise Refused(400, "bad-request", "the request before was the last one")
        self._phase, self._ends = HEAD, None
        self._head = Head(self._limits)
        self._untold = 0

    def on_url(self, url: bytes) -> None:
        """A part of the target."""
        self._untold = 0
        self._head.add_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or what comes in its place after a chunked body."""
        self._untold = 0
        add = self._head.add_field if self._phase is HEAD else self._head.add_trailer
        add(name, value)

    def on_headers_complete(self) -> None:
        """The end of a head."""
        parser, head = self._parser, self._head
        method, version = parser.get_method(), parser.get_http_version()
        if method == b"CONNECT":
            raise Refused(400, "bad-request", "this is no proxy")
        if parser.should_upgrade():
            # its parser has no more to say: see ``_feed``
            return
        if len(self._queue) >= MOST_IN_ONE_PIECE:
            raise Refused(503, "overloaded", "too many requests came before their answers; send fewer")
        named = head.by_name()
        keep_alive = version != "1.0" and parser.should_keep_alive() and not self._is_last
        if method == b"POST" and version == "1.1" and len(named) == len(head.fields):
            known = self._hot.accept(head.url, named)
            if known is not None:
                begin = head.bytes_in(self._piece) if keep_alive else None
                if begin:
                    self._known, self._known_bytes = known, begin
                self._begin_hot(known, keep_alive=keep_alive)
                return
        self._begin_asgi(method, version, named, keep_alive=keep_alive)

    def on_body(self, body: bytes) -> None:
        """A part of a body."""
        self._untold = 0
        request = self._incoming
        if isinstance(request, HotRequest):
            self._keep(request, body)
        elif request is not None and not request.response_complete:
            request.body += body
            request.message_event.set()
            self.resume_reading()

    def on_message_complete(self) -> None:
        """The last byte of a request."""
        self._piece = b""
        request, self._incoming = self._incoming, None
        if request is None:
            # another protocol was offered, and its head comes again
            return
        self._phase = IDLE if request.keep_alive else OVER
        self._alarm.at = None
        if isinstance(request, RequestResponseCycle):
            request.more_body = False
            request.message_event.set()
        elif request.fault is None:
            self._enqueue(request)
        if not self._is_busy():
            # it was answered before it was read to its end
            self._settle()

    # --- requests

    def _begin_hot(self, head: HotHead, *, keep_alive: bool) -> None:
        self._phase, self._ends = BODY, None
        self._incoming = request = HotRequest(head, keep_alive=keep_alive)
        self._hot.enter(request)
        if request.fault is not None:
            # nobody needs the body to say so
            self._enqueue(request)

    def _begin_asgi(
        self, method: bytes, version: str, named: Mapping[bytes, bytes], *, keep_alive: bool
    ) -> None:
        scope = self._scope(method.decode(), version)
        self._phase, self._ends = BODY, None
        self._incoming = request = RequestResponseCycle(
            scope=scope,
            transport=self._transport,
            # as much of it as they use
            flow=cast(FlowControl, self),
            logger=log,
            access_logger=log,
            access_log=False,
            default_headers=self._server.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=named.get(b"expect", b"").lower() == b"100-continue",
            keep_alive=keep_alive,
            on_response=_nothing,
        )
        self._enqueue(request)

    def _scope(self, method: str, version: str) -> Any:
        """What ASGI calls the head of a request."""
        head, root = self._head, self._config.root_path
        try:
            url = httptools.parse_url(head.url)
            path = url.path.decode("ascii")
        except (httptools.HttpParserError, UnicodeError, AttributeError) as error:
            raise Refused(400, "bad-request", "expected a path, and perhaps a query after it") from error
        extensions: dict[str, Any] = {EXTENSION: self._transport.abort}
        return {
            "type": "http",
            "asgi": {"version": self._config.asgi_version, "spec_version": "2.3"},
            "http_version": version,
            **self._addresses,
            "method": method,
            "root_path": root,
            "path": root + urllib.parse.unquote(path),
            "raw_path": root.encode() + url.path,
            "query_string": url.query or b"",
            "headers": head.fields,
            "state": self._app_state.copy(),
            "extensions": extensions,
        }

    @cached_property
    def _addresses(self) -> Mapping[str, Any]:
        transport = self._transport
        scheme = "https" if is_ssl(transport) else "http"
        return {"server": get_local_addr(transport), "client": get_remote_addr(transport), "scheme": scheme}

    def _enqueue(self, request: Request | Reply) -> None:
        self._queue.append(request)
        if self._task is None:
            self._task = self._loop.create_task(self._answer_all())
            self._server.tasks.add(self._task)
            self._task.add_done_callback(self._server.tasks.discard)
        else:
            self._wake()
        if len(self._queue) >= MOST_PIPELINED:
            self.resume_reading()

    def _wake(self) -> None:
        if self._wanted is not None and not self._wanted.done():
            self._wanted.set_result(None)

    def _is_busy(self) -> bool:
        return self._running is not None or len(self._queue) > 0

    # --- answering

    async def _answer_all(self) -> None:
        """Answer one request after the other, until the connection ends."""
        request: Request | Reply | None
        try:
            while not self._transport.is_closing():
                if not self._queue:
                    self._settle()
                    self._wanted = self._loop.create_future()
                    await self._wanted
                    continue
                request = self._running = self._queue.popleft()
                if isinstance(request, HotRequest):
                    await self._answer_hot(request)
                elif isinstance(request, RequestResponseCycle):
                    await request.run_asgi(self._config.loaded_app)
                else:
                    self._write(request, keep_alive=False)
                # whoever waits for the next one holds nothing of this one
                self._running = request = None
                self._server.total_requests += 1
                if self._paused is not None:
                    self.resume_reading()
        finally:
            self._phase = OVER
            self._settle()

    async def _answer_hot(self, request: HotRequest) -> None:
        try:
            reply = await self._hot.answer(request)
            request.response_started = request.response_complete = True
            self._write(reply, keep_alive=request.keep_alive)
            if self.write_paused:
                # what it holds is given back once its answer was read, or nobody will read it
                await self.drain()
        finally:
            request.release(self._budget)
            self._hot.end(request)

    def _write(self, reply: Reply, *, keep_alive: bool) -> None:
        if self._transport.is_closing():
            return
        given, common = self._common
        if given is not self._server.default_headers:
            given = self._server.default_headers
            common = b"".join([b"%b: %b\r\n" % pair for pair in given])
            self._common = given, common
        status, headers, body = reply
        end = "\r\n" if keep_alive else "connection: close\r\n\r\n"
        lines = f"{headers}content-length: {sum(map(len, body))}\r\n{end}".encode("latin-1")
        self._transport.writelines((STATUS_LINE[status] + common + lines, *body))

    def _refuse(self, refused: Refused) -> None:
        """Answer what was asked before, say what is wrong, and end."""
        if self._read_no_more():
            self._enqueue(self._hot.refusal(refused.status, refused.slug, refused.detail))
        elif not self._is_busy():
            self._settle()

    def _read_no_more(self) -> bool:
        """Drop what is read; whether it, or whoever sends it, has no answer yet."""
        self._phase, self._unparsed, self._alarm.at = OVER, False, None
        request, self._incoming = self._incoming, None
        if isinstance(request, HotRequest):
            if request.fault is not None:
                # it is answered, whatever is still to come of it
                return False
            self._leave(request)
        elif request is not None:
            self._leave(request)
            if self._queue and self._queue[-1] is request:
                self._queue.pop()
            return not request.response_started
        return True

    # --- back-pressure

    def resume_reading(self) -> None:
        """Read on, unless too much waits already; uvicorn's requests call this when they want more."""
        waits = len(self._queue) >= MOST_PIPELINED or self._is_untaken()
        if waits == (self._paused is not None) or self._transport.is_closing():
            return
        if self._paused is None:
            self._paused, self._alarm.at = self._loop.time(), None
            self._transport.pause_reading()
            return
        if self._ends is not None:
            # the time in which nothing was read is not the client's
            self._ends += self._loop.time() - self._paused
        self._paused = None
        self._transport.resume_reading()
        if self._phase is HEAD or self._phase is BODY:
            self._watch()

    def _is_untaken(self) -> bool:
        """Whether the application does not take the body that is read."""
        request = self._incoming
        return (
            isinstance(request, RequestResponseCycle)
            and not request.response_complete
            and len(request.body) > MOST_UNTAKEN
        )

    async def drain(self) -> None:
        """Wait until most of what was written is read; uvicorn's requests do before they write more."""
        await self._writable.wait()

    def pause_writing(self) -> None:
        """See ``asyncio.Protocol``."""
        self.write_paused = True
        self._writable.clear()
        if self._stalled is None:
            self._expect_reading()

    def resume_writing(self) -> None:
        """See ``asyncio.Protocol``."""
        self.write_paused = False
        self._writable.set()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _expect_reading(self, unread: int | None = None) -> None:
        """Let the client go if it reads nothing at all, of so many bytes, for too long."""
        left = self._transport.get_write_buffer_size()
        if unread is not None and left >= unread:
            self._transport.abort()
            return
        self._stalled = self._loop.call_later(self._limits.stall_seconds, self._expect_reading, left)

    # --- time

    def _settle(self) -> None:
        """All is answered: the client has some time to send more, or none."""
        if self._phase is OVER:
            self._transport.close()
            if self._transport.get_write_buffer_size():
                # what it has not read by then it never will
                self._alarm.set_in(self._limits.stall_seconds)
        elif self._phase is IDLE:
            self._alarm.set_in(self._limits.idle_seconds)
        elif self._incoming is not None and self._incoming.response_complete:
            self._alarm.set_in(LINGER_SECONDS)

    def _watch(self) -> None:
        """The client has some time to send what is still to come of its request."""
        if self._paused is not None:
            return
        now, limits, incoming = self._loop.time(), self._limits, self._incoming
        if self._phase is HEAD:
            if self._ends is None:
                self._ends = now + limits.header_seconds
            self._alarm.set_at(self._ends)
        elif incoming is not None and not incoming.response_complete:
            if self._ends is None:
                self._ends = now + limits.body_seconds
            self._alarm.set_at(min(now + limits.body_stall_seconds, self._ends))

    def _give_up(self) -> None:
        """Its time is over."""
        incoming = self._incoming
        if self._phase is HEAD or (incoming is not None and not incoming.response_started):
            what = "headers" if self._phase is HEAD else "body"
            message = f"the {what} took too long; send them faster, or send less"
            self._refuse(Refused(408, "request-timeout", message))
        elif self._transport.get_write_buffer_size():
            # what it has not read by now it never will
            self._transport.abort()
        else:
            self._transport.close()


def _nothing() -> None:
    """What uvicorn's requests call when their answer is written; here they are waited for."""


def abort_of(scope: Scope) -> Callable[[], None] | None:
    """What ends the connection of a request at once; None: its server cannot."""
    found: Callable[[], None] | None = scope.get("extensions", {}).get(EXTENSION)
    return found
