"""Frames of HTTP/2 (RFC 9113) and header blocks (RFC 7541) as bytes."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from typing import Final, final

from hpack import Decoder, HPACKError

from service.grpc_call import Buffer

__all__ = [
    "PREFACE",
    "Code",
    "Headers",
    "HeadersTooLarge",
    "Kind",
    "data_frames",
    "frame",
    "header_block",
    "pieces",
    "settings_frame",
]

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_HEAD: Final = struct.Struct(">HBBBI")

# flags
ACK, END_STREAM, END_HEADERS, PADDED, PRIORITIZED = 0x1, 0x1, 0x4, 0x8, 0x20


@final
class Kind(IntEnum):
    """Types of frames."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


@final
class Code(IntEnum):
    """Why a stream or a connection ends."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    length = len(payload)
    return FRAME_HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream) + payload


def settings_frame(values: Iterable[tuple[int, int]]) -> bytes:
    """What this side can take."""
    return frame(Kind.SETTINGS, 0, 0, b"".join(struct.pack(">HI", name, value) for name, value in values))


def pieces(parts: Sequence[Buffer], size: int) -> Iterator[list[Buffer]]:
    """The bytes of all parts, without copies, in groups of ``size`` bytes; the last may be shorter."""
    group: list[Buffer] = []
    room = size
    for part in parts:
        view: Buffer = part
        while len(view) > room:
            whole = memoryview(view)
            group.append(whole[:room])
            yield group
            view, group, room = whole[room:], [], size
        if len(view):
            group.append(view)
            room -= len(view)
    if group:
        yield group


def data_frames(out: list[Buffer], stream: int, parts: Sequence[Buffer], size: int) -> None:
    """Append to ``out`` frames of at most ``size`` bytes with all that the parts have."""
    for group in pieces(parts, size):
        length = sum(map(len, group))
        out.append(FRAME_HEAD.pack(length >> 8, length & 0xFF, Kind.DATA, 0, stream))
        out += group


def header_block(fields: Iterable[tuple[str, str | bytes]]) -> bytes:
    """Header fields, each spelled out: nothing that the other side would have to remember."""
    return b"".join(map(_literal, fields))


def _literal(field: tuple[str, str | bytes]) -> bytes:
    name, value = field
    text = value.encode("latin-1") if isinstance(value, str) else base64.b64encode(value).rstrip(b"=")
    key = name.encode("ascii")
    return b"\x00" + _length(len(key)) + key + _length(len(text)) + text


def _length(number: int) -> bytes:
    """An integer with a prefix of seven bits (RFC 7541, 5.1)."""
    if number < 0x7F:
        return bytes((number,))
    digits = bytearray((0x7F,))
    number -= 0x7F
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)


class HeadersTooLarge(Exception):
    """More or longer header fields than this side takes."""


@final
class Headers:
    """Reads the header blocks of one connection, and knows those that came before."""

    MOST_KNOWN: Final = 64

    def __init__(self, largest: int) -> None:
        """``largest``: bytes of all names and values of a block."""
        self._decoder = Decoder(max_header_list_size=largest)
        self._known: dict[bytes, list[tuple[str, str]]] = {}

    def read(self, block: bytes) -> list[tuple[str, str]]:
        """The header fields of a block.

        Raises:
            HeadersTooLarge: they exceed the limit.
            ValueError: the block is none.
        """
        known = self._known.get(block)
        if known is not None:
            return known
        try:
            fields = [(_text(name), _text(value)) for name, value in self._decoder.decode(block, raw=True)]
        except HPACKError as error:
            if type(error).__name__ == "OversizedHeaderListError":
                raise HeadersTooLarge from error
            raise ValueError("no header block") from error
        if _refers_only(block):
            # means the same until something changes the table of what came before
            if len(self._known) < self.MOST_KNOWN:
                self._known[block] = fields
        else:
            self._known.clear()
        return fields


def _text(data: bytes | str) -> str:
    return data if isinstance(data, str) else data.decode("latin-1")


def _refers_only(block: bytes) -> bool:
    """Whether a block has nothing but references to fields that are known, each in one byte."""
    return all(byte & 0x80 and byte != 0xFF for byte in block)
