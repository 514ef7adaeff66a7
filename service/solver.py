"""The story of a request: validate, choose how to solve, batch, compute, bound, answer.

Protocols bring a :class:`SolveRequest` and carry a :class:`SolveResponse` away. The numbers of a request are
copied once, into memory that the workers read; a small request is looked through where it is, a large one off
the event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Literal, ParamSpec, Protocol, Self, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from model_store.reference import Reference
from problems import EVOLUTION_PROBLEMS, STEADY_PROBLEMS, ErrorBound, FieldSpec, Grid, SteadyProblem
from service.batcher import Batcher, Outcome
from service.certify import bounds, in_hull, variations
from service.deadline import Deadline
from service.errors import InvalidField, InvalidSettings, NotAvailableYet, ServiceFault
from service.gradient import GradientMethod, VjpRequest, VjpResponse, check_cotangents, chosen_input
from service.lookup import find_steady
from service.models import Models, Served, require_tested
from service.rollout import Progress, Roller, Rollout, RolloutRequest
from service.settings import Limits
from service.shadow import Comparisons, NoComparisons, Shadows
from service.ticket import ANYBODY, Ticket
from service.timing import Timing
from service.validate import Inputs, validate_inputs, within_float32
from service.worker import ANSWER, GRADIENT, Batch, Bucket

__all__ = [
    "ErrorKind",
    "GradientMethod",
    "Method",
    "Queues",
    "SolveRequest",
    "SolveResponse",
    "Solver",
    "Timing",
    "VjpRequest",
    "VjpResponse",
]

Method = Literal["auto", "surrogate", "solver", "hybrid"]
ErrorKind = Literal["none", "bound", "certified"]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

# cells along a side, to warm up what has no grids of its own
WARM_UP_SIDE: Final = 64
# what takes less than the way to a thread and back is done on the event loop [B]
SMALL: Final = 256 * 2**10
WAY_OUT: Final = "allow more time or send fewer fields"


@final
@dataclass(frozen=True)
class SolveRequest:
    """One field, or a batch of them, of one problem.

    Attributes:
        given: fields (ny, nx) or (batch, ny, nx) and uniform parameters by name, as they came.
        dtype: dtype of the answer, float32 or float64.
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
@dataclass(frozen=True)
class SolveResponse:
    """Solutions, and what is known about each.

    Attributes:
        fields: solutions by name, of the rank that the request had.
        single: the request had one field: the tuples have one entry.
        model: the version that answered, None for the reference solver.
        operator: id of the discrete operator that the error speaks of.
        errors: a bound for each sample; None when the client wanted none.
        in_distribution: whether each sample resembles the training data; None with ``error="none"``.
        batch_size: rows that were computed together, those of other requests included.
    """

    fields: Mapping[str, NDArray[Any]]
    single: bool
    model: str | None
    method: Literal["surrogate", "solver"]
    operator: str
    errors: tuple[ErrorBound, ...] | None
    in_distribution: tuple[bool, ...] | None
    iterations: tuple[int, ...]
    timing: Timing
    batch_size: int = 1


@final
@dataclass(frozen=True)
class _Route:
    """How a request is solved: by which queue, in which bucket; the reference solver is no served version."""

    queue: Batcher
    bucket: Bucket
    served: Served | None


@final
@dataclass(frozen=True)
class _Trust:
    """What is known about the rows of an answer, and how long it took to know it [s]."""

    errors: tuple[ErrorBound, ...] | None = None
    in_distribution: tuple[bool, ...] | None = None
    seconds: float = 0.0


NO_TRUST: Final = _Trust()


@final
@dataclass(frozen=True)
class Queues:
    """The queues in front of what the problems compute by themselves, each with a worker of its own.

    Attributes:
        references: solutions by the reference solvers.
        marches: steps in time by the reference solvers; a step may take long, and no solution waits for it.
        bounds: error bounds of answers, and how their inputs vary.
    """

    references: Batcher
    marches: Batcher
    bounds: Batcher

    @property
    def all(self) -> tuple[Batcher, ...]:
        """Every queue."""
        return self.references, self.marches, self.bounds


