"""The addresses of a service: taken before anything is loaded, and kept while fronts come and go."""

from __future__ import annotations

import socket
from typing import Final, Self, final

from service.settings import InvalidSettings, Settings

__all__ = ["Ports", "bracketed", "listen_on"]

# connections that the kernel holds until they are accepted
BACKLOG: Final = 2048
HTTP: Final = "--http-port"
GRPC: Final = "--grpc-port"


@final
class Ports:
    """For each front a listening socket for HTTP, and the gRPC port, on which the fronts listen themselves.

    The sockets are open here as well: connections that wait for a front that died wait for the next one.
    """

    def __init__(self, settings: Settings) -> None:
        """Take the addresses.

        Raises:
            InvalidSettings: somebody else has one.
        """
        self._host = settings.host
        self._http = _listeners(settings.host, settings.http_port, settings.fronts)
        self._grpc: socket.socket | None = None
        if settings.grpc:
            try:
                self._grpc = _reserved(settings.host, settings.grpc_port)
            except InvalidSettings:
                self.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def http_port(self) -> int:
        """The port, also where 0 was asked for."""
        return _port(self._http[0])

    @property
    def grpc_address(self) -> str | None:
        """Host and port, also where port 0 was asked for; None: no gRPC."""
        return None if self._grpc is None else f"{bracketed(self._host)}:{_port(self._grpc)}"

    def http(self, front: int) -> socket.socket:
        """The socket on which a front answers HTTP."""
        return self._http[front]

    def close(self) -> None:
        """Give the addresses up."""
        for listener in [*self._http, *([self._grpc] if self._grpc else [])]:
            listener.close()


def bracketed(host: str) -> str:
    """A host as addresses have it in front of a port."""
    return f"[{host}]" if ":" in host else host


def listen_on(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        InvalidSettings: the address cannot be had.
    """
    return _bound(host, port, HTTP, shared=False)


def _listeners(host: str, port: int, count: int) -> list[socket.socket]:
    first = listen_on(host, port)
    if count == 1:
        return [first]
    # only sockets that all say so from the beginning share an address: the first one showed that it is free
    port = _port(first)
    first.close()
    return [_bound(host, port, HTTP, shared=True) for _ in range(count)]


def _reserved(host: str, port: int) -> socket.socket:
    """A socket that keeps others off the address, but not those who share it; it does not listen."""
    with _bound(host, port, GRPC, shared=False) as probe:
        port = _port(probe)
    return _bound(host, port, GRPC, shared=True, listening=False)


def _bound(host: str, port: int, flag: str, *, shared: bool, listening: bool = True) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    if listening:
        # of two sockets that both say so and do not listen, each leaves the address to the other
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((host, port))
        if listening:
            # at once: two sockets may be bound to one address, but only one can listen there
            listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        message = f"cannot listen on {host}:{port}: {error.strerror}; choose another port with {flag}"
        raise InvalidSettings(message) from error
    return listener


def _port(listener: socket.socket) -> int:
    port: int = listener.getsockname()[1]
    return port
