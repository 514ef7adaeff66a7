"""Where a service is, and how it is asked: what the clients read out of a URL."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final
from urllib.parse import urlsplit

__all__ = ["Address", "address_of"]

SCHEMES: Final = ("http", "https", "grpc", "grpcs")


@final
@dataclass(frozen=True)
class Address:
    """Where a service is, and how it is asked.

    Attributes:
        ca: file with whom to trust, in place of those that the system trusts.
        cert: files with the client's own certificate and key, for mutual TLS.
    """

    scheme: str
    host: str
    url: str
    token: str | None
    timeout: float
    ca: Path | None
    cert: tuple[Path, Path] | None

    @property
    def grpc(self) -> bool:
        """Whether to speak gRPC."""
        return self.scheme.startswith("grpc")

    @property
    def secure(self) -> bool:
        """Whether to speak TLS."""
        return self.scheme.endswith("s")

    def context(self) -> ssl.SSLContext:
        """Whom to trust, and what to show."""
        context = ssl.create_default_context(cafile=self.ca)
        if self.cert is not None:
            context.load_cert_chain(*self.cert)
        return context


def address_of(
    url: str,
    token: str | None,
    timeout: float,
    ca: str | Path | None,
    cert: tuple[str | Path, str | Path] | None,
) -> Address:
    """The address that a URL says.

    Raises:
        ValueError: it says none.
    """
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or not parts.netloc:
        expected = "http://host:port, https://..., grpc://host:port or grpcs://..."
        raise ValueError(f"expected {expected}, got {url!r}")
    pair = None if cert is None else (Path(cert[0]), Path(cert[1]))
    if (ca is not None or pair is not None) and not parts.scheme.endswith("s"):
        raise ValueError(f"ca and cert are for https:// and grpcs://, got {url!r}")
    return Address(parts.scheme, parts.netloc, url, token, timeout, None if ca is None else Path(ca), pair)
