"""Bytes that are a message, or are refused."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from service.errors import InvalidField

__all__ = ["decode"]

Kind = TypeVar("Kind", bound=Message)


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
