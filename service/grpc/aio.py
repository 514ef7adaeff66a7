"""Calls carried by gRPC's own library in the event loop; messages stay bytes.

``grpc.server`` with threads was measured beside ``grpc.aio`` with calls of 64 KiB each way: it takes more
processor time, since each call has to come to the event loop and go back (`docs/serving_benchmark.md`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias, final

import grpc
import grpc.aio

from service.errors import DeadlineExceeded
from service.grpc.budget import Budget, Share
from service.grpc.call import Buffer, Call, Metadata, Method, Outcome
from service.settings import Limits
from service.stall import Stall

__all__ = ["AioCall", "Handlers", "options"]

Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"

# of metadata: names and values of a call
METADATA_BYTES: Final = 16 * 1024
CALLS_OF_A_CONNECTION: Final = 256
# of a message, what is not the elements of its arrays: names, shapes, options
ENVELOPE: Final = 64 * 1024
# a connection whose client is gone without a word is found out after both [ms]
KEEPALIVE, KEEPALIVE_ANSWER = 30_000, 10_000
# clients may ask whether the connection lives, not all the time [ms]
PING_INTERVAL: Final = 5_000
# whoever begins a message and does not end it holds a call until its connection is so old, and as long again
CONNECTION_AGE: Final = 3_600_000
# the types of the library do not know it
EOF: Final[Any] = grpc.aio.EOF  # type: ignore[attr-defined]

# wide windows, so that nobody waits for permission within a field; measured, as all of these
WINDOWS: Final = (
    ("grpc.http2.lookahead_bytes", 4 * 2**20),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.optimization_target", "throughput"),
)


def options(limits: Limits) -> list[tuple[str, int | str]]:
    """What the library is told: windows, and bounds on what a client controls."""
    return [
        *WINDOWS,
        # several fronts share a port
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", limits.body_bytes + ENVELOPE),
        # an answer has no more fields than a request, but may have twice the bytes for each
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", CALLS_OF_A_CONNECTION),
        ("grpc.max_metadata_size", METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", METADATA_BYTES),
        ("grpc.server_handshake_timeout_ms", int(1000 * limits.header_seconds)),
        ("grpc.max_connection_idle_ms", 1000 * limits.idle_seconds),
        ("grpc.max_connection_age_ms", CONNECTION_AGE),
        ("grpc.max_connection_age_grace_ms", CONNECTION_AGE),
        ("grpc.keepalive_time_ms", KEEPALIVE),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_ANSWER),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", PING_INTERVAL),
        ("grpc.http2.max_ping_strikes", 3),
    ]


@final
class AioCall(Call):
    """A call of the library."""

    def __init__(
        self,
        context: Context,
        first: bytes | None,
        budget: Budget,
        stall_seconds: float,
        *,
        one: bool = False,
    ) -> None:
        """Begin.

        Args:
            context: what the library knows of it.
            first: the message, where there is exactly one; None: there may be many.
            budget: bytes of all calls.
            stall_seconds: how long the client may leave an answer unread [s].
            one: there is exactly one answer, which is sent when the handler returns.
        """
        received = time.perf_counter()
        left = context.time_remaining()
        super().__init__(
            _text(context.invocation_metadata() or ()), received, None if left is None else received + left
        )
        self._context = context
        self._first = first
        self._many = first is None
        self._one_answer = one
        self._share = Share(budget)
        self._stall_seconds = stall_seconds
        self._stall: Stall | None = None
        # ends the wait for the next message of a stream
        self._reading: asyncio.Timeout | None = None
        self._leaving = False
        self._task = asyncio.current_task()
        # of a call with one answer, that answer
        self.answer = b""
        # why it ends before its time
        self.stopped: Outcome | None = None
        # it has not had all messages that the client wanted to send
        self.cut = False

    def hold(self, count: int, beside: int | None = None) -> None:
        self._share.take(count, self._share.held if beside is None else beside)

    def let_go(self, count: int) -> None:
        self._share.let_go(count)

    def release(self) -> None:
        """The call has ended: what it held is free."""
        self.let_go(self._share.held)
        if self._stall is not None:
            self._stall.close()

    def leave(self) -> None:
        """Take no more messages; those that came are answered."""
        self._leaving = True
        if self._reading is not None:
            self._reading.reschedule(asyncio.get_running_loop().time())

    def stop(self, outcome: Outcome) -> None:
        """End the call before its time."""
        self.stopped = outcome
        if self._task is not None:
            self._task.cancel()

    async def message(self) -> bytes | None:
        if self._many:
            return await self._next()
        message, self._first = self._first, None
        if message is not None:
            self.hold(len(message))
        return message

    async def _next(self) -> bytes | None:
        message: Any = None
        if not self._leaving:
            message = await self._read()
        if message is None:
            self.cut = True
            return None
        if message is EOF:
            return None
        self.arrived = time.perf_counter()
        data: bytes = message
        await self._share.take_in_turn(len(data))
        return data

    async def _read(self) -> Any:
        """What comes next; None: nothing any more, since the service stops."""
        try:
            async with asyncio.timeout(None) as self._reading:
                return await self._context.read()
        except TimeoutError:
            return None
        finally:
            self._reading = None

    async def begin(self, metadata: Metadata) -> None:
        await self._context.send_initial_metadata(tuple(metadata))

    async def send(self, parts: Sequence[Buffer]) -> None:
        data = b"".join(parts)
        if self._one_answer:
            self.answer = data
            return
        if self._stall is None:
            self._stall = Stall(self._stall_seconds)
        try:
            with self._stall:
                await self._context.write(data)
        except TimeoutError as error:
            way_out = "read faster, or ask for fewer frames with every"
            raise DeadlineExceeded(
                f"an answer was not read for {self._stall_seconds:g} s; {way_out}"
            ) from error

    def end(self, outcome: Outcome) -> None:
        """Say how it ended; it is sent when the handler returns."""
        context = self._context
        context.set_trailing_metadata((("x-request-id", self.request_id), *self.trailing, *outcome.metadata))
        if outcome.status is not grpc.StatusCode.OK:
            context.set_code(outcome.status)
            context.set_details(outcome.message)


def _text(metadata: Iterable[tuple[str, str | bytes]]) -> Mapping[str, str]:
    return {name: value for name, value in metadata if isinstance(value, str)}


@final
class Handlers(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Finds what answers a call by its path."""

    def __init__(
        self,
        methods: Iterable[Method],
        run: Callable[[AioCall, Method], Awaitable[None]],
        budget: Budget,
        limits: Limits,
    ) -> None:
        """``run`` answers a call; it raises nothing but what cancels it."""
        self._run = run
        self._budget = budget
        self._stall_seconds = limits.stall_seconds
        self._found = {method.path: self._handler(method) for method in methods}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """See ``grpc.GenericRpcHandler``."""
        return self._found.get(handler_call_details.method)

    def _handler(self, method: Method) -> Any:
        async def unary(request: bytes, context: Context) -> bytes:
            call = AioCall(context, request, self._budget, self._stall_seconds, one=True)
            await self._run(call, method)
            return call.answer

        async def answers(request: bytes, context: Context) -> None:
            await self._run(AioCall(context, request, self._budget, self._stall_seconds), method)

        async def stream(_: object, context: Context) -> None:
            await self._run(AioCall(context, None, self._budget, self._stall_seconds), method)

        if method.kind == "unary":
            return grpc.unary_unary_rpc_method_handler(unary)
        if method.kind == "answers":
            return grpc.unary_stream_rpc_method_handler(answers)
        return grpc.stream_stream_rpc_method_handler(stream)