class Observer(Comparisons, Protocol):
    """What is told of shadows and rollouts; ``service.metrics`` counts it."""

    def rollouts(self, problem: str) -> Progress:
        """Who is told of a problem's rollouts."""


@final
class Solver:
    """Answers requests with the served surrogates and the reference solvers."""

    def __init__(
        self, models: Models, queues: Queues, limits: Limits, observer: Observer | None = None
    ) -> None:
        self._models = models
        self._queues = queues
        self._limits = limits
        self._shadows = Shadows(observer or NoComparisons())
        self._turns = map(str, itertools.count())
        progress = None if observer is None else observer.rollouts
        self._roller = Roller(models, queues.marches, limits, self._shadows, progress)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._shadows.close()
        for queue in (*self._models.queues, *self._queues.all):
            await queue.close()

    async def warm_up(self) -> None:
        """Solve in every way that clients may ask for, so that none waits for compilers and caches.

        Only where the workers are threads: a process warms itself up before it says that it is ready.
        """
        side = min(WARM_UP_SIDE, self._limits.grid_side)
        for name in (*STEADY_PROBLEMS, *EVOLUTION_PROBLEMS):
            await self._try_out(name, (side, side), {"method": "solver"})
        for version in self._models.versions:
            # one that starts from several frames cannot be asked by a request
            for grid in version.grids if version.history <= 1 else ():
                await self._try_out(version.problem, grid, {"model": str(version)})

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
        if request.ticket.deadline is None:
            return await self._solve(problem, request)
        async with Deadline(request.ticket.deadline, request.received, WAY_OUT).kept():
            return await self._solve(problem, request)

    async def roll_out(self, request: RolloutRequest) -> Rollout:
        """The frames that follow from a state; see :meth:`Roller.start`."""
        return await self._roller.start(request)

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

    async def _solve(self, problem: SteadyProblem, request: SolveRequest) -> SolveResponse:
        size = _size(request.given)
        if size <= SMALL:
            inputs, route, batch = self._prepare(problem, request)
        else:
            inputs, route, batch = await asyncio.to_thread(self._prepare, problem, request)
        if request.error == "bound":
            self._require_room_for_bounds(request, route, inputs)
        outcome = await route.queue.submit(batch, request.ticket)
        for row, why in outcome.solutions.unsolved.items():
            raise _contrast(problem, inputs, row, why)
        solved = outcome.solutions.fields
        # its own memory: who reads slowly would else hold the answers of the whole batch
        own = outcome.batch_size > inputs.rows
        if size <= SMALL:
            answers = _leaving(solved, request.dtype, copy=own)
        else:
            answers = await asyncio.to_thread(_leaving, solved, request.dtype, copy=own)
        trust = NO_TRUST
        if request.error == "bound":
            trust = await self._judge(problem, request, route, inputs, answers)
        if route.served is not None:
            self._shadows.follow(route.served, batch, solved)
        total = time.perf_counter() - request.received
        return SolveResponse(
            fields={name: values[0] for name, values in answers.items()} if inputs.single else answers,
            single=inputs.single,
            model=None if route.served is None else str(route.bucket.version),
            method="solver" if route.served is None else "surrogate",
            operator=route.bucket.scheme,
            errors=trust.errors,
            in_distribution=trust.in_distribution,
            iterations=outcome.solutions.iterations,
            timing=Timing.of_seconds(outcome.queue, outcome.compute, trust.seconds, total),
            batch_size=outcome.batch_size,
        )

    def _prepare(self, problem: SteadyProblem, request: SolveRequest) -> tuple[Inputs, _Route, Batch]:
        """Everything before the queue."""
        inputs = validate_inputs(problem, request.given, self._limits)
        route = self._choose(problem, request, inputs)
        return inputs, route, _batch(problem, inputs, route.queue, route.bucket)

    def _choose(self, problem: SteadyProblem, request: SolveRequest, inputs: Inputs) -> _Route:
        # without a tolerance the surrogate is the cheapest method that meets the request
        if request.method == "solver":
            return self._reference_route(problem, request, inputs)
        served = self._find(problem, request.model, request.key)
        return _surrogate_route(problem, served, inputs, request.ticket)

    def _find(self, problem: SteadyProblem, model: str | None, key: str) -> Served:
        return self._models.find(problem.name, model, key or next(self._turns))

    def _reference_route(self, problem: SteadyProblem, request: SolveRequest, inputs: Inputs) -> _Route:
        # a named model asks for the discrete operator of that model's labels
        version = None
        if request.model is not None:
            version = self._models.find(problem.name, request.model, request.key).version
        grid = Grid(inputs.grid, (1.0, 1.0) if version is None else version.extent)
        scheme = problem.schemes[0] if version is None else version.scheme
        # rows are solved one by one: their bits depend on no company
        return _Route(self._queues.references, Bucket(problem.name, None, scheme, grid, "float64"), None)

    def _require_room_for_bounds(self, request: SolveRequest, route: _Route, inputs: Inputs) -> None:
        """Refuse now what would be solved and then find no room where its error is bounded."""
        bucket = _bound_bucket(route.bucket, request.dtype)
        self._queues.bounds.require_room(bucket, inputs.rows, 2 * inputs.nbytes, request.ticket)

    async def _judge(
        self,
        problem: SteadyProblem,
        request: SolveRequest,
        route: _Route,
        inputs: Inputs,
        answers: Mapping[str, NDArray[Any]],
    ) -> _Trust:
        began = time.perf_counter()
        named = {f"{ANSWER}{name}": values for name, values in answers.items()}
        numbers = await self._look_at(
            inputs, _bound_bucket(route.bucket, request.dtype), named, request.ticket
        )
        errors = bounds(numbers.solutions)
        for row, error in enumerate(errors):
            # a bound that bounds nothing has no number on the wire either
            if not (math.isfinite(error.upper) and math.isfinite(error.l2_estimate)):
                what = f"{problem.inputs[0].name}: the error of the answer cannot be bounded in float64"
                message = f"{what}; send a lower contrast, or ask for error=none"
                raise _contrast(problem, inputs, row, message)
        return _Trust(errors, _known(route.served, numbers, inputs.rows), time.perf_counter() - began)

    async def _look_at(
        self, inputs: Inputs, bucket: Bucket, answers: Mapping[str, NDArray[Any]], ticket: Ticket
    ) -> Outcome:
        """The numbers that trust is made of; who gets so far was let in before."""
        queue = self._queues.bounds
        fields = await _off_loop(inputs.nbytes, _placed, inputs, queue, "float64")
        return await queue.submit(Batch(bucket, {**fields, **answers}), ticket, admitted=True)

    async def _differentiate(self, problem: SteadyProblem, request: VjpRequest) -> VjpResponse:
        size = _size(request.given)
        inputs = await _off_loop(size, validate_inputs, problem, request.given, self._limits)
        name, by_logarithm = chosen_input(problem, request.wrt)
        served = self._find(problem, request.model, request.key)
        route = _surrogate_route(problem, served, inputs, request.ticket, task="vjp")
        cotangents = await _off_loop(size, check_cotangents, problem, request.cotangents, inputs)
        batch = await _off_loop(size, _batch, problem, inputs, route.queue, route.bucket, cotangents)
        features = _bound_bucket(route.bucket, request.dtype)
        outcome, numbers = await _both(
            route.queue.submit(batch, request.ticket), self._look_at(inputs, features, {}, request.ticket)
        )
        gradient = outcome.solutions.fields[f"{GRADIENT}{name}"]
        if by_logarithm:
            gradient = gradient * inputs.fields[name].astype(np.float64)
        answer = await _off_loop(size, _leaving, {f"gradient of {name}": gradient}, request.dtype)
        (values,) = answer.values()
        total = time.perf_counter() - request.received
        return VjpResponse(
            gradient=values[0] if inputs.single else values,
            wrt=request.wrt or name,
            single=inputs.single,
            model=str(served.version),
            method="surrogate",
            operator=route.bucket.scheme,
            in_distribution=_known(served, numbers, inputs.rows),
            batch_size=outcome.batch_size,
            timing=Timing.of_seconds(outcome.queue, outcome.compute, 0.0, total),
        )


