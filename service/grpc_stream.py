"""gRPC's calls on the streams of a connection: messages cut out of bytes, statuses written as trailers."""

from __future__ import annotations

import asyncio
import re
import struct
import time
import zlib
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, final
from urllib.parse import quote

from service.errors import DeadlineExceeded, InvalidField, Overloaded, ServiceFault, TooLarge, UnsupportedMedia
from service.grpc_call import Buffer, Call, Metadata, Method, Outcome, Status
from service.http2 import Connection, Stream
from service.http2_frames import END_HEADERS, END_STREAM, Kind, frame, header_block
from service.security import ANYBODY

__all__ = ["Budget", "RpcStream", "deadline_of", "refusal"]

PREFIX: Final = struct.Struct(">BI")
# :status 200 by its number in the static table, then what every answer says
BEGINNING: Final = b"\x88" + header_block([("content-type", "application/grpc")])
COMPRESSIONS: Final = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
ACCEPTED: Final = ("grpc-accept-encoding", "identity,deflate,gzip")
TIMEOUT: Final = re.compile(r"([0-9]{1,8})([HMSmun])")
UNITS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
LONGEST_MESSAGE: Final = 2000
# messages that wait for their handler
MOST_WAITING: Final = 4096
RETRY_AFTER: Final = 1


