"""The story of a gradient: the cotangents of a solution, carried back through the surrogate to its input."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, final

import numpy as np
from numpy.typing import NDArray

from problems import SteadyProblem
from service.batching.batcher import Outcome
from service.deadline import Deadline
from service.errors import LONGEST_QUOTE, InvalidField, NotAvailableYet
from service.lookup import find_steady
from service.passage import batch_of, leaving, off_loop, placed, size_of
from service.route import Chosen, Router
from service.settings import Limits
from service.telemetry.timing import Timing
from service.ticket import ANYBODY, Ticket
from service.trust import Judge
from service.validate import Inputs, check_like, validate_inputs
from service.workers.worker import COTANGENT, GRADIENT, Batch

__all__ = ["Differentiator", "GradientMethod", "VjpRequest", "VjpResponse"]

# before the name of a field that the gradient is taken with respect to the logarithm of
LOGARITHM: Final = "log_"
WAY_OUT: Final = "allow more time or send fewer fields"

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


@final
class Differentiator:
    """Differentiates the served surrogates."""

    def __init__(self, router: Router, judge: Judge, limits: Limits) -> None:
        self._router = router
        self._judge = judge
        self._limits = limits

    async def differentiate(self, request: VjpRequest) -> VjpResponse:
        """The gradient of solution times cotangents with respect to an input field.

        Raises:
            ServiceFault: one of its kinds, when there is none to give.
        """
        problem = find_steady(request.problem)
        if request.method == "solver":
            raise NotAvailableYet("method=solver: adjoint solves come with a later release; use surrogate")
        async with Deadline(request.ticket.deadline, request.received, WAY_OUT).kept():
            return await self._differentiate(problem, request)

    async def _differentiate(self, problem: SteadyProblem, request: VjpRequest) -> VjpResponse:
        size, ticket = size_of(request.given), request.ticket
        name, of_logarithm = _chosen_input(problem, request.wrt)
        inputs = await off_loop(size, validate_inputs, problem, request.given, self._limits)
        cotangents = await off_loop(size, _checked, problem, request.cotangents, inputs)
        chosen = self._router.surrogate(problem, request.model, request.key, inputs.grid, ticket, "vjp")
        chosen.queue.require_room(chosen.bucket, inputs.rows, 2 * inputs.nbytes, ticket)
        self._judge.require_room(chosen, inputs, request.dtype, ticket)
        batch = await off_loop(size, _batch, problem, inputs, chosen, cotangents)
        outcome, known = await self._compute(chosen, batch, inputs, ticket)
        gradient = outcome.solutions.fields[f"{GRADIENT}{name}"]
        if of_logarithm:
            gradient = gradient * inputs.fields[name].astype(np.float64)
        answer = await off_loop(size, leaving, {f"gradient of {name}": gradient}, request.dtype, copy=True)
        (values,) = answer.values()
        total = time.perf_counter() - request.received
        return VjpResponse(
            gradient=values[0] if inputs.single else values,
            wrt=request.wrt or name,
            single=inputs.single,
            model=str(chosen.bucket.version),
            method="surrogate",
            operator=chosen.bucket.scheme,
            in_distribution=known,
            batch_size=outcome.batch_size,
            timing=Timing.of_seconds(outcome.queue, outcome.compute, 0.0, total),
        )

    async def _compute(
        self, chosen: Chosen, batch: Batch, inputs: Inputs, ticket: Ticket
    ) -> tuple[Outcome, tuple[bool, ...]]:
        """The gradients, and what is known about the inputs; where one fails, the other is given up."""
        tasks = (
            asyncio.ensure_future(chosen.queue.submit(batch, ticket)),
            asyncio.ensure_future(self._judge.resembles_training(chosen, inputs, ticket)),
        )
        try:
            outcome, known = await asyncio.gather(*tasks)
            return outcome, known
        finally:
            for task in tasks:
                task.cancel()


def _batch(
    problem: SteadyProblem, inputs: Inputs, chosen: Chosen, cotangents: Mapping[str, NDArray[Any]]
) -> Batch:
    batch = batch_of(problem, inputs, chosen.queue, chosen.bucket)
    more = placed(cotangents, chosen.queue, chosen.bucket.dtype)
    return Batch(chosen.bucket, {**batch.fields, **more})


def _chosen_input(problem: SteadyProblem, wrt: str | None) -> tuple[str, bool]:
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


def _checked(problem: SteadyProblem, given: Mapping[str, Any], inputs: Inputs) -> dict[str, NDArray[Any]]:
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