async def _off_loop(
    size: int,
    function: Callable[Parameters, Result],
    *args: Parameters.args,
    **kwargs: Parameters.kwargs,
) -> Result:
    """Call a function here if it has little to look at, else in a thread."""
    if size <= SMALL:
        return function(*args, **kwargs)
    return await asyncio.to_thread(function, *args, **kwargs)


async def _both(
    first: Coroutine[Any, Any, Outcome], second: Coroutine[Any, Any, Outcome]
) -> tuple[Outcome, Outcome]:
    """Both results; where one fails, or the caller leaves, the other is given up."""
    tasks = asyncio.ensure_future(first), asyncio.ensure_future(second)
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _size(given: Mapping[str, Any]) -> int:
    return sum(getattr(values, "nbytes", 0) for values in given.values())


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


def _surrogate_route(
    problem: SteadyProblem,
    served: Served,
    inputs: Inputs,
    ticket: Ticket,
    task: Literal["solve", "vjp"] = "solve",
) -> _Route:
    require_tested(served.version, problem.inputs[0].name, inputs.grid)
    version = served.version
    bucket = _surrogate_bucket(
        problem.name,
        version.name,
        version.version,
        version.scheme,
        inputs.grid,
        version.extent,
        task,
        reproducible=ticket.reproducible,
    )
    return _Route(served.queue, bucket, served)


