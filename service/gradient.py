"""Vector-Jacobian products: what a request for a gradient asks, and what it gets."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, final

from numpy.typing import NDArray

from problems import SteadyProblem
from service.errors import LONGEST_QUOTE, InvalidField
from service.ticket import ANYBODY, Ticket
from service.timing import Timing
from service.validate import Inputs, check_like
from service.worker import COTANGENT

__all__ = ["GradientMethod", "VjpRequest", "VjpResponse", "check_cotangents", "chosen_input"]

# before the name of a field that the gradient is taken with respect to the logarithm of
LOGARITHM: Final = "log_"

GradientMethod = Literal["auto", "surrogate", "solver"]


@final
@dataclass(frozen=True)
class VjpRequest:
    """Inputs as for a solution, and cotangents of the solution.

    Attributes:
        given: fields (ny, nx) or (batch, ny, nx) and uniform parameters by name, as they came.
        cotangents: by name of the output field, of the shape that the inputs have; at least one.
        wrt: the input field, or ``log_<field>`` for its logarithm; None: the problem's first input.
        dtype: dtype of the gradient, float32 or float64.
        ticket: for whom, how urgently and until when.
        key: what decides whether a canary answers: equal keys get equal versions; empty: by chance.
        received: ``time.perf_counter()`` when the request arrived [s].
    """

    problem: str
    given: Mapping[str, Any]
    cotangents: Mapping[str, Any]
    wrt: str | None = None
    dtype: Literal["float32", "float64"] = "float32"
    model: str | None = None
    method: GradientMethod = "auto"
    ticket: Ticket = ANYBODY
    key: str = ""
    received: float = field(default_factory=time.perf_counter)


@final
@dataclass(frozen=True)
class VjpResponse:
    """The gradient of the product of solution and cotangents.

    Attributes:
        gradient: of the rank that the request had.
        wrt: the field, or ``log_<field>``, that it is taken with respect to.
        single: the request had one field.
        model: the version whose answer was differentiated.
        operator: id of the discrete operator that this version approximates.
        in_distribution: whether each sample resembles the training data.
        batch_size: rows that were computed together, those of other requests included.
    """

    gradient: NDArray[Any]
    wrt: str
    single: bool
    model: str
    method: Literal["surrogate"]
    operator: str
    in_distribution: tuple[bool, ...]
    batch_size: int
    timing: Timing


def chosen_input(problem: SteadyProblem, wrt: str | None) -> tuple[str, bool]:
    """The input field that a gradient is wanted for, and whether for its logarithm.

    Raises:
        InvalidField: there is no such field, or its values have no logarithm.
    """
    if wrt is None:
        return problem.inputs[0].name, False
    names = [spec.name for spec in problem.inputs]
    # only what has to be positive has a logarithm
    positive = [spec.name for spec in problem.inputs if spec.exclusive_minimum == 0]
    if wrt in names:
        return wrt, False
    if wrt.startswith(LOGARITHM) and wrt.removeprefix(LOGARITHM) in positive:
        return wrt.removeprefix(LOGARITHM), True
    known = [*names, *(f"{LOGARITHM}{name}" for name in positive)]
    message = f"wrt: expected {' or '.join(known)}, got {wrt[:LONGEST_QUOTE]!r}"
    raise InvalidField("wrt", "unknown", message)


def check_cotangents(
    problem: SteadyProblem, given: Mapping[str, Any], inputs: Inputs
) -> dict[str, NDArray[Any]]:
    """The cotangents [batch y x] under the names that they have in a batch.

    Raises:
        InvalidField: there is none, one of an unknown field, of another shape, or with numbers that are none.
    """
    names = [spec.name for spec in problem.outputs]
    for name in (each[:LONGEST_QUOTE] for each in given if each not in names):
        message = f"cotangent of {name!r}: expected one of {', '.join(names)}"
        raise InvalidField("cotangents", "unknown", message)
    if not given:
        raise InvalidField(
            "cotangents", "missing", f"cotangents: expected one of {', '.join(names)}, got none"
        )
    return {
        f"{COTANGENT}{name}": check_like(inputs, f"cotangent.{name}", values)
        for name, values in given.items()
    }
