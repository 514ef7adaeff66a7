"""gRPC's server side of HTTP/2 in an event loop: frames in, calls out, and bounds on all that a client controls.

Written for this service because the C core behind ``grpc.aio`` takes four times the processor time for a call of
64 KiB (`docs/serving_benchmark.md`), cannot listen on a socket that another process opened, and does not say how much
a client holds in memory. It does what gRPC needs: no push, no priorities, no trailers from clients.

A connection has two kinds of bounds. Windows (flow control) stop a client that sends faster than its calls are
handled. Credit stops one that sends frames which cost it nothing: each takes some, and it grows with time.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, cast, final

from service.grpc_call import Buffer
from service.http2_frames import (
    ACK,
    END_HEADERS,
    END_STREAM,
    PADDED,
    PREFACE,
    PRIORITIZED,
    Code,
    Headers,
    HeadersTooLarge,
    Kind,
    data_frames,
    frame,
    pieces,
    settings_frame,
)

__all__ = ["Bounds", "Connection", "Refused", "Stream"]

log = logging.getLogger("mno.service")

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = (
    range(1, 7)
)
DEFAULT_WINDOW: Final = 65_535
LARGEST_WINDOW: Final = 2**31 - 1
SMALLEST_FRAME: Final = 2**14
# bytes that wait for a client that does not read, before its calls have to wait
WRITE_BUFFER: Final = 2**20
# bytes of answers to pings and settings that wait for a client that does not read
MOST_UNREAD: Final = 8 * WRITE_BUFFER
# at most so much of a message at a time, so that the streams of a connection take turns
TURN: Final = 2**18
# for a client to read what was sent before a connection closes [s]
LAST_WORDS: Final = 5.0


@final
@dataclass(frozen=True)
class Bounds:
    """What one client may do.

    Attributes:
        header_bytes: names and values of the headers of a call.
        frame_bytes: largest frame.
        stream_window: bytes of a call that may come before its handler takes them.
        connection_window: the same of all calls of a connection.
        streams: calls at once on a connection.
        header_seconds: longest time for the first bytes, and for a block of headers [s].
        idle_seconds: how long a connection may have no call [s].
        stall_seconds: how long an answer may wait for a client to read [s].
        credit: frames that cost a client nothing: so many at once, and as many a second.
    """

    header_bytes: int = 2**14
    frame_bytes: int = 2**18
    stream_window: int = 2**20
    connection_window: int = 2**24
    streams: int = 256
    header_seconds: float = 1.0
    idle_seconds: float = 75.0
    stall_seconds: float = 60.0
    credit: float = 1000.0


class _Broken(Exception):
    """The client broke the protocol: the connection ends."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


class Refused(Exception):
    """A stream that is not wanted; the connection goes on."""

    def __init__(self, code: Code) -> None:
        super().__init__(code.name)
        self.code = code


