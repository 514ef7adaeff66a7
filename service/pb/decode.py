"""Bytes that are a message, or are refused."""

from __future__ import annotations

import asyncio
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from service.errors import InvalidField

__all__ = ["decode", "decoded"]

Kind = TypeVar("Kind", bound=Message)

# larger messages are read off the event loop [B]
LARGE: Final = 2**21


def decode(kind: type[Kind], data: bytes | memoryview) -> Kind:
    """A message of a kind.

    Raises:
        InvalidField: the bytes are no such message.
    """
    try:
        # the types know bytes only
        return kind.FromString(data)  # type: ignore[arg-type]
    except DecodeError as error:
        name = kind.DESCRIPTOR.full_name
        raise InvalidField("body", "protobuf", f"expected a {name}, got bytes that are none") from error


async def decoded(kind: type[Kind], data: bytes | memoryview) -> Kind:
    """See :func:`decode`; what takes long is done off the event loop."""
    if len(data) > LARGE:
        return await asyncio.to_thread(decode, kind, data)
    return decode(kind, data)
