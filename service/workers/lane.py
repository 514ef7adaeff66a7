"""Messages between two processes of the service over a socket pair: small JSON objects, and descriptors.

A *lane* carries tokens between a front and a worker; the arrays they speak of stay in the front's arena. A
*control* socket carries orders and reports between a process and the supervisor, and descriptors with them.
Both are SOCK_SEQPACKET, which keeps messages apart and says when the other end is gone.
"""

from __future__ import annotations

import array
import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, final

import orjson

__all__ = ["BadMessage", "BlockingLane", "Lane", "LaneClosed", "Message", "lane_pair"]

log = logging.getLogger("mno.service")

Message = Mapping[str, Any]
# called with a message and the descriptors that came with it, which now belong to the receiver
Receive = Callable[[dict[str, Any], list[int]], None]

# a packet has to fit into the buffer of a socket whole
PACKET_BYTES: Final = 32 * 2**10
# the longest message: what is said of some 100,000 rows
MESSAGE_BYTES: Final = 4 * 2**20
MOST_FDS: Final = 4
# first byte of a packet: whether its message goes on in the next one
_LAST, _MORE = b"\0", b"\1"
_ANCILLARY = socket.CMSG_LEN(MOST_FDS * array.array("i").itemsize)


class LaneClosed(Exception):
    """The other end is gone."""


class BadMessage(ValueError):
    """What came is no message; the lane goes on with the next one."""


def lane_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


@final
class Lane:
    """An end in an event loop, which it wakes when there is something to read; nothing blocks."""

    def __init__(self, end: socket.socket, receive: Receive, lost: Callable[[], None]) -> None:
        """Make and use it inside the event loop; takes over ``end``.

        Args:
            end: of a ``lane_pair``.
            receive: called with each message.
            lost: called once when the other end is gone or has no more to say; the lane is closed by then.
        """
        end.setblocking(False)
        self._end = end
        self._receive = receive
        self._lost = lost
        self._reader = _Reader(end)
        self._waiting: deque[_Packet] = deque()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(end.fileno(), self._read)

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._end.fileno() < 0

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send now, or when the other end has room; ``fds`` may be closed after it.

        Raises:
            LaneClosed: the other end is gone.
        """
        if self.closed:
            raise LaneClosed
        packets = _packets(message, fds)
        while packets and not self._waiting and self._went(packets[0]):
            del packets[0]
        if packets:
            self._keep(packets)
            self._loop.add_writer(self._end.fileno(), self._write)

    def _keep(self, packets: Sequence[_Packet]) -> None:
        for packet in packets:
            try:
                self._waiting.append(packet.kept())
            except OSError as error:
                # half a message is worse than none: both ends hear that this one is over
                log.exception("a message cannot wait: this process has too many open files")
                self._end.shutdown(socket.SHUT_RDWR)
                raise LaneClosed from error

    def finish(self) -> None:
        """Say that nothing more will come; what the other end still sends is received."""
        if not self.closed:
            self._end.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Hear and say no more; ``lost`` is not called."""
        if self.closed:
            return
        self._loop.remove_reader(self._end.fileno())
        self._loop.remove_writer(self._end.fileno())
        self._end.close()
        for packet in self._waiting:
            packet.dispose()
        self._waiting.clear()

    def _went(self, packet: _Packet) -> bool:
        try:
            packet.send(self._end)
        except BlockingIOError:
            return False
        except OSError as error:
            raise LaneClosed from error
        return True

    def _write(self) -> None:
        try:
            while self._waiting and self._went(self._waiting[0]):
                self._waiting.popleft().dispose()
        except LaneClosed:
            # the reader hears of it as well, after what is still to be read
            self._waiting.clear()
        if not self._waiting:
            self._loop.remove_writer(self._end.fileno())

    def _read(self) -> None:
        try:
            got = self._reader.read()
        except BlockingIOError:
            return
        except BadMessage as error:
            log.error("a message between processes was dropped: %s", error)
            return
        except LaneClosed:
            self.close()
            self._lost()
            return
        if got is not None:
            self._receive(*got)


