"""Who asks, and whether they may.

A front has one :class:`Security`; every protocol asks it first, before it reads a body::

    security = open_security(settings.security, settings.host, mutual_tls=settings.tls.client_ca is not None)
    security.refuse_foreign_page(host_header, origin_header)          # HTTP only, where something is changed
    principal = security.authenticate(authorization_header, "solve")  # or gRPC's metadata "authorization"
    ticket = Ticket(client=principal.client, ...)
    security.reload()                                                 # SIGHUP

Without a tokens file everybody on this machine may do everything, and nobody else can connect: listening
on another address is refused, unless ``security.open`` says that this is meant.
"""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from service.access.tokens import LONGEST_TOKEN, Scope, TokenRecord, read_tokens
from service.errors import Forbidden, InvalidSettings, Unauthenticated, quoted

__all__ = [
    "ANYBODY",
    "Principal",
    "Security",
    "SecuritySettings",
    "check_exposure",
    "is_loopback",
    "open_security",
]

BEARER: Final = "bearer "
WAY_OUT: Final = "send `Authorization: Bearer TOKEN`; whoever runs the service makes one with `mno token new`"
# verified tokens are remembered under a keyed hash of this size [B]
KEY_BYTES: Final = 16


@final
class SecuritySettings(BaseModel):
    """Who may ask."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: Path | None = Field(
        default=None, description="file that `mno token new` keeps; none: whoever can connect may ask"
    )
    open: bool = Field(
        default=False,
        description="without tokens, answer other machines too; they may ask, but not load or unload",
    )
    open_metrics: bool = Field(default=False, description="/metrics needs no token")
    audit: Path | None = Field(
        default=None, description="file for the audit log, JSON lines; default: the log, as mno.audit"
    )


@final
@dataclass(frozen=True, eq=False)
class Principal:
    """Who asks.

    Attributes:
        client: the name of their token; empty where nobody has to say. Never anything a client chose.
        scopes: what they may do.
        record: their token, with its limits.
    """

    client: str
    scopes: frozenset[Scope]
    record: TokenRecord | None = None


# somebody on this machine, of a service without tokens
ANYBODY: Final = Principal("", frozenset({"solve", "admin", "metrics"}))


@final
class Security:
    """Knows the tokens; see :func:`open_security`."""

    def __init__(
        self,
        tokens: Path | None,
        anybody: Principal,
        *,
        local: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Read the tokens.

        Args:
            tokens: their file; None: nobody has a token.
            anybody: what somebody without a token is.
            local: only this machine can connect.
            clock: seconds since 1970.
        """
        self._path = tokens
        self._anybody = anybody
        self._local = local
        self._clock = clock
        self._principals: tuple[tuple[TokenRecord, Principal], ...] = ()
        self._verified: dict[bytes, tuple[TokenRecord, Principal]] = {}
        # what is remembered cannot be looked for by somebody who does not know the key
        self._key = secrets.token_bytes(KEY_BYTES)
        self.reload()

    def reload(self) -> int:
        """Read the tokens file again; returns how many tokens it has.

        Raises:
            InvalidSettings: it is broken; the tokens known before stay.
        """
        records = read_tokens(self._path) if self._path is not None else ()
        self._principals = tuple((record, _principal(record)) for record in records)
        self._verified = {}
        return len(records)

    def authenticate(self, authorization: str | None, scope: Scope) -> Principal:
        """Who asks.

        Args:
            authorization: the header, or gRPC's metadata, of this name.
            scope: what they want to do.

        Raises:
            Unauthenticated: nobody knows them.
            Forbidden: they may not.
        """
        if authorization is None or self._path is None:
            principal = self._anybody
        else:
            principal = self._identify(authorization)
        if not principal.client and scope not in principal.scopes:
            raise Unauthenticated(f"expected a token for {scope}, got none; {WAY_OUT}")
        if scope not in principal.scopes:
            allowed = ", ".join(sorted(principal.scopes))
            raise Forbidden(
                f"the token {principal.client} is for {allowed}; {scope} needs one of its own",
                principal.client,
            )
        return principal

    def refuse_foreign_page(self, host: str | None, origin: str | None) -> None:
        """Where no token is asked for, keep web pages of others from using a browser on this machine.

        Args:
            host: the header of this name: a page whose name was pointed at this machine says its own.
            origin: the header of this name, which a browser sends with what a page wants changed.

        Raises:
            Forbidden: a page of somebody else asks.
        """
        if self._path is not None or not self._local:
            return
        named = (_host(f"//{host}") if host else "127.0.0.1", _host(origin) if origin else "127.0.0.1")
        if not all(map(is_loopback, named)):
            host, origin = map(quoted, named)
            raise Forbidden(
                f"expected a page of this machine, got host {host} and origin {origin}; "
                "without tokens only 127.0.0.1 and localhost are answered"
            )

    def _identify(self, authorization: str) -> Principal:
        scheme, token = authorization[: len(BEARER)], authorization[len(BEARER) :].strip()
        if scheme.lower() != BEARER or not 0 < len(token) <= LONGEST_TOKEN:
            raise Unauthenticated(f"expected a bearer token, got another authorization; {WAY_OUT}")
        given = token.encode()
        key = hashlib.blake2b(given, digest_size=KEY_BYTES, key=self._key).digest()
        found = self._verified.get(key)
        if found is None:
            found = self._verify(given)
            # only what was issued is remembered, so that nobody can fill the memory
            self._verified[key] = found
        record, principal = found
        if record.not_after is not None and record.not_after.timestamp() < self._clock():
            raise Unauthenticated(f"the token {record.name} has expired; {WAY_OUT}")
        return principal

    def _verify(self, given: bytes) -> tuple[TokenRecord, Principal]:
        # all are compared, so that how long it takes says nothing about which one it is
        found = [entry for entry in self._principals if entry[0].matches(given)]
        if not found:
            raise Unauthenticated(f"expected a token that this service knows, got another; {WAY_OUT}")
        return found[0]


def open_security(settings: SecuritySettings, host: str, *, mutual_tls: bool) -> Security:
    """What guards a service that listens on ``host``.

    Raises:
        InvalidSettings: the tokens file is broken, or the service would be open to everybody by accident.
    """
    check_exposure(settings, host, mutual_tls=mutual_tls)
    local = is_loopback(host)
    if settings.tokens is None and local:
        return Security(None, ANYBODY, local=True)
    scopes: Iterable[Scope] = ["solve"] if settings.tokens is None else []
    if settings.open_metrics:
        scopes = [*scopes, "metrics"]
    return Security(settings.tokens, Principal("", frozenset(scopes)), local=local)


def check_exposure(settings: SecuritySettings, host: str, *, mutual_tls: bool) -> None:
    """Refuse to answer other machines without knowing who asks.

    Raises:
        InvalidSettings: neither tokens nor client certificates, and nobody said that this is meant.
    """
    if settings.tokens is None and not (settings.open or mutual_tls or is_loopback(host)):
        raise InvalidSettings(
            f"host {host} can be reached from other machines and no tokens are set: make one with "
            '`mno token new NAME --file tokens.toml` and set security.tokens = "tokens.toml", '
            "or set security.open = true to answer anybody"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach this address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _principal(record: TokenRecord) -> Principal:
    scopes: frozenset[Scope] = frozenset(record.scopes)
    return Principal(record.name, scopes | {"metrics"} if "admin" in scopes else scopes, record)
