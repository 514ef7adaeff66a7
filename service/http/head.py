"""The head of a request while it is read: bounded, and the same to whoever reads it."""

from __future__ import annotations

from typing import Final, final

from service.settings import Limits

__all__ = ["Head", "Refused"]

ENDS: Final = b"\r\n\r\n"
# of two of these, whoever looked at the request before may have meant the other one
ONCE: Final = (b"host", b"authorization", b"content-type", b"mno-key", b"inference-header-content-length")


@final
class Refused(Exception):
    """What is read is no request, or none that is answered: status, slug and detail."""

    def __init__(self, status: int, slug: str, detail: str) -> None:
        super().__init__(status, slug, detail)
        self.status = status
        self.slug = slug
        self.detail = detail


@final
class Head:
    """What was found of it so far.

    Attributes:
        url: the target of the request, as it is sent.
        fields: names in lower case, and values.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._size = self._count = 0
        self.url = b""
        self.fields: list[tuple[bytes, bytes]] = []

    def add_url(self, part: bytes) -> None:
        """A part of the target.

        Raises:
            Refused: it is too long.
        """
        self.url += part
        self._grow(len(part))

    def add_field(self, name: bytes, value: bytes) -> None:
        """A header.

        Raises:
            Refused: there are too many, or they are too long.
        """
        self.fields.append((name.lower(), value))
        self.add_trailer(name, value)

    def add_trailer(self, name: bytes, value: bytes) -> None:
        """What came in the place of a header after a body, which nobody reads.

        Raises:
            Refused: with the headers there are too many, or they are too long.
        """
        self._count += 1
        self._grow(len(name) + len(value))

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > self._limits.header_bytes or self._count > self._limits.headers:
            raise self.too_large()

    def too_large(self) -> Refused:
        """Why it is refused, if it is for its size."""
        limits = self._limits
        most = f"{limits.headers} headers and {limits.header_bytes} bytes of them"
        return Refused(431, "header-too-large", f"expected at most {most}; send fewer")

    def by_name(self) -> dict[bytes, bytes]:
        """Values by name; of those that were sent twice, the last one.

        Raises:
            Refused: one was that may not be.
        """
        named = dict(self.fields)
        if len(named) < len(self.fields):
            names = [name for name, _ in self.fields]
            for name in ONCE:
                if names.count(name) > 1:
                    raise Refused(400, "bad-request", f"expected {name.decode()} once, got it twice or more")
        return named

    def without_upgrade(self, method: bytes, version: str) -> bytes:
        """The bytes of a head that says the same, but for the offer to speak another protocol."""
        lines = [b"%b: %b\r\n" % field for field in self.fields if field[0] != b"upgrade"]
        return b"%b %b HTTP/%b\r\n%b\r\n" % (method, self.url, version.encode(), b"".join(lines))

    def bytes_in(self, data: bytes) -> bytes | None:
        """Those of ``data`` that say this, if it begins with them, and they are as plain as it."""
        end = data.find(ENDS) + len(ENDS)
        lines = data.count(b"\r\n", 0, end)
        # the request's own line, those of its headers, and an empty one, none of which ends otherwise
        is_plain = lines == data.count(b"\n", 0, end) == len(self.fields) + 2
        return data[:end] if is_plain else None