@final
class Budget:
    """Bytes that all calls under way may hold."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0

    def take(self, count: int, mine: int) -> None:
        """Hold ``count`` more, beside ``mine``.

        Raises:
            Overloaded: with those of other calls they are too many.
        """
        others = self.held - mine
        # alone, a call gets whatever the limit on a message lets through
        if others > 0 and self.held + count > self.limit:
            raise Overloaded(f"other calls hold {others} bytes; try again later", RETRY_AFTER)
        self.held += count


@final
class RpcStream(Stream, Call):
    """One call on one stream."""

    def __init__(
        self,
        connection: Connection,
        number: int,
        method: Method,
        metadata: Mapping[str, str],
        run: Callable[[RpcStream, Method], Coroutine[Any, Any, None]],
        limits: tuple[int, float, Budget],
    ) -> None:
        """``limits``: bytes of a message, seconds between its bytes, bytes of all calls."""
        Stream.__init__(self, connection, number)
        received = time.perf_counter()
        Call.__init__(self, metadata, received, None)
        # a call that anybody may make has no limits of a client's
        self.principal = ANYBODY
        self._method = method
        self._run = run
        self._most, self._stall, self._budget = limits
        self._task: asyncio.Task[None] | None = None
        self._buffer = bytearray()
        # bytes until the present message is whole; 0: its head is not there
        self._needed = 0
        self._compressed = False
        self._messages: deque[Buffer] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._fault: ServiceFault | None = None
        self._held = 0
        self._ungranted = 0
        self._begun = False
        self._watch: asyncio.TimerHandle | None = None
        self._progress = received

    # --- what comes in

    def refuse(self, fault: ServiceFault) -> None:
        """Answer with a fault, whatever comes."""
        self._fault = fault

    def open(self) -> None:
        if self._fault is not None or not self._method.one_message:
            self._start()
        if not self.client_done:
            self._watch = asyncio.get_running_loop().call_later(self._stall, self._check_progress)

    def feed(self, data: memoryview) -> None:
        if self._fault is not None or self.done:
            return
        self._progress = time.perf_counter()
        try:
            self.hold(len(data))
            self._buffer += data
            self._cut()
        except ServiceFault as fault:
            self._fail(fault)
            return
        if self._needed and not self._messages:
            # a message that is longer than the window could else never arrive
            self.grant(len(data))
        else:
            self._ungranted += len(data)

    def _cut(self) -> None:
        """Cut the messages that are whole."""
        while True:
            if not self._needed:
                if len(self._buffer) < PREFIX.size:
                    return
                flag, length = PREFIX.unpack_from(self._buffer)
                self._check_head(flag, length)
                self._compressed, self._needed = bool(flag), PREFIX.size + length
            if len(self._buffer) < self._needed:
                return
            self._take_message()

    def _check_head(self, flag: int, length: int) -> None:
        if flag > 1:
            raise InvalidField("body", "frame", f"expected a message of gRPC, got a flag of {flag}")
        if length > self._most:
            raise TooLarge(f"a message has at most {self._most} bytes, got {length}; send fewer fields a message")
        if self._method.one_message and self._messages:
            raise InvalidField("body", "messages", "expected one message, got more")
        if len(self._messages) >= MOST_WAITING:
            raise Overloaded(f"{MOST_WAITING} messages of this call wait; read some answers", RETRY_AFTER)

    def _take_message(self) -> None:
        whole = self._buffer
        if len(whole) == self._needed:
            message: Buffer = memoryview(whole)[PREFIX.size :].toreadonly()
            self._buffer = bytearray()
        else:
            message = bytes(memoryview(whole)[PREFIX.size : self._needed])
            del whole[: self._needed]
        if self._compressed:
            message = self._decompressed(message)
        self._needed = 0
        self._messages.append(message)
        if self._method.one_message:
            return
        self._wake()

    def _decompressed(self, message: Buffer) -> bytes:
        name = self.metadata.get("grpc-encoding", "identity")
        if name not in COMPRESSIONS:
            raise UnsupportedMedia(f"grpc-encoding: expected identity, gzip or deflate, got {name[:40]!r}")
        stream = zlib.decompressobj(COMPRESSIONS[name])
        try:
            plain = stream.decompress(message, self._most + 1)
        except zlib.error as error:
            raise InvalidField("body", "compression", f"expected a message in {name}; {error}") from error
        if len(plain) > self._most:
            raise TooLarge(f"a message has at most {self._most} bytes, this one more once it is decompressed")
        if not stream.eof:
            raise InvalidField("body", "compression", f"expected a message in {name}, got a part of one")
        self.hold(len(plain))
        return plain

    def feed_end(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._fault is None and (self._buffer or self._method.one_message and not self._messages):
            self._fault = InvalidField("body", "end", "expected a whole message, got a part of one")
        self._start()
        self._wake()

    def _start(self) -> None:
        if self._task is None and not self.done:
            self.connection.at_work += 1
            self._task = asyncio.get_running_loop().create_task(self._run(self, self._method))
            self._task.add_done_callback(self._ended)

    def _ended(self, _: asyncio.Task[None]) -> None:
        self.connection.at_work -= 1
        self._release()

    def _release(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        self._budget.held -= self._held
        self._held = 0
        self._buffer = bytearray()
        self._messages.clear()

    def _fail(self, fault: ServiceFault) -> None:
        """End the call: what the client sends is no call."""
        self._fault = fault
        self._buffer = bytearray()
        self._messages.clear()
        self._start()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _check_progress(self) -> None:
        """Give up a client that stops within a message; between messages it may take its time."""
        late = self._progress + self._stall - time.perf_counter()
        within = bool(self._buffer) or self._method.one_message
        if within and late <= 0:
            self._fail(DeadlineExceeded(f"no byte of the message for {self._stall:g} s; send it again"))
            return
        wait = late if within else self._stall
        self._watch = asyncio.get_running_loop().call_later(max(wait, 0.01), self._check_progress)

    def abort(self) -> None:
        if self._task is None:
            self._release()
        elif not self._task.done():
            self._task.cancel()

    # --- what handlers see

    @property
    def fault(self) -> ServiceFault | None:
        """Why there is nothing to answer."""
        return self._fault

    def hold(self, count: int) -> None:
        self._budget.take(count, self._held)
        self._held += count

    async def message(self) -> Buffer | None:
        while not self._messages:
            if self._fault is not None:
                raise self._fault
            if self.client_done:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        message = self._messages.popleft()
        if not self._messages and self._ungranted and not self.client_done:
            self.grant(self._ungranted)
            self._ungranted = 0
        return message

    async def begin(self, metadata: Metadata = ()) -> None:
        if not self._begun:
            self._begun = True
            self.connection.write([self._head(metadata)])

    def _head(self, metadata: Metadata) -> bytes:
        block = BEGINNING + header_block(metadata) if metadata else BEGINNING
        return frame(Kind.HEADERS, END_HEADERS, self.number, block)

    async def send(self, parts: Sequence[Buffer], *, last: bool = False) -> None:
        if self.done:
            raise asyncio.CancelledError
        first = b"" if self._begun else self._head(())
        self._begun = True
        after = self._trailers(Outcome(Status.OK)) if last else b""
        length = sum(map(len, parts))
        try:
            await self.write([PREFIX.pack(0, length), *parts], first=first, after=after)
        except TimeoutError as error:
            raise DeadlineExceeded("the client left an answer unread") from error
        if last:
            self.close()

    def finish(self, outcome: Outcome) -> None:
        """Send how the call ended, unless it has been."""
        if not self.done:
            self.connection.write([self._trailers(outcome)])
            self.close()

    def _trailers(self, outcome: Outcome) -> bytes:
        fields: list[tuple[str, str | bytes]] = [("grpc-status", str(int(outcome.status)))]
        if outcome.message:
            fields.append(("grpc-message", quote(outcome.message[:LONGEST_MESSAGE], safe=" !#$&'()*+,/:;=?@[]")))
        if self.request_id:
            fields.append(("x-request-id", self.request_id))
        block = header_block([*fields, *self.trailing, *outcome.metadata])
        if not self._begun:
            block = BEGINNING + block
        return frame(Kind.HEADERS, END_HEADERS | END_STREAM, self.number, block)

    def stop(self, outcome: Outcome) -> None:
        """End the call before its time."""
        self.finish(outcome)
        self.abort()


def deadline_of(metadata: Mapping[str, str], received: float) -> float | None:
    """When the client has no more use for an answer [s]; None: never.

    Raises:
        InvalidField: the header says no time.
    """
    text = metadata.get("grpc-timeout")
    if text is None:
        return None
    match = TIMEOUT.fullmatch(text)
    if match is None:
        raise InvalidField("grpc-timeout", "format", f"grpc-timeout: expected digits and a unit, got {text[:20]!r}")
    return received + int(match[1]) * UNITS[match[2]]


def refusal(number: int, status: int) -> bytes:
    """An answer to what is no call of gRPC."""
    block = header_block([(":status", str(status)), ("content-length", "0")])
    return frame(Kind.HEADERS, END_HEADERS | END_STREAM, number, block)
