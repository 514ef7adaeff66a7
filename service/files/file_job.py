"""What ``mno solve`` is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

from bulk.objects import Place
from service.request import ErrorKind, Method

__all__ = ["FileJob", "Tolerance"]

Tolerance = float | Literal["discretization"]


@final
@dataclass(frozen=True)
class FileJob:
    """What to solve, and how.

    Attributes:
        source: uniform right-hand side; None takes the file's, or 1.
        batch_size: fields computed together.
        tolerance: what the error must be within; None: whatever it is.
        chunk_size: fields that are kept together, and lost together when a worker dies; None: by their size.
    """

    problem: str
    input: Place
    output: Place
    model: str | None
    method: Method
    error: ErrorKind
    source: float | None
    batch_size: int
    tolerance: Tolerance | None = None
    chunk_size: int | None = None
