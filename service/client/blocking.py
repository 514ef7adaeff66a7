"""The client that blocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, final

import httpx
from numpy.typing import ArrayLike

from service.client.answers import Answer, Frame, Gradient
from service.client.asking import Address, Rollouts, address_of, named_alike, question_of
from service.client.connection import Attempts, BrokenStream, Retryable, Transport
from service.client.http import HttpTransport

__all__ = ["Client"]

Found = TypeVar("Found")


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
        ca: str | Path | None = None,
        cert: tuple[str | Path, str | Path] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Prepare to ask the service at ``url``; nothing is sent yet.

        Args:
            url: ``http://host:port`` or ``grpc://host:port``; with TLS ``https://``, ``grpcs://``.
            token: sent as a bearer token.
            timeout: of one attempt [s]; of a stream over HTTP, between two frames.
            retries: further attempts when the service is overloaded or cannot be reached.
            ca: file with whom to trust, in place of those that the system trusts.
            cert: files with the client's own certificate and key, for mutual TLS.
            transport: replaces HTTP's network, for tests.

        Raises:
            ValueError: the URL is none.
        """
        self._retries = retries
        self._transport = _open(address_of(url, token, timeout, ca, cert), transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def solve(
        self,
        problem: str,
        field: ArrayLike | Any,
        *,
        model: str | None = None,
        method: str = "auto",
        error: str = "bound",
        tolerance: float | str | None = None,
        timeout_ms: float | None = None,
        priority: str | None = None,
        reproducible: bool = False,
        **parameters: float,
    ) -> Answer:
        """Solve one field (ny, nx) or a batch (batch, ny, nx); float64 in gives float64 out.

        Args:
            problem: ``darcy``.
            field: its input field, for Darcy the permeability; an ``xarray.DataArray`` gives such answers.
            model: ``name``, ``name@alias`` or ``name@3``.
            method: ``auto``, ``surrogate`` or ``solver``.
            error: ``bound`` or ``none``.
            tolerance: not available yet.
            timeout_ms: deadline for the service [ms].
            priority: ``interactive``, or ``bulk`` for what can wait.
            reproducible: the same bits whatever else the service computes.
            parameters: uniform parameters of the problem, for Darcy ``source``.

        Raises:
            ServiceError: the service refused or failed.
            httpx.HTTPError: the service could not be reached; over gRPC ``Unreachable``.
        """
        options = {
            "model": model,
            "method": method,
            "error": error,
            "tolerance": tolerance,
            "timeout_ms": timeout_ms,
            "priority": priority,
            "reproducible": reproducible,
        }
        question = question_of(problem, field, options, parameters)
        found: Answer = named_alike(field, self._again(lambda: self._transport.solve(question)))
        return found

    def vjp(
        self,
        problem: str,
        field: ArrayLike | Any,
        cotangent: ArrayLike | Any,
        *,
        wrt: str | None = None,
        model: str | None = None,
        method: str = "auto",
        timeout_ms: float | None = None,
        priority: str | None = None,
        reproducible: bool = False,
        **parameters: float,
    ) -> Gradient:
        """The gradient of the sum of ``cotangent`` times the solution.

        Args:
            problem: ``darcy``.
            field: where to differentiate; see ``solve``.
            cotangent: in the shape of the solution.
            wrt: the input field, ``permeability``, or ``log_permeability`` for its logarithm.
            model: see ``solve``; so for the others.
            method: ``auto`` or ``surrogate``.
            timeout_ms: deadline for the service [ms].
            priority: ``interactive``, or ``bulk`` for what can wait.
            reproducible: the same bits whatever else the service computes.
            parameters: uniform parameters of the problem, for Darcy ``source``.

        Raises:
            ServiceError: the service refused or failed.
            httpx.HTTPError: the service could not be reached; over gRPC ``Unreachable``.
        """
        options = {
            "wrt": wrt,
            "model": model,
            "method": method,
            "timeout_ms": timeout_ms,
            "priority": priority,
            "reproducible": reproducible,
        }
        question = question_of(problem, field, options, parameters, cotangent)
        found: Gradient = named_alike(field, self._again(lambda: self._transport.differentiate(question)))
        return found

    def rollout(
        self,
        problem: str,
        state: Mapping[str, ArrayLike | Any] | ArrayLike,
        *,
        steps: int = 100,
        every: int = 1,
        start_step: int = 0,
        model: str | None = None,
        method: str = "auto",
        walls: str | None = None,
        timeout_ms: float | None = None,
        priority: str | None = None,
        reproducible: bool = False,
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
            priority: ``interactive``, or ``bulk`` for what can wait.
            reproducible: the same bits whatever else the service computes.

        Raises:
            ServiceError: the service refused or failed.
            httpx.HTTPError: the service could not be reached, or the stream broke again and again; over gRPC
                ``Unreachable``.
        """
        options = {
            "steps": steps,
            "every": every,
            "start_step": start_step,
            "model": model,
            "method": method,
            "walls": walls,
            "timeout_ms": timeout_ms,
            "priority": priority,
            "reproducible": reproducible,
        }
        return self._follow(Rollouts(problem, state, options, self._retries))

    def problems(self) -> list[dict[str, Any]]:
        """What the service solves: fields, units, bounds, grids. Over HTTP only."""
        found: list[dict[str, Any]] = self._again(lambda: self._transport.describe("/v1/problems"))[
            "problems"
        ]
        return found

    def models(self) -> list[dict[str, Any]]:
        """The models of the service, their versions, and which are loaded; over HTTP also their aliases."""
        found: list[dict[str, Any]] = self._again(lambda: self._transport.describe("/v1/models"))["models"]
        return found

    def _again(self, ask: Callable[[], Found]) -> Found:
        """Ask, and again where it may help."""
        attempts = Attempts(self._retries)
        while True:
            try:
                return ask()
            except Retryable as failure:
                pause = attempts.pause(failure)
            time.sleep(pause)

    def _follow(self, rollouts: Rollouts) -> Generator[Frame, None, None]:
        follower, attempts = rollouts.follower, Attempts(self._retries)
        while True:
            pause = 0.0
            try:
                with self._transport.stream(follower.leg()) as stream:
                    for frame in stream.frames:
                        taken = rollouts.take(frame, stream.block)
                        if taken is not None:
                            attempts = Attempts(self._retries)
                            yield taken
                return
            except Retryable as failure:
                pause = attempts.pause(failure)
            except BrokenStream as error:
                if follower.whole:
                    return
                message = follower.failed(error)
                if message is not None:
                    raise self._transport.gave_up(message) from error
                pause = Attempts(1).pause(Retryable(error)) if follower.failures > 1 else 0.0
            time.sleep(pause)


def _open(address: Address, transport: httpx.BaseTransport | None) -> Transport:
    if address.grpc:
        # imported here: whoever speaks HTTP does not need the library
        from service.client.grpc import GrpcTransport

        return GrpcTransport(address)
    headers = {"Authorization": f"Bearer {address.token}"} if address.token else {}
    verify = address.context() if address.secure and transport is None else True
    http = httpx.Client(
        base_url=address.url, headers=headers, timeout=address.timeout, transport=transport, verify=verify
    )
    return HttpTransport(http)