# a bucket takes longer to make than to look up
@lru_cache(256)
def _surrogate_bucket(
    problem: str,
    name: str,
    version: int,
    scheme: str,
    grid: tuple[int, int],
    extent: tuple[float, float],
    task: Literal["solve", "vjp"],
    *,
    reproducible: bool,
) -> Bucket:
    where = Grid(grid, extent)
    return Bucket(
        problem, Reference(name, version), scheme, where, "float32", task=task, reproducible=reproducible
    )


@lru_cache(256)
def _bound_bucket(bucket: Bucket, dtype: str) -> Bucket:
    # answers of different dtypes are rounded differently, and must not be joined
    return Bucket(bucket.problem, None, bucket.scheme, bucket.grid, dtype, task="bound")


def _placed(inputs: Inputs, queue: Batcher, dtype: str) -> dict[str, NDArray[Any]]:
    """The inputs in a dtype, where the queue's worker reads them."""
    placed = {}
    for name, values in inputs.fields.items():
        placed[name] = queue.allocate(values.shape, dtype)
        np.copyto(placed[name], values, casting="same_kind")
    return placed


def _batch(
    problem: SteadyProblem,
    inputs: Inputs,
    queue: Batcher,
    bucket: Bucket,
    more: Mapping[str, NDArray[Any]] | None = None,
) -> Batch:
    if bucket.dtype == "float32":
        within_float32(problem, inputs)
    fields = _placed(inputs, queue, bucket.dtype)
    for name, values in (more or {}).items():
        fields[name] = queue.allocate(values.shape, bucket.dtype)
        np.copyto(fields[name], values, casting="same_kind")
    return Batch(bucket, fields)


def _contrast(problem: SteadyProblem, inputs: Inputs, row: int, message: str) -> InvalidField:
    """What to raise for a field whose values differ too much for float64."""
    return InvalidField(problem.inputs[0].name, "contrast", message, None if inputs.single else (row,))


def _leaving(
    fields: Mapping[str, NDArray[Any]], dtype: str, *, copy: bool = False
) -> dict[str, NDArray[Any]]:
    """The very numbers that leave the service; with ``copy`` in memory of their own."""
    answers = {name: _as_dtype(values, dtype, copy=copy) for name, values in fields.items()}
    for name, values in answers.items():
        if not np.isfinite(values).all():
            raise InvalidField(
                name, "finite", f"the {name} is not finite in {dtype}; scale the input, or use float64"
            )
    return answers


def _as_dtype(values: NDArray[Any], dtype: str, *, copy: bool) -> NDArray[Any]:
    if values.dtype == dtype and values.flags.c_contiguous:
        return values.copy() if copy else values
    with np.errstate(over="ignore"):
        return values.astype(dtype, order="C")


def _known(served: Served | None, numbers: Outcome, rows: int) -> tuple[bool, ...]:
    """Whether each row is like the training data; the reference solver needs none."""
    if served is None:
        return (True,) * rows
    return in_hull(served.version.training_hull, variations(numbers.solutions))
