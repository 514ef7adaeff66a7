"""The Python client: NumPy arrays in and out, over HTTP with ``.npy`` bodies.

::

    from service.client import Client

    with Client("http://127.0.0.1:8080") as client:
        answer = client.solve("darcy", permeability, source=2.0)
        answer.pressure, answer.error.upper, answer.model
        for frame in client.rollout("shallow_water", {"h": depth}, steps=100):
            frame.fields["h"], frame.time, frame.invariants, frame.error
"""

from __future__ import annotations

import io
import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any, Self, final

import httpx
import numpy as np
from numpy.typing import ArrayLike, NDArray

from service.connection import Connection, ServiceError, npy_bytes
from service.frames import CalibratedEstimate, Frame, follow

__all__ = [
    "Answer",
    "CalibratedEstimate",
    "Client",
    "ErrorEstimate",
    "ErrorSummary",
    "Frame",
    "ServiceError",
]


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
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        http = httpx.Client(base_url=url, headers=headers, timeout=timeout, transport=transport)
        self._connection = Connection(http, retries)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

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
        return _answer(self._connection.post(f"/v1/problems/{problem}/solve", npy_bytes(field), options))

    def rollout(
        self,
        problem: str,
        state: Mapping[str, ArrayLike] | ArrayLike,
        *,
        steps: int = 100,
        every: int = 1,
        start_step: int = 0,
        model: str | None = None,
        method: str = "auto",
        walls: str | None = None,
        timeout_ms: float | None = None,
    ) -> Generator[Frame, None, None]:
        """The frames that follow from a state, as they are computed; float64 in gives float64 out.

        A connection that breaks is taken up again, and the frames are those of a stream that did not break.
        Close the generator, or drop it, to stop the computation.

        Args:
            problem: ``shallow_water`` or ``diffusion_reaction``.
            state: fields (ny, nx) by name, or one array (channel, ny, nx); of shallow water ``hu`` and ``hv``
                may be left out where nothing moves.
            steps: the last step, counted from the initial state.
            every: yield every so-many-th step.
            start_step: number of the step that ``state`` belongs to.
            model: ``name``, ``name@alias`` or ``name@3``.
            method: ``auto``, ``surrogate`` or ``solver``.
            walls: boundary conditions; a surrogate knows those that it was trained with only.
            timeout_ms: deadline for the last frame [ms].

        Raises:
            ServiceError: the service refused or failed.
            httpx.HTTPError: the service could not be reached, or the stream broke again and again.
        """
        options = {
            "steps": steps,
            "every": every,
            "model": model,
            "method": method,
            "walls": walls,
            "timeout_ms": timeout_ms,
        }
        return follow(self._connection, problem, state, start_step, options)


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