class Stream(ABC):
    """What a connection tells one of its streams, and the bytes that go out on it."""

    def __init__(self, connection: Connection, number: int) -> None:
        self.connection = connection
        self.number = number
        self.window = connection.peer_window
        # what the client may still send
        self.receivable = connection.bounds.stream_window
        self.client_done = False
        self.done = False
        self.room: asyncio.Future[None] | None = None

    @abstractmethod
    def open(self) -> None:
        """The headers are there, and the connection knows the stream."""

    @abstractmethod
    def feed(self, data: memoryview) -> None:
        """More bytes of the body; they are gone when this returns."""

    @abstractmethod
    def feed_end(self) -> None:
        """The client has sent all."""

    @abstractmethod
    def abort(self) -> None:
        """The client left; nothing can be sent."""

    def grant(self, count: int) -> None:
        """Let the client send ``count`` more bytes."""
        self.receivable += count
        if not (self.client_done or self.done):
            self.connection.write([_window_update(self.number, count)])

    async def write(self, parts: Sequence[Buffer], *, first: bytes = b"", after: bytes = b"") -> None:
        """Send parts as a body, as the client lets us.

        Args:
            parts: what the windows bound.
            first: frames that go before.
            after: frames that go behind.

        Raises:
            TimeoutError: the client did not read.
        """
        connection = self.connection
        length = sum(map(len, parts))
        if length <= min(self.window, connection.window) and not connection.paused:
            out: list[Buffer] = [first] if first else []
            data_frames(out, self.number, parts, connection.peer_frame)
            if after:
                out.append(after)
            self.window -= length
            connection.window -= length
            connection.write(out)
            return
        if first:
            connection.write([first])
        for group in pieces(parts, TURN):
            await self._write_in_turns(group)
        if after:
            connection.write([after])

    async def _write_in_turns(self, parts: Sequence[Buffer]) -> None:
        connection = self.connection
        rest = [memoryview(part) for part in parts]
        while rest:
            size = min(self.window, connection.window)
            if size <= 0 or connection.paused:
                await self._wait_for_room()
                continue
            group = next(pieces(rest, size))
            length = sum(map(len, group))
            rest = _without(rest, length)
            out: list[Buffer] = []
            data_frames(out, self.number, group, connection.peer_frame)
            self.window -= length
            connection.window -= length
            connection.write(out)

    async def _wait_for_room(self) -> None:
        self.room = asyncio.get_running_loop().create_future()
        self.connection.waiting[self.number] = self
        try:
            async with asyncio.timeout(self.connection.bounds.stall_seconds):
                await self.room
        finally:
            self.room = None
            self.connection.waiting.pop(self.number, None)

    def wake(self) -> None:
        """There may be room now."""
        if self.room is not None and not self.room.done():
            self.room.set_result(None)

    def close(self, code: Code = Code.NO_ERROR) -> None:
        """Nothing more goes out; a client that still sends is told to stop."""
        if self.done:
            return
        self.done = True
        if not self.client_done or code is not Code.NO_ERROR:
            self.connection.write([frame(Kind.RST_STREAM, 0, self.number, struct.pack(">I", code))])
        self.connection.forget(self)


