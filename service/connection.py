"""How the client asks: again where the service is overloaded or cannot be reached."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

import httpx
import numpy as np
from numpy.typing import ArrayLike

__all__ = ["NPY", "NPY_STREAM", "PAUSE", "Connection", "ServiceError", "npy_bytes"]

NPY = "application/x-npy"
NPY_STREAM = "application/x-npy-stream"
RETRIED = (429, 503)
# before the service is asked again [s]
PAUSE = 1.0
LONGEST_PAUSE = 60.0


class ServiceError(Exception):
    """The service answered with a problem document (RFC 9457).

    Attributes:
        status: HTTP status.
        type: stable slug, such as ``invalid-field``.
        problem: the whole document; of an invalid field it has ``field``, ``rule`` and ``index``.
    """

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(f"{problem.get('type', 'unknown')} ({status}): {problem.get('detail', '')}")
        self.status = status
        self.type = str(problem.get("type", "unknown"))
        self.problem = problem


@final
class Connection:
    """Posts arrays to one service."""

    def __init__(self, http: httpx.Client, retries: int) -> None:
        """``retries``: further attempts when the service is overloaded or cannot be reached."""
        self._http = http
        self.retries = retries

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def post(self, path: str, body: bytes, options: Mapping[str, Any]) -> httpx.Response:
        """The whole answer.

        Raises:
            ServiceError: the service refused or failed.
            httpx.HTTPError: the service could not be reached.
        """
        with self.stream(path, body, options, NPY) as response:
            response.read()
            return response

    @contextmanager
    def stream(
        self, path: str, body: bytes, options: Mapping[str, Any], accept: str
    ) -> Iterator[httpx.Response]:
        """The answer as it comes; see ``post``."""
        response = self._ask(path, body, options, accept)
        try:
            yield response
        finally:
            response.close()

    def _ask(self, path: str, body: bytes, options: Mapping[str, Any], accept: str) -> httpx.Response:
        given = {name: value for name, value in options.items() if value is not None}
        headers = {"Content-Type": NPY, "Accept": accept}
        for attempts_left in range(self.retries, -1, -1):
            request = self._http.build_request("POST", path, content=body, params=given, headers=headers)
            try:
                response = self._http.send(request, stream=True)
            except httpx.ConnectError:
                if not attempts_left:
                    raise
                time.sleep(PAUSE)
                continue
            if not response.is_error:
                return response
            response.read()
            response.close()
            if response.status_code not in RETRIED or not attempts_left:
                break
            time.sleep(_pause(response))
        raise ServiceError(response.status_code, _problem(response))


def npy_bytes(field: ArrayLike) -> bytes:
    """What ``numpy.save`` writes."""
    stream = io.BytesIO()
    np.save(stream, np.asarray(field), allow_pickle=False)
    return stream.getvalue()


def _pause(response: httpx.Response) -> float:
    """How long the service asks to wait [s]."""
    try:
        return min(float(response.headers.get("Retry-After", PAUSE)), LONGEST_PAUSE)
    except ValueError:
        return PAUSE


def _problem(response: httpx.Response) -> Mapping[str, Any]:
    try:
        document = response.json()
    except ValueError:
        document = None
    # something between client and service may answer in its own words
    return document if isinstance(document, dict) else {"detail": response.text[:200]}
