"""The story of a request: validate, choose how to solve, batch, compute, bound, answer.

Protocols bring a :class:`SolveRequest` and carry a :class:`SolveResponse` away. What takes longer than a
moment happens off the event loop.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self, final

import numpy as np
from numpy.typing import NDArray

from problems import EVOLUTION_PROBLEMS, STEADY_PROBLEMS, ErrorBound, FieldSpec, Grid, SteadyProblem
from service.batcher import Batcher, Outcome
from service.certify import error_bounds, in_hull
from service.deadline import Deadline
from service.errors import InvalidField, NotAvailableYet, ServiceFault
from service.lookup import find_problem, find_steady
from service.models import Models, require_tested
from service.rollout import Roller, Rollout, RolloutRequest, starts_from_a_state
from service.settings import InvalidSettings, Limits
from service.validate import Inputs, validate_inputs, within_float32
from service.worker import Batch, Bucket, Solutions

__all__ = ["Queues", "SolveRequest", "SolveResponse", "Solver", "Timing"]

Method = Literal["auto", "surrogate", "solver", "hybrid"]
ErrorKind = Literal["none", "bound", "certified"]

# cells along a side, to warm up what has no grids of its own
WARM_UP_SIDE = 64


@dataclass(frozen=True)
class SolveRequest:
    """One field, or a batch of them, of one problem.

    Attributes:
        given: fields (ny, nx) or (batch, ny, nx) and uniform parameters by name, as they came.
        dtype: dtype of the answer, float32 or float64.
        timeout_ms: the client's deadline, from ``received`` on [ms].
        received: ``time.perf_counter()`` when the request arrived [s].
    """

    problem: str
    given: Mapping[str, Any]
    dtype: Literal["float32", "float64"] = "float32"
    model: str | None = None
    method: Method = "auto"
    error: ErrorKind = "bound"
    tolerance: float | str | None = None
    timeout_ms: float | None = None
    received: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True)
class Timing:
    """Where the time went [ms]."""

    queue: float
    compute: float
    certify: float
    total: float


@dataclass(frozen=True)
class SolveResponse:
    """Solutions, and what is known about each.

    Attributes:
        fields: solutions by name, of the rank that the request had.
        single: the request had one field: the tuples have one entry.
        model: the version that answered, None for the reference solver.
        operator: id of the discrete operator that the error speaks of.
        errors: a bound for each sample; None when the client wanted none.
    """

    fields: Mapping[str, NDArray[Any]]
    single: bool
    model: str | None
    method: Literal["surrogate", "solver"]
    operator: str
    errors: tuple[ErrorBound, ...] | None
    in_distribution: tuple[bool, ...]
    iterations: tuple[int, ...]
    timing: Timing


@dataclass(frozen=True)
class _Route:
    """How a request is solved: by which queue, in which bucket."""

    batcher: Batcher
    bucket: Bucket
    hull: Mapping[str, float] | None  # None: the method was not trained


@final
@dataclass(frozen=True)
class Queues:
    """The queues, each in front of a worker of its own.

    Attributes:
        surrogates: solutions and rollouts of the loaded versions.
        references: solutions by the reference solvers.
        marches: steps in time by the reference solvers; a step may take long, and no solution waits for it.
    """

    surrogates: Batcher
    references: Batcher
    marches: Batcher

    @property
    def all(self) -> tuple[Batcher, ...]:
        """Every queue."""
        return self.surrogates, self.references, self.marches


@final
class Solver:
    """Answers requests with the loaded surrogates and the reference solvers."""

    def __init__(self, models: Models, queues: Queues, limits: Limits) -> None:
        self._models = models
        self._queues = queues
        self._limits = limits
        self._roller = Roller(models, queues.surrogates, queues.marches, limits)

    async def __aenter__(self) -> Self:
        for queue in self._queues.all:
            queue.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for queue in self._queues.all:
            await queue.close()

    async def warm_up(self) -> None:
        """Solve in every way that clients may ask for, so that none waits for compilers and caches."""
        side = min(WARM_UP_SIDE, self._limits.grid_side)
        for name in (*STEADY_PROBLEMS, *EVOLUTION_PROBLEMS):
            await self._try_out(name, (side, side), {"method": "solver"})
        for version in filter(starts_from_a_state, self._models.versions):
            for grid in version.card.grids:
                await self._try_out(version.card.problem, grid, {"model": str(version.reference)})

    async def _try_out(self, name: str, grid: tuple[int, int], options: Mapping[str, Any]) -> None:
        request: SolveRequest | RolloutRequest
        try:
            if name in STEADY_PROBLEMS:
                request = SolveRequest(name, _plain(STEADY_PROBLEMS[name].inputs, grid), **options)
                await self.solve(request)
            else:
                request = RolloutRequest(name, _plain(EVOLUTION_PROBLEMS[name].inputs, grid), 1, **options)
                await (await self.roll_out(request)).close()
        except ServiceFault as error:
            who = request.model or f"the reference solver of {request.problem}"
            message = f"{who} cannot be warmed up: {error.__cause__ or error}"
            raise InvalidSettings(f"{message}; leave it out of the models") from error

    async def solve(self, request: SolveRequest) -> SolveResponse:
        """The solutions of a request.

        Raises:
            ServiceFault: one of its kinds, when there is no solution to give.
        """
        _refuse_what_comes_later(request)
        problem = find_steady(request.problem)
        deadline = Deadline(request.timeout_ms, request.received, "allow more time or send fewer fields")
        async with deadline.kept():
            return await self._solve(problem, request)

    async def roll_out(self, request: RolloutRequest) -> Rollout:
        """The frames that follow from a state; see :meth:`Roller.start`."""
        return await self._roller.start(request)

    async def _solve(self, problem: SteadyProblem, request: SolveRequest) -> SolveResponse:
        inputs = await asyncio.to_thread(validate_inputs, problem, request.given, self._limits)
        route = self._choose(problem, request, inputs)
        batch = await asyncio.to_thread(_batch, inputs, route.bucket)
        outcome = await route.batcher.submit(batch)
        _refuse_unsolved(problem, inputs, outcome.solutions)
        answers = await asyncio.to_thread(_leaving, outcome, request.dtype)
        certifying = time.perf_counter()
        errors, known = await asyncio.to_thread(_judge, request, route, inputs, answers)
        now = time.perf_counter()
        version = route.bucket.version
        return SolveResponse(
            fields={name: values[0] if inputs.single else values for name, values in answers.items()},
            single=inputs.single,
            model=None if version is None else str(version),
            method="solver" if version is None else "surrogate",
            operator=route.bucket.scheme,
            errors=errors,
            in_distribution=known,
            iterations=outcome.solutions.iterations,
            timing=_timing(outcome, certify=now - certifying, total=now - request.received),
        )

    def _choose(self, problem: SteadyProblem, request: SolveRequest, inputs: Inputs) -> _Route:
        # without a tolerance the surrogate is the cheapest method that meets the request
        if request.method == "solver":
            return self._reference_route(problem, request, inputs)
        version = self._models.find(problem.name, request.model)
        card = version.card
        require_tested(version, problem.inputs[0].name, inputs.grid)
        grid = Grid(inputs.grid, card.extent)
        bucket = Bucket(problem.name, version.reference, card.scheme, grid, "float32")
        return _Route(self._queues.surrogates, bucket, card.training_hull)

    def _reference_route(self, problem: SteadyProblem, request: SolveRequest, inputs: Inputs) -> _Route:
        # a named model asks for the discrete operator of that model's labels
        card = None if request.model is None else self._models.find(problem.name, request.model).card
        grid = Grid(inputs.grid, (1.0, 1.0) if card is None else card.extent)
        scheme = problem.schemes[0] if card is None else card.scheme
        bucket = Bucket(problem.name, None, scheme, grid, "float64")
        return _Route(self._queues.references, bucket, hull=None)


def _plain(specs: Iterable[FieldSpec], grid: tuple[int, int]) -> dict[str, NDArray[np.float64]]:
    """Constant fields on ``grid``: 1 where a field has to be positive, else 0."""
    return {spec.name: np.full(grid, 1.0 if spec.exclusive_minimum == 0 else 0.0) for spec in specs}


def _refuse_what_comes_later(request: SolveRequest) -> None:
    if request.tolerance is not None:
        raise NotAvailableYet("tolerance: certified answers come with a later release; leave it out")
    if request.error == "certified":
        raise NotAvailableYet("error=certified comes with a later release; use bound or none")
    if request.method == "hybrid":
        raise NotAvailableYet("method=hybrid comes with a later release; use surrogate, solver or auto")


def _batch(inputs: Inputs, bucket: Bucket) -> Batch:
    if bucket.dtype == "float32":
        within_float32(find_problem(bucket.problem), inputs)
    return Batch(bucket, {name: values.astype(bucket.dtype) for name, values in inputs.fields.items()})


def _refuse_unsolved(problem: SteadyProblem, inputs: Inputs, solutions: Solutions) -> None:
    for row, why in solutions.unsolved.items():
        raise _contrast(problem, inputs, row, why)


def _contrast(problem: SteadyProblem, inputs: Inputs, row: int, message: str) -> InvalidField:
    """What to raise for a field whose values differ too much for float64."""
    return InvalidField(problem.inputs[0].name, "contrast", message, None if inputs.single else (row,))


def _leaving(outcome: Outcome, dtype: str) -> dict[str, NDArray[Any]]:
    """The very numbers that leave the service."""
    with np.errstate(over="ignore"):
        answers = {name: values.astype(dtype, order="C") for name, values in outcome.solutions.fields.items()}
    for name, values in answers.items():
        if not np.isfinite(values).all():
            raise InvalidField(
                name, "finite", f"the {name} is not finite in {dtype}; scale the input, or use float64"
            )
    return answers


def _judge(
    request: SolveRequest, route: _Route, inputs: Inputs, answers: Mapping[str, NDArray[Any]]
) -> tuple[tuple[ErrorBound, ...] | None, tuple[bool, ...]]:
    errors = _bounds(route.bucket, inputs, answers) if request.error == "bound" else None
    if route.hull is None:
        return errors, (True,) * inputs.rows
    coefficient = inputs.fields[STEADY_PROBLEMS[route.bucket.problem].inputs[0].name]
    return errors, in_hull(route.hull, list(coefficient))


def _bounds(bucket: Bucket, inputs: Inputs, answers: Mapping[str, NDArray[Any]]) -> tuple[ErrorBound, ...]:
    # what overflows shows in the bound
    with np.errstate(over="ignore", invalid="ignore"):
        errors = error_bounds(bucket.problem, bucket.scheme, bucket.grid, inputs.fields, answers)
    for row, error in enumerate(errors):
        # a bound that bounds nothing has no number on the wire either
        if not (math.isfinite(error.upper) and math.isfinite(error.l2_estimate)):
            problem = STEADY_PROBLEMS[bucket.problem]
            what = f"{problem.inputs[0].name}: the error of the answer cannot be bounded in float64"
            message = f"{what}; send a lower contrast, or ask for error=none"
            raise _contrast(problem, inputs, row, message)
    return errors


def _timing(outcome: Outcome, certify: float, total: float) -> Timing:
    seconds = Timing(queue=outcome.queue, compute=outcome.compute, certify=certify, total=total)
    return replace(seconds, **{name: round(1000 * value, 3) for name, value in vars(seconds).items()})