@final
class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(
        self,
        bounds: Bounds,
        accept: Callable[[Connection, int, list[tuple[str, str]]], Stream],
        connections: set[Connection],
        most_connections: int,
    ) -> None:
        """``accept`` makes a stream of its headers, or raises :class:`Refused`."""
        self.bounds = bounds
        self.peer_window = DEFAULT_WINDOW
        self.peer_frame = SMALLEST_FRAME
        self.window = DEFAULT_WINDOW
        self.paused = False
        self.peer = ""
        self.secure = False
        self.streams: dict[int, Stream] = {}
        self.waiting: dict[int, Stream] = {}
        self._accept = accept
        self._connections = connections
        self._most_connections = most_connections
        self._headers = Headers(bounds.header_bytes)
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._wanted = len(PREFACE)
        self._greeted = False
        self._settled = False
        self._newest = 0
        self._received = 0
        self._block: tuple[int, int, bytearray] | None = None
        self._credit = bounds.credit
        self._credited = time.monotonic()
        self._patience: asyncio.TimerHandle | None = None
        self._leaving = False
        # streams under way, those included whose client left and whose work has not ended
        self.at_work = 0

    # --- the event loop's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if len(self._connections) >= self._most_connections:
            self._transport.abort()
            return
        self._connections.add(self)
        peer = transport.get_extra_info("peername")
        self.peer = str(peer[0]) if isinstance(peer, tuple) else ""
        self.secure = transport.get_extra_info("ssl_object") is not None
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER)
        bounds = self.bounds
        settings = settings_frame(
            [
                (MAX_CONCURRENT_STREAMS, bounds.streams),
                (INITIAL_WINDOW_SIZE, bounds.stream_window),
                (MAX_FRAME_SIZE, bounds.frame_bytes),
                (MAX_HEADER_LIST_SIZE, bounds.header_bytes),
            ]
        )
        self.write([settings, _window_update(0, bounds.connection_window - DEFAULT_WINDOW)])
        self._be_patient(bounds.header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._end()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self._wake_all()

    def data_received(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        source: bytes | bytearray = data
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._wanted:
                return
            source, self._buffer = self._buffer, bytearray()
        try:
            used = self._read(source)
        except _Broken as broken:
            log.info("%s breaks HTTP/2: %s", self.peer or "a client", broken)
            self._go_away(broken.code)
            return
        if used < len(source):
            self._buffer = bytearray(memoryview(source)[used:])

    # --- frames

    def _read(self, source: bytes | bytearray) -> int:
        """Handle all whole frames; how many bytes they were."""
        position, end = 0, len(source)
        if not self._greeted:
            if source[: len(PREFACE)] != PREFACE[:end]:
                raise _Broken(Code.PROTOCOL_ERROR, "no preface")
            if end < len(PREFACE):
                return 0
            self._greeted = True
            position = len(PREFACE)
        view = memoryview(source)
        while end - position >= 9:
            length = source[position] << 16 | source[position + 1] << 8 | source[position + 2]
            if length > self.bounds.frame_bytes:
                raise _Broken(Code.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            start = position + 9
            if end - start < length:
                break
            number = int.from_bytes(source[position + 5 : start], "big") & LARGEST_WINDOW
            self._handle(source[position + 3], source[position + 4], number, view[start : start + length])
            position = start + length
            self._wanted = 9
        else:
            return position
        self._wanted = 9 + length
        return position

    def _handle(self, kind: int, flags: int, number: int, payload: memoryview) -> None:
        if self._block is not None and kind != Kind.CONTINUATION:
            raise _Broken(Code.PROTOCOL_ERROR, "headers without an end")
        if not self._settled and kind != Kind.SETTINGS:
            raise _Broken(Code.PROTOCOL_ERROR, "no settings first")
        if kind == Kind.DATA:
            self._on_data(flags, number, payload)
        elif kind == Kind.HEADERS:
            self._on_headers(flags, number, payload)
        elif kind == Kind.WINDOW_UPDATE:
            self._on_window_update(number, payload)
        elif kind == Kind.SETTINGS:
            self._on_settings(flags, number, payload)
        elif kind == Kind.RST_STREAM:
            self._on_reset(number, payload)
        elif kind == Kind.PING:
            self._on_ping(flags, number, payload)
        elif kind == Kind.CONTINUATION:
            self._on_continuation(flags, number, payload)
        elif kind == Kind.PUSH_PROMISE:
            raise _Broken(Code.PROTOCOL_ERROR, "a client pushes nothing")
        elif kind == Kind.PRIORITY and len(payload) != 5:
            raise _Broken(Code.FRAME_SIZE_ERROR, "a priority of another length")
        else:
            # GOAWAY says nothing that matters here: streams under way end, and then the client closes
            self._spend()

    def _on_data(self, flags: int, number: int, payload: memoryview) -> None:
        length = len(payload)
        self._received += length
        if self._received > self.bounds.connection_window:
            raise _Broken(Code.FLOW_CONTROL_ERROR, "more than the window of the connection")
        if self._received > self.bounds.connection_window // 2:
            # what a call leaves in its window bounds memory: the connection's is there to share
            self.write([_window_update(0, self._received)])
            self._received = 0
        if length < 256:
            self._spend(0.1 if length else 1.0)
        stream = self._stream(number)
        if stream is None:
            return
        if stream.client_done:
            raise _Broken(Code.STREAM_CLOSED, "data behind the end")
        stream.receivable -= length
        if stream.receivable < 0:
            raise _Broken(Code.FLOW_CONTROL_ERROR, "more than the window of the stream")
        body = _unpadded(payload) if flags & PADDED else payload
        if len(body) < length:
            # padding is as much of the window, and nobody takes it
            stream.grant(length - len(body))
        stream.feed(body)
        if flags & END_STREAM:
            stream.client_done = True
            stream.feed_end()

    def _on_headers(self, flags: int, number: int, payload: memoryview) -> None:
        block = _unpadded(payload) if flags & PADDED else payload
        if flags & PRIORITIZED:
            if len(block) < 5:
                raise _Broken(Code.FRAME_SIZE_ERROR, "headers without their priority")
            block = block[5:]
        if flags & END_HEADERS:
            self._on_block(flags, number, bytes(block))
            return
        self._block = (number, flags, bytearray(block))
        self._be_patient(self.bounds.header_seconds)

    def _on_continuation(self, flags: int, number: int, payload: memoryview) -> None:
        if self._block is None or number != self._block[0]:
            raise _Broken(Code.PROTOCOL_ERROR, "a continuation of nothing")
        self._spend(0.1)
        _, first_flags, block = self._block
        block += payload
        if len(block) > 2 * self.bounds.header_bytes:
            raise _Broken(Code.ENHANCE_YOUR_CALM, "headers beyond the limit")
        if flags & END_HEADERS:
            self._block = None
            self._be_patient(None)
            self._on_block(first_flags, number, bytes(block))

    def _on_block(self, flags: int, number: int, block: bytes) -> None:
        if len(block) > 2 * self.bounds.header_bytes:
            raise _Broken(Code.ENHANCE_YOUR_CALM, "headers beyond the limit")
        try:
            fields = self._headers.read(block)
        except HeadersTooLarge as error:
            raise _Broken(Code.ENHANCE_YOUR_CALM, "headers beyond the limit") from error
        except ValueError as error:
            raise _Broken(Code.COMPRESSION_ERROR, "headers that cannot be read") from error
        if number <= self._newest:
            self._on_trailers(flags, number)
            return
        if number % 2 == 0:
            raise _Broken(Code.PROTOCOL_ERROR, f"stream {number} is not a client's")
        self._newest = number
        if self._leaving or self.at_work >= self.bounds.streams:
            self._refuse(number, Code.REFUSED_STREAM)
            return
        try:
            stream = self._accept(self, number, fields)
        except Refused as refused:
            self._refuse(number, refused.code)
            return
        self.streams[number] = stream
        self._be_patient(None)
        if flags & END_STREAM:
            stream.client_done = True
        stream.open()
        if flags & END_STREAM and not stream.done:
            stream.feed_end()

    def _on_trailers(self, flags: int, number: int) -> None:
        if number % 2 == 0 or not flags & END_STREAM:
            raise _Broken(Code.PROTOCOL_ERROR, "headers of a stream that has them")
        self._spend()
        stream = self.streams.get(number)
        if stream is not None and not stream.client_done:
            stream.client_done = True
            stream.feed_end()

    def _refuse(self, number: int, code: Code) -> None:
        self._spend()
        self.write([frame(Kind.RST_STREAM, 0, number, struct.pack(">I", code))])
        if not self.streams:
            self._be_patient(self.bounds.idle_seconds)

    def _on_reset(self, number: int, payload: memoryview) -> None:
        if len(payload) != 4:
            raise _Broken(Code.FRAME_SIZE_ERROR, "a reset of another length")
        self._spend()
        stream = self._stream(number)
        if stream is not None:
            stream.done = True
            self.forget(stream)
            stream.abort()

    def _on_window_update(self, number: int, payload: memoryview) -> None:
        if len(payload) != 4:
            raise _Broken(Code.FRAME_SIZE_ERROR, "a window of another length")
        count = int.from_bytes(payload, "big") & LARGEST_WINDOW
        self._spend(0.02)
        if number == 0:
            self.window += count
            if count == 0 or self.window > LARGEST_WINDOW:
                raise _Broken(Code.FLOW_CONTROL_ERROR, "no window")
            self._wake_all()
            return
        stream = self._stream(number)
        if stream is None:
            return
        stream.window += count
        if count == 0 or stream.window > LARGEST_WINDOW:
            stream.abort()
            stream.close(Code.FLOW_CONTROL_ERROR)
            return
        stream.wake()

    def _on_settings(self, flags: int, number: int, payload: memoryview) -> None:
        if number or len(payload) % 6 or (flags & ACK and len(payload)):
            raise _Broken(Code.FRAME_SIZE_ERROR, "settings of another length")
        if not self._settled:
            self._settled = True
            self._be_patient(self.bounds.idle_seconds)
        if flags & ACK:
            return
        self._spend(1 + len(payload) / 60)
        for name, value in struct.iter_unpack(">HI", payload):
            if name == INITIAL_WINDOW_SIZE:
                self._resize(value)
            elif name == MAX_FRAME_SIZE:
                if not SMALLEST_FRAME <= value < 2**24:
                    raise _Broken(Code.PROTOCOL_ERROR, "no size of frames")
                self.peer_frame = min(value, TURN)
        self.write([frame(Kind.SETTINGS, ACK, 0)])

    def _resize(self, value: int) -> None:
        if value > LARGEST_WINDOW:
            raise _Broken(Code.FLOW_CONTROL_ERROR, "no window")
        for stream in self.streams.values():
            stream.window += value - self.peer_window
        self.peer_window = value
        self._wake_all()

    def _on_ping(self, flags: int, number: int, payload: memoryview) -> None:
        if len(payload) != 8 or number:
            raise _Broken(Code.FRAME_SIZE_ERROR, "a ping of another length")
        if not flags & ACK:
            self._spend()
            self.write([frame(Kind.PING, ACK, 0, bytes(payload))])

    def _stream(self, number: int) -> Stream | None:
        if number == 0 or number > self._newest:
            raise _Broken(Code.PROTOCOL_ERROR, f"stream {number} was never opened")
        return self.streams.get(number)

    # --- bounds

    def _spend(self, cost: float = 1.0) -> None:
        """Take credit for a frame that costs its sender nothing."""
        self._credit -= cost
        if self._credit < 0:
            now = time.monotonic()
            grown = (now - self._credited) * self.bounds.credit
            self._credit, self._credited = min(self._credit + grown, self.bounds.credit), now
            if self._credit < 0:
                raise _Broken(Code.ENHANCE_YOUR_CALM, "frames that cost nothing")

    def _be_patient(self, seconds: float | None) -> None:
        """Close after so many seconds, unless something happens before; None: do not."""
        if self._patience is not None:
            self._patience.cancel()
        loop = asyncio.get_running_loop()
        self._patience = None if seconds is None else loop.call_later(seconds, self._go_away)

    def _wake_all(self) -> None:
        for stream in list(self.waiting.values()):
            stream.wake()

    # --- what goes out

    def write(self, parts: Sequence[Buffer]) -> None:
        """Send bytes; whoever has many looks at ``paused`` before."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.writelines(parts)
        if self.paused and transport.get_write_buffer_size() > MOST_UNREAD:
            transport.abort()

    def forget(self, stream: Stream) -> None:
        """A stream is over."""
        if self.streams.pop(stream.number, None) is not None and not self.streams:
            if self._leaving:
                self._close()
            elif self._transport is not None:
                self._be_patient(self.bounds.idle_seconds)

    # --- the end

    def leave(self) -> None:
        """Take no more calls; close when those under way are answered."""
        if not self._leaving:
            self._leaving = True
            # calls that the client has sent meanwhile are refused, and it may send them elsewhere
            self.write([_go_away(self._newest, Code.NO_ERROR)])
        if not self.streams:
            self._close()

    def close(self) -> None:
        """End what is under way, at once."""
        self._go_away()

    def _go_away(self, code: Code = Code.NO_ERROR) -> None:
        self.write([_go_away(self._newest, code)])
        self._close()
        self._end()

    def _close(self) -> None:
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.close()
            # what a client does not read would keep the connection open
            asyncio.get_running_loop().call_later(LAST_WORDS, transport.abort)

    def _end(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
        self._patience = None
        streams = list(self.streams.values())
        self.streams.clear()
        self.waiting.clear()
        for stream in streams:
            stream.done = True
            stream.abort()


def _window_update(number: int, count: int) -> bytes:
    return frame(Kind.WINDOW_UPDATE, 0, number, struct.pack(">I", count))


def _go_away(newest: int, code: Code) -> bytes:
    return frame(Kind.GOAWAY, 0, 0, struct.pack(">II", newest, code))


def _unpadded(payload: memoryview) -> memoryview:
    if not len(payload) or payload[0] >= len(payload):
        raise _Broken(Code.PROTOCOL_ERROR, "more padding than frame")
    return payload[1 : len(payload) - payload[0]]


def _without(parts: Sequence[memoryview], count: int) -> list[memoryview]:
    """The parts without their first ``count`` bytes."""
    rest = list(parts)
    while rest and count >= len(rest[0]):
        count -= len(rest.pop(0))
    if rest and count:
        rest[0] = rest[0][count:]
    return rest
