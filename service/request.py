"""What is asked of the solver, and what it answers, whatever the protocol."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, final

from numpy.typing import NDArray

from problems import ErrorBound
from service.novelty import Novelty
from service.telemetry.timing import Timing
from service.ticket import ANYBODY, Ticket

__all__ = ["ErrorKind", "Method", "SolveRequest", "SolveResponse"]

Method = Literal["auto", "surrogate", "solver", "hybrid"]
ErrorKind = Literal["none", "bound", "certified"]


@final
@dataclass(frozen=True)
class SolveRequest:
    """One field, or a batch of them, of one problem.

    Attributes:
        given: fields (ny, nx) or (batch, ny, nx) and uniform parameters by name, as they came.
        dtype: dtype of the answer, float32 or float64; with a tolerance it is float64, whatever this says.
        tolerance: largest guaranteed relative error in the energy norm, or ``discretization``: as exact as
            the grid resolves the equation; None: the method's own accuracy.
        error: what is said about the error of the answer; ``none`` says nothing about its trust at all.
        ticket: for whom, how urgently and until when; see :func:`service.deadline.deadline_at`.
        key: what decides whether a canary answers: equal keys get equal versions; empty: by turns.
        received: ``time.perf_counter()`` when the request arrived [s].
    """

    problem: str
    given: Mapping[str, Any]
    dtype: Literal["float32", "float64"] = "float32"
    model: str | None = None
    method: Method = "auto"
    error: ErrorKind = "bound"
    tolerance: float | str | None = None
    ticket: Ticket = ANYBODY
    key: str = ""
    received: float = field(default_factory=time.perf_counter)


@final
class SolveResponse(NamedTuple):
    """Solutions, and what is known about each.

    Attributes:
        fields: solutions by name, of the rank that the request had.
        single: the request had one field: the tuples have one entry.
        model: the version that answered, or whose answer was refined; None for the reference solver.
        operator: id of the discrete operator that the error speaks of.
        errors: a bound for each sample; None when the client wanted none.
        novelty: whether each sample resembles the training data; None with ``error="none"``.
        batch_size: rows that were computed together, those of other requests included.
        certified: a tolerance was asked for, and each of these numbers is guaranteed to meet it.
    """

    fields: Mapping[str, NDArray[Any]]
    single: bool
    model: str | None
    method: Literal["surrogate", "hybrid", "solver"]
    operator: str
    errors: tuple[ErrorBound, ...] | None
    novelty: tuple[Novelty, ...] | None
    iterations: tuple[int, ...]
    timing: Timing
    batch_size: int = 1
    certified: bool = False

    @property
    def in_distribution(self) -> tuple[bool, ...] | None:
        """Whether each sample resembles the training data; None where that was not asked."""
        return None if self.novelty is None else tuple([each.in_distribution for each in self.novelty])
