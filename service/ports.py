"""The addresses of a service: taken before anything is loaded, and kept while fronts come and go."""

from __future__ import annotations

import socket
from typing import Final, final

from service.settings import InvalidSettings, Settings

__all__ = ["Ports", "listen_on"]

# connections that the kernel holds until they are accepted
BACKLOG: Final = 2048


@final
class Ports:
    """For each front a listening socket for HTTP, and one for gRPC.

    The sockets are open here as well: connections that wait for a front that died wait for the next one.
    """

    def __init__(self, settings: Settings) -> None:
        """Take the addresses.

        Raises:
            InvalidSettings: somebody else has one.
        """
        self._http = _listeners(settings.host, settings.http_port, settings.fronts, "--http-port")
        self._grpc: list[socket.socket] = []
        if settings.grpc:
            try:
                self._grpc = _listeners(settings.host, settings.grpc_port, settings.fronts, "--grpc-port")
            except InvalidSettings:
                self.close()
                raise

    @property
    def http_port(self) -> int:
        """The port, also where 0 was asked for."""
        return _port(self._http[0])

    @property
    def grpc_port(self) -> int | None:
        """The port, also where 0 was asked for; None: no gRPC."""
        return _port(self._grpc[0]) if self._grpc else None

    def of_front(self, number: int) -> list[int]:
        """The descriptors of the sockets of a front: HTTP, and gRPC where there is any."""
        return [listeners[number].fileno() for listeners in (self._http, self._grpc) if listeners]

    def close(self) -> None:
        """Give the addresses up."""
        for listener in [*self._http, *self._grpc]:
            listener.close()


def listen_on(host: str, port: int, flag: str = "--http-port") -> socket.socket:
    """A listening socket.

    Raises:
        InvalidSettings: the address cannot be had.
    """
    return _bound(host, port, flag, shared=False)


def _listeners(host: str, port: int, count: int, flag: str) -> list[socket.socket]:
    first = listen_on(host, port, flag)
    if count == 1:
        return [first]
    # only sockets that all say so from the beginning share an address: the first one showed that it is free
    port = _port(first)
    first.close()
    return [_bound(host, port, flag, shared=True) for _ in range(count)]


def _bound(host: str, port: int, flag: str, *, shared: bool) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((host, port))
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
