"""Messages of protobuf in parts, so that what an array has is sent from where it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

__all__ = ["Parts", "length_of", "tagged", "varint"]

Parts: TypeAlias = Sequence[bytes | memoryview]


def length_of(parts: Parts) -> int:
    """Bytes of all parts."""
    return sum(map(len, parts))


def tagged(tag: bytes, parts: Parts) -> Parts:
    """A field that has a message, or bytes: its tag, how long it is, and it."""
    return [tag + varint(length_of(parts)), *parts]


def varint(number: int) -> bytes:
    """A number as protobuf writes it."""
    if number < 0x80:
        return bytes((number,))
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)
