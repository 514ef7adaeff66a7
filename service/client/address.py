"""Where a service is, and how it is asked: what the clients read out of a URL."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final, final
from urllib.parse import SplitResult, urlsplit

__all__ = ["Address", "address_of"]

SCHEMES: Final = ("http", "https", "grpc", "grpcs")
_SEVERAL: Final = ("dns:", "ipv4:", "ipv6:")


@final
@dataclass(frozen=True)
class Address:
    """Where a service is, and how it is asked.

    Attributes:
        host: with its port; over gRPC also several, as gRPC names them: all addresses that a name has
            (``dns:///name:port``), or a list of them (``ipv4:...``, ``ipv6:...``).
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
    def several(self) -> bool:
        """Whether there may be several places, among which requests take turns."""
        return self.host.startswith(_SEVERAL)

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
        expected = (
            "http://host:port, https://..., grpc://host:port, grpcs://..., grpc://dns:///name:port for all "
            "addresses that a name has, or grpc://address:port,address:port"
        )
        raise ValueError(f"expected {expected}, got {url!r}")
    pair = None if cert is None else (Path(cert[0]), Path(cert[1]))
    if (ca is not None or pair is not None) and not parts.scheme.endswith("s"):
        raise ValueError(f"ca and cert are for https:// and grpcs://, got {url!r}")
    trusted = None if ca is None else Path(ca)
    return Address(parts.scheme, _host(parts), url, token, timeout, trusted, pair)


def _host(parts: SplitResult) -> str:
    if not parts.scheme.startswith("grpc"):
        return parts.netloc
    if parts.netloc == "dns:":
        return f"dns:{parts.path}"
    places = parts.netloc.split(",")
    return parts.netloc if len(places) == 1 else f"ipv{_version(places)}:{','.join(places)}"


def _version(places: list[str]) -> int:
    """Of the Internet protocol that all these addresses are of."""
    hosts = [place.rpartition(":")[0].strip("[]") for place in places]
    try:
        (version,) = {ip_address(host).version for host in hosts}
    except ValueError as error:
        raise ValueError(
            f"expected addresses with ports, all of IPv4 or all of IPv6, got {','.join(places)!r}; "
            "a name that has several is grpc://dns:///name:port"
        ) from error
    return version