@final
class BlockingLane:
    """An end in a process that waits for orders."""

    def __init__(self, end: socket.socket) -> None:
        """Takes over ``end``."""
        end.setblocking(True)
        self._end = end
        self._reader = _Reader(end)

    def fileno(self) -> int:
        """For selectors."""
        return self._end.fileno()

    def receive(self) -> tuple[dict[str, Any], list[int]]:
        """The next message, and the descriptors that came with it, which now belong to the caller.

        Raises:
            LaneClosed: there will be none.
            BadMessage: something else came.
        """
        while (got := self._reader.read()) is None:
            pass
        return got

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send, and wait while the other end has no room.

        Raises:
            LaneClosed: the other end is gone.
        """
        try:
            for packet in _packets(message, fds):
                packet.send(self._end)
        except OSError as error:
            raise LaneClosed from error

    def close(self) -> None:
        """Hear and say no more."""
        self._end.close()


@final
class _Packet(NamedTuple):
    data: bytes
    fds: tuple[int, ...] = ()

    def send(self, end: socket.socket) -> None:
        if self.fds:
            socket.send_fds(end, [self.data], self.fds)
        else:
            end.send(self.data)

    def kept(self) -> _Packet:
        """The packet with descriptors of its own."""
        fds: list[int] = []
        try:
            for fd in self.fds:
                fds.append(os.dup(fd))  # noqa: PERF401
        except OSError:
            for fd in fds:
                os.close(fd)
            raise
        return _Packet(self.data, tuple(fds))

    def dispose(self) -> None:
        """Close the descriptors of a kept packet."""
        for fd in self.fds:
            os.close(fd)


def _packets(message: Message, fds: Sequence[int]) -> list[_Packet]:
    data = orjson.dumps(message)
    if len(data) < PACKET_BYTES and len(fds) <= MOST_FDS:
        return [_Packet(_LAST + data, tuple(fds))]
    if len(data) > MESSAGE_BYTES or len(fds) > MOST_FDS:
        raise ValueError(
            f"expected a message of at most {MESSAGE_BYTES} bytes and {MOST_FDS} descriptors, got "
            f"{len(data)} and {len(fds)}; split it"
        )
    pieces = [data[begin : begin + PACKET_BYTES] for begin in range(0, len(data), PACKET_BYTES)]
    return [
        *(_Packet(_MORE + piece) for piece in pieces[:-1]),
        _Packet(_LAST + pieces[-1], tuple(fds)),
    ]


@final
class _Reader:
    """Puts packets together."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._buffer = bytearray(PACKET_BYTES + 1)
        self._view = memoryview(self._buffer)
        self._begun: list[bytes] = []

    def read(self) -> tuple[dict[str, Any], list[int]] | None:
        """The message that the next packet ends; None: it goes on."""
        try:
            size, ancillary, flags, _ = self._end.recvmsg_into(
                [self._buffer], _ANCILLARY, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionError as error:
            raise LaneClosed from error
        if not size:
            raise LaneClosed
        fds = _descriptors(ancillary) if ancillary else []
        if flags & socket.MSG_CTRUNC:
            # what was sent did not arrive and comes no more: whoever hangs up is started again, with room
            for fd in fds:
                os.close(fd)
            log.error("a message came without its descriptors: this process has too many open files")
            raise LaneClosed
        if self._buffer[0] or self._begun:
            return self._put_together(bytes(self._view[:size]), fds)
        return _decoded(self._view[1:size], fds), fds

    def _put_together(self, packet: bytes, fds: list[int]) -> tuple[dict[str, Any], list[int]] | None:
        self._begun.append(packet[1:])
        if packet[:1] == _MORE and sum(map(len, self._begun)) <= MESSAGE_BYTES:
            return None
        whole, self._begun = b"".join(self._begun), []
        return _decoded(whole, fds), fds


def _descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


def _decoded(data: bytes | memoryview, fds: Sequence[int]) -> dict[str, Any]:
    try:
        message = orjson.loads(data)
    except ValueError as error:
        message = error
    if isinstance(message, dict):
        return message
    for fd in fds:
        os.close(fd)
    raise BadMessage(f"expected a JSON object, got {message!r:.200}")
