"""One request at a time from Python: to see whether an answer is right before its speed is measured."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from contextlib import closing
from typing import final

import grpc
import numpy as np

from benchmarks.serving.request import Array, Reply, Request, Route

__all__ = ["Abandonable", "Refused", "ask", "check", "fetch", "refusal"]

TIMEOUT = 30.0
# statuses of servers whose model is not loaded
NOT_THERE = {"404", "502", "503", "NOT_FOUND", "UNAVAILABLE"}


class Refused(Exception):
    """No answer, or one that is no success.

    Attributes:
        reason: the status and what came with it, or why there is none.
    """

    def __init__(self, route: Route, reason: str) -> None:
        super().__init__(f"{route.title}: {reason}")
        self.reason = reason


def ask(route: Route, request: Request, timeout: float = TIMEOUT) -> Reply:
    """Send a request and wait for the answer.

    Raises:
        Refused: it is none.
    """
    reply = (
        _over_http(route, request, timeout)
        if route.protocol == "http"
        else _over_grpc(route, request, timeout)
    )
    if reply.status != 200:
        raise Refused(route, f"{reply.status} {reply.body[:300]!r}")
    return reply


def fetch(port: int, path: str, timeout: float = TIMEOUT) -> int:
    """Status of a GET; 0 where there is none."""
    try:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            return response.status
    except OSError:
        return 0


def _over_http(route: Route, request: Request, timeout: float) -> Reply:
    try:
        with closing(http.client.HTTPConnection("127.0.0.1", route.port, timeout=timeout)) as connection:
            connection.request("POST", request.path, request.body, dict(request.headers))
            response = connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, response.read(), headers)
    except (OSError, http.client.HTTPException) as error:
        raise Refused(route, repr(error)) from error


def _over_grpc(route: Route, request: Request, timeout: float) -> Reply:
    try:
        with grpc.insecure_channel(f"127.0.0.1:{route.port}") as channel:
            answer = _unary(channel, request.path)(request.body, timeout=timeout)
            return Reply(200, bytes(answer))
    except grpc.RpcError as error:
        raise Refused(route, f"{error.code().name} {error.details()}") from error


def _unary(channel: grpc.Channel, path: str) -> grpc.UnaryUnaryMultiCallable[bytes, bytes]:
    """A method whose messages are bytes already."""
    return channel.unary_unary(path, request_serializer=bytes, response_deserializer=bytes)


def check(route: Route, field: Array, expected: Array) -> str | None:
    """What is wrong with the answer to a field; None: every bit is right."""
    try:
        answer = route.decode(ask(route, route.encode(field)))
    except Refused as error:
        return str(error)
    if answer.shape != expected.shape or answer.dtype != expected.dtype:
        return f"{route.title}: expected {expected.dtype}{expected.shape}, got {answer.dtype}{answer.shape}"
    if not np.array_equal(answer, expected, equal_nan=True):
        return f"{route.title}: differs by {np.abs(answer - expected).max():.1e} at most"
    return None


def refusal(route: Route, field: Array) -> str | None:
    """Why a server is not there yet; None: it does something with a request, if only to fail it."""
    try:
        ask(route, route.encode(field))
    except Refused as error:
        return str(error) if error.reason.split()[0] in NOT_THERE or "Error(" in error.reason else None
    return None


@final
class Abandonable:
    """A request whose client leaves before it is answered."""

    def __init__(self, route: Route, request: Request) -> None:
        """Send it, and do not wait."""
        if route.protocol == "http":
            connection = http.client.HTTPConnection("127.0.0.1", route.port)
            connection.request("POST", request.path, request.body, dict(request.headers))
            self.leave: Callable[[], object] = connection.close
        else:
            channel = grpc.insecure_channel(f"127.0.0.1:{route.port}")
            call = _unary(channel, request.path).future(request.body)

            def leave() -> None:
                call.cancel()  # type: ignore[no-untyped-call]
                channel.close()

            self.leave = leave
