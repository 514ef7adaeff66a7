"""The Python client: NumPy arrays in and out, over HTTP with ``.npy`` bodies.

::

    from service.client import Client

    with Client("http://127.0.0.1:8080") as client:
        answer = client.solve("darcy", permeability, source=2.0)
        answer.pressure, answer.error.upper, answer.model
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any, Self, final

import httpx
import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Answer", "Client", "ErrorEstimate", "ErrorSummary", "ServiceError"]

NPY = "application/x-npy"
RETRIED = (429, 503)
LONGEST_PAUSE = 60.0  # [s]


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


@dataclass(frozen=True)
class ErrorEstimate:
    """How far an answer is from the exact solution of its operator: ``lower <= error <= upper``, relative."""

    kind: str
    norm: str
    lower: float
    upper: float
    l2_estimate: float
    steps: int


@dataclass(frozen=True)
class ErrorSummary:
    """Of a batch whose estimates are too many for a header: the largest upper bound, and what is typical.

    Attributes:
        steps: the most that any field took.
        fields: how many the batch has.
    """

    kind: str
    norm: str
    upper_max: float
    l2_estimate_median: float
    steps: int
    fields: int


@dataclass(frozen=True)
class Answer:
    """Solutions by name, each also an attribute (``answer.pressure``), and what is known about them.

    For a batch, ``error`` and ``in_distribution`` have an entry for each field; the numbers of ``error`` have
    four digits, and for a batch of some hundred fields it is an :class:`ErrorSummary`.

    Attributes:
        model: the version that answered, None for the reference solver.
        operator: id of the discrete operator that ``error`` speaks of.
        timing_ms: where the service's time went: queue, compute, certify, total [ms].
    """

    fields: Mapping[str, NDArray[Any]]
    model: str | None
    method: str
    operator: str
    error: Any
    in_distribution: Any
    certified: bool
    iterations: int
    timing_ms: Mapping[str, float]

    def __getattr__(self, name: str) -> NDArray[Any]:
        # looked up without attribute access, which would come back here while an answer is unpickled
        known: Mapping[str, NDArray[Any]] = self.__dict__.get("fields", {})
        if name not in known:
            raise AttributeError(f"the answer has no {name!r}")
        return known[name]


@final
class Client:
    """A connection to one service. Reuse it; close it, or use it in a ``with`` block."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout: float = 60.0,
        retries: int = 2,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Prepare to ask the service at ``url``; nothing is sent yet.

        Args:
            url: address of the service, ``http://host:port``.
            token: sent as a bearer token.
            timeout: of one attempt [s].
            retries: further attempts when the service is overloaded or cannot be reached.
            transport: replaces the network, for tests.
        """
        headers = {"Accept": NPY} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout, transport=transport)
        self._retries = retries

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def solve(
        self,
        problem: str,
        field: ArrayLike,
        *,
        model: str | None = None,
        method: str = "auto",
        error: str = "bound",
        tolerance: float | str | None = None,
        timeout_ms: float | None = None,
        **parameters: float,
    ) -> Answer:
        """Solve one field (ny, nx) or a batch (batch, ny, nx); float64 in gives float64 out.

        Args:
            problem: ``darcy``.
            field: its input field, for Darcy the permeability.
            model: ``name``, ``name@alias`` or ``name@3``.
            method: ``auto``, ``surrogate`` or ``solver``.
            error: ``bound`` or ``none``.
            tolerance: not available yet.
            timeout_ms: deadline for the service [ms].
            parameters: uniform parameters of the problem, for Darcy ``source``.

        Raises:
            ServiceError: the service refused or failed.
            httpx.HTTPError: the service could not be reached.
        """
        options = {
            "model": model,
            "method": method,
            "error": error,
            "tolerance": tolerance,
            "timeout_ms": timeout_ms,
            **parameters,
        }
        given = {name: value for name, value in options.items() if value is not None}
        return _answer(self._post(f"/v1/problems/{problem}/solve", _npy_bytes(field), given))

    def _post(self, path: str, body: bytes, options: Mapping[str, Any]) -> httpx.Response:
        for attempts_left in range(self._retries, -1, -1):
            try:
                response = self._http.post(path, content=body, params=options, headers={"Content-Type": NPY})
            except httpx.ConnectError:
                if not attempts_left:
                    raise
                time.sleep(1.0)
                continue
            if response.status_code not in RETRIED or not attempts_left:
                break
            time.sleep(_pause(response))
        if response.is_error:
            raise ServiceError(response.status_code, _problem(response))
        return response


def _npy_bytes(field: ArrayLike) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.asarray(field), allow_pickle=False)
    return stream.getvalue()


def _pause(response: httpx.Response) -> float:
    """How long the service asks to wait [s]."""
    try:
        return min(float(response.headers.get("Retry-After", "1")), LONGEST_PAUSE)
    except ValueError:
        return 1.0


def _problem(response: httpx.Response) -> Mapping[str, Any]:
    try:
        document = response.json()
    except ValueError:
        document = None
    # something between client and service may answer in its own words
    return document if isinstance(document, dict) else {"detail": response.text[:200]}


def _answer(response: httpx.Response) -> Answer:
    headers = response.headers
    array = np.load(io.BytesIO(response.content), allow_pickle=False)
    return Answer(
        fields={headers["Mno-Field"]: array},
        model=headers["Mno-Model"] or None,
        method=headers["Mno-Method"],
        operator=headers["Mno-Operator"],
        error=_error(json.loads(headers["Mno-Error-Estimate"])),
        in_distribution=json.loads(headers["Mno-In-Distribution"]),
        certified=json.loads(headers["Mno-Certified"]),
        iterations=int(headers["Mno-Iterations"]),
        timing_ms=_timing(headers["Server-Timing"]),
    )


def _error(document: Any) -> ErrorEstimate | ErrorSummary | tuple[ErrorEstimate, ...] | None:
    if document is None:
        return None
    if "upper_max" in document:
        return ErrorSummary(**_known(ErrorSummary, document))
    estimate = _known(ErrorEstimate, document)
    if not isinstance(estimate["upper"], list):
        return ErrorEstimate(**estimate)
    arrays = (estimate.pop(name) for name in ("lower", "upper", "l2_estimate"))
    return tuple(
        ErrorEstimate(**estimate, lower=lower, upper=upper, l2_estimate=l2_estimate)
        for lower, upper, l2_estimate in zip(*arrays, strict=True)
    )


def _known(kind: type, document: Mapping[str, Any]) -> dict[str, Any]:
    # a newer service may say more than this client knows
    return {known.name: document[known.name] for known in fields(kind)}


def _timing(header: str) -> dict[str, float]:
    entries = (entry.partition(";dur=") for entry in header.split(", "))
    return {name: float(duration) for name, _, duration in entries}
