"""TLS for both ports, and who may connect: with ``client_ca``, only holders of a certificate it signed.

One :class:`Tls` a front; the supervisor makes one, too, to refuse bad files before anything is started::

    tls = Tls.of(settings.tls)                                   # None: no TLS
    uvicorn.Config(..., ssl_context_factory=tls.for_uvicorn)     # HTTP
    server.add_secure_port(address, tls.grpc_credentials())      # gRPC
    tls.reload()                                                 # SIGHUP: certificates that were renewed
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self, final

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.errors import InvalidSettings

if TYPE_CHECKING:
    import grpc

__all__ = ["Tls", "TlsSettings"]

MINIMUM: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


@final
class TlsSettings(BaseModel):
    """Certificates of the service and of its clients."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cert: Path | None = Field(
        default=None,
        description="PEM file: the service's certificate, then those that signed it; none: no TLS",
    )
    key: Path | None = Field(default=None, description="PEM file of its private key, without a passphrase")
    client_ca: Path | None = Field(
        default=None, description="PEM file: who signs clients' certificates; then every client needs one"
    )
    minimum_version: Literal["1.2", "1.3"] = Field(
        default="1.2", description="of the HTTP port; gRPC's library takes 1.2 and later"
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.cert is None) != (self.key is None):
            raise ValueError("expected both cert and key, or neither, got one of them")
        if self.client_ca is not None and self.cert is None:
            raise ValueError("expected cert and key with client_ca, got client_ca alone")
        return self


@final
class Tls:
    """Certificates that were read and fit together."""

    def __init__(self, cert: Path, key: Path, settings: TlsSettings) -> None:
        """Read the files.

        Raises:
            InvalidSettings: one of them is missing or broken, or the key is another certificate's.
        """
        self._cert = cert
        self._key = key
        self._client_ca = settings.client_ca
        self._minimum = MINIMUM[settings.minimum_version]
        self._http = _Renewable(self._context())
        self._files = self._read()
        self._renewed = False

    @classmethod
    def of(cls, settings: TlsSettings) -> Self | None:
        """What the settings say; None: no TLS.

        Raises:
            InvalidSettings: the files are not what they should be.
        """
        if settings.cert is None or settings.key is None:
            return None
        return cls(settings.cert, settings.key, settings)

    def for_uvicorn(self, *_: object) -> ssl.SSLContext:
        """The context of the HTTP port, as ``uvicorn.Config(ssl_context_factory=...)`` asks for it."""
        return self._http

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """The credentials of the gRPC port, which follow ``reload``."""
        # imported here: a process that answers no gRPC has no use for it
        import grpc

        return grpc.dynamic_ssl_server_credentials(
            self._grpc_configuration(), self._renewed_configuration, self._client_ca is not None
        )

    def reload(self) -> None:
        """Use the files as they are now, for connections that are opened from now on.

        Raises:
            InvalidSettings: they are broken; those read before stay.
        """
        context, files = self._context(), self._read()
        self._http.present, self._files = context, files
        self._renewed = True

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = self._minimum
        # a client that asks for new keys again and again keeps a server busy
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.set_alpn_protocols(["http/1.1"])
        self._load(context)
        if self._client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _load(self, context: ssl.SSLContext) -> None:
        _named(self._cert, lambda: self._cert.read_bytes())
        _named(self._key, lambda: self._key.read_bytes())
        # a passphrase would be asked for on the terminal
        _named(self._cert, lambda: context.load_cert_chain(self._cert, self._key, password=_no_passphrase))
        if self._client_ca is not None:
            _named(self._client_ca, lambda: context.load_verify_locations(self._client_ca))

    def _read(self) -> tuple[bytes, bytes, bytes | None]:
        try:
            ca = None if self._client_ca is None else self._client_ca.read_bytes()
            return self._key.read_bytes(), self._cert.read_bytes(), ca
        except OSError as error:
            raise InvalidSettings(f"{error.filename}: expected a PEM file: {error.strerror}") from error

    def _grpc_configuration(self) -> Any:
        import grpc

        key, cert, ca = self._files
        return grpc.ssl_server_certificate_configuration([(key, cert)], ca)

    def _renewed_configuration(self) -> Any:
        """Asked for at each new connection; None: as before."""
        renewed, self._renewed = self._renewed, False
        return self._grpc_configuration() if renewed else None


@final
class _Renewable(ssl.SSLContext):
    """What a listener keeps; each connection begins with the context that is ``present`` then.

    One context that loads again would go on to trust every client authority that it ever read, and would
    resume the sessions of clients that only an earlier one had signed.
    """

    def __new__(cls, present: ssl.SSLContext) -> Self:  # noqa: ARG004
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, present: ssl.SSLContext) -> None:
        self.present = present

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """See ``ssl.SSLContext``: asyncio calls it for each connection."""
        return self.present.wrap_bio(incoming, outgoing, server_side, server_hostname, session)


def _no_passphrase() -> str:
    raise InvalidSettings("expected a private key without a passphrase; `openssl pkey` removes it")


def _named(path: Path, read: Callable[[], object]) -> None:
    try:
        read()
    except InvalidSettings as error:
        raise InvalidSettings(f"{path}: {error}") from error
    except ssl.SSLError as error:
        why = (error.reason or str(error)).replace("_", " ").lower()
        raise InvalidSettings(
            f"{path}: expected PEM, a certificate and its own private key: {why}; look at it with `openssl`"
        ) from error
    except OSError as error:
        raise InvalidSettings(f"{path}: expected a PEM file: {error.strerror}") from error
