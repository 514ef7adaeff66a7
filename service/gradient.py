"""The story of a derivative: gradients of what is made of a solution, and tangents of the solution itself.

Both are had in two ways. ``surrogate`` differentiates the network that answers: cheap where it runs anyway,
and as good as the network has learnt to depend on its input, which nothing bounds. ``adjoint`` differentiates
the discrete problem, by another solve for each direction, with a guaranteed bound of what is wrong with it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from problems import Problem, SteadyProblem
from service.batching.batcher import Batcher, Outcome
from service.deadline import Deadline
from service.directions import Directions, check_directions
from service.errors import LONGEST_QUOTE, InvalidField, NotCertifiable
from service.lookup import find_steady
from service.passage import batch_of, leaving, off_loop, placed, size_of
from service.route import Chosen, Router
from service.scaling import near_one, over, require_carried, times
from service.settings import Limits
from service.start import Start, answered
from service.telemetry.timing import Timing
from service.ticket import ANYBODY, Ticket
from service.tolerance import check_tolerance, met_in_time, refuse_unsolved
from service.trust import Judge
from service.validate import Inputs, validate_inputs
from service.workers.worker import (
    ANY,
    COTANGENT,
    DEADLINE,
    GRADIENT,
    GRADIENT_ERROR,
    TANGENT,
    TOLERANCE,
    Batch,
    Bucket,
)

__all__ = [
    "Derivative",
    "Differentiator",
    "GradientMethod",
    "JvpRequest",
    "VjpRequest",
    "chosen_input",
]

# before the name of a field that a derivative is taken with respect to the logarithm of
LOGARITHM: Final = "log_"
WAY_OUT: Final = "allow more time or send fewer fields"
# relative rounding of a product of two float64
ROUNDING: Final = 2.0**-52

# ``solver`` is another word for ``adjoint``
GradientMethod = Literal["auto", "adjoint", "surrogate", "solver"]


@final
@dataclass(frozen=True)
class VjpRequest:
    """Inputs as for a solution, and cotangents of the solution.

    Attributes:
        given: fields (ny, nx) or (batch, ny, nx) and uniform parameters by name, as they came.
        cotangents: by name of the output field, of the shape that the inputs have, or several on a leading
            axis; at least one name.
        wrt: the input field, or ``log_<field>`` for its logarithm; None: the problem's first input.
        dtype: dtype of the gradient, float32 or float64.
        method: ``auto`` is the surrogate where a model is named, else the adjoint.
        tolerance: of the adjoint, the relative energy error of each of its solves; None: a few steps of each,
            whose error is said like any other.
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
    tolerance: float | None = None
    ticket: Ticket = ANYBODY
    key: str = ""
    received: float = field(default_factory=time.perf_counter)


@final
@dataclass(frozen=True)
class JvpRequest:
    """Inputs as for a solution, and tangents of one of them; see :class:`VjpRequest`.

    Attributes:
        tangents: of the input ``wrt``, of its shape, or several on a leading axis.
    """

    problem: str
    given: Mapping[str, Any]
    tangents: Any
    wrt: str | None = None
    dtype: Literal["float32", "float64"] = "float32"
    model: str | None = None
    method: GradientMethod = "auto"
    tolerance: float | None = None
    ticket: Ticket = ANYBODY
    key: str = ""
    received: float = field(default_factory=time.perf_counter)


@final
@dataclass(frozen=True)
class Derivative:
    """A gradient or a tangent, and what is known about it.

    Attributes:
        values: with the axes that the cotangents or tangents had.
        name: the field, or ``log_<field>``, whose gradient it is, or the output whose tangent it is; of a
            tangent through a rollout the fields of a frame, which are on the axis before y, with commas.
        single: the request had one field.
        model: the version whose answer was differentiated, or started from; None: no version took part.
        operator: id of the discrete operator that is differentiated, or that the version approximates.
        in_distribution: whether each sample resembles the training data.
        norm: what ``errors`` speak of. ``directional``: of a gradient g, ``|(g - exact, d)| <= error max|d|``
            for every direction d of the logarithm of the input; ``energy``: relative, of a tangent.
        errors: guaranteed bounds, one for each field (ny, nx) that ``values`` has; None: unknown.
        batch_size: rows that were computed together, those of other requests included.
        steps: of a tangent through a rollout, those of its frames; if these were asked for, they are on the
            axis before the fields.
    """

    values: NDArray[Any]
    name: str
    single: bool
    model: str | None
    method: Literal["adjoint", "surrogate"]
    operator: str
    in_distribution: tuple[bool, ...]
    norm: Literal["directional", "energy"]
    errors: NDArray[np.float64] | None
    batch_size: int
    timing: Timing
    steps: tuple[int, ...] = ()

    @property
    def certified(self) -> bool:
        """Whether its error is guaranteed; a bound that is infinite guarantees nothing."""
        return all(self.certified_rows)

    @property
    def certified_rows(self) -> tuple[bool, ...]:
        """Of each field of the batch, whether the errors of all its directions are guaranteed."""
        rows = len(self.in_distribution)
        if self.errors is None:
            return (False,) * rows
        # several directions are on the leading axis
        known = np.isfinite(self.errors).reshape(-1, rows)
        return tuple(bool(each.all()) for each in known.T)


@final
class _Asked(NamedTuple):
    """What a request comes to, once it is checked.

    Attributes:
        name: the input that the derivative is taken with respect to, in its logarithm if ``logarithmic``.
        directions: cotangents of the one output, or tangents of the input itself.
    """

    problem: SteadyProblem
    request: VjpRequest | JvpRequest
    inputs: Inputs
    name: str
    logarithmic: bool
    directions: Directions


@final
class _Found(NamedTuple):
    """Derivatives [batch direction y x] in float64, and their errors [batch direction]."""

    values: NDArray[Any]
    errors: NDArray[np.float64] | None
    outcome: Outcome
    known: tuple[bool, ...]


@final
class Differentiator:
    """Differentiates the served surrogates and the discrete problems."""

    def __init__(self, router: Router, judge: Judge, limits: Limits, references: Batcher) -> None:
        self._router = router
        self._judge = judge
        self._limits = limits
        self._references = references

    async def differentiate(self, request: VjpRequest | JvpRequest) -> Derivative:
        """The gradient of solution times cotangents, or the tangent of the solution.

        Raises:
            ServiceFault: one of its kinds, when there is none to give.
        """
        problem = find_steady(request.problem)
        check_tolerance(request.tolerance)
        with met_in_time(request.tolerance):
            async with Deadline(request.ticket.deadline, request.received, WAY_OUT).kept():
                asked = await self._checked(problem, request)
                if _method(request) == "surrogate":
                    return await self._learned(asked)
                return await self._discrete(asked)

    async def _checked(self, problem: SteadyProblem, request: VjpRequest | JvpRequest) -> _Asked:
        name, logarithmic = chosen_input(problem, request.wrt)
        size = size_of(request.given)
        inputs = await off_loop(size, validate_inputs, problem, request.given, self._limits)
        size += size_of(_given_directions(request))
        directions = await off_loop(size, _directions, problem, request, inputs, self._limits)
        return _Asked(problem, request, inputs, name, logarithmic, directions)

    # --- the surrogate's own

    async def _learned(self, asked: _Asked) -> Derivative:
        problem, request, inputs = asked.problem, asked.request, asked.inputs
        if request.tolerance is not None:
            message = "tolerance: nothing is known of the error of a surrogate's derivative; ask for adjoint"
            raise NotCertifiable(message)
        backward = isinstance(request, VjpRequest)
        task: Literal["vjp", "jvp"] = "vjp" if backward else "jvp"
        ticket = request.ticket
        chosen = self._router.surrogate(problem, request.model, request.key, inputs.grid, ticket, task)
        # a row for each direction
        number = asked.directions.number
        size = number * inputs.nbytes
        chosen.queue.require_room(chosen.bucket, number * inputs.rows, 2 * size, ticket)
        self._judge.require_look(chosen, inputs, ticket)
        size += asked.directions.values.nbytes
        batch, exponents = await off_loop(size, _row_for_each, asked, chosen)
        outcome, known = await self._together(chosen, batch, inputs, ticket)
        found = outcome.solutions.fields[_result(asked)].reshape(inputs.rows, number, *inputs.grid)
        values = await off_loop(found.nbytes, times, found, exponents)
        return await self._answer(asked, chosen, "surrogate", _Found(values, None, outcome, known))

    async def _together(
        self, chosen: Chosen, batch: Batch, inputs: Inputs, ticket: Ticket
    ) -> tuple[Outcome, tuple[bool, ...]]:
        """The derivatives, and what is known about the inputs; where one fails, the other is given up."""
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

    # --- the discrete problem's

    async def _discrete(self, asked: _Asked) -> Derivative:
        problem, request, inputs = asked.problem, asked.request, asked.inputs
        chosen = self._start_of(asked)
        bucket = _differentiating(chosen.bucket, isinstance(request, VjpRequest), asked.directions.number)
        size = inputs.nbytes + asked.directions.values.nbytes
        self._references.require_room(bucket, inputs.rows, size, request.ticket)
        if chosen.served is not None:
            self._judge.require_look(chosen, inputs, request.ticket)
        start = await answered(problem, chosen, inputs, request.ticket)
        batch = await off_loop(size, self._batch, asked, bucket, start)
        outcome = await self._references.submit(batch, request.ticket, admitted=bool(start.fields))
        refuse_unsolved(problem, inputs, outcome.solutions.unsolved, request.tolerance)
        known = (True,) * inputs.rows
        if chosen.served is not None:
            known = await self._judge.resembles_training(chosen, inputs, request.ticket)
        solutions = outcome.solutions
        found = _Found(solutions.fields[_result(asked)], solutions.fields[GRADIENT_ERROR], outcome, known)
        return await self._answer(asked, chosen, "adjoint", found)

    def _start_of(self, asked: _Asked) -> Chosen:
        """The version that is named, from whose answer the solves start; else the reference solver."""
        problem, request, grid = asked.problem, asked.request, asked.inputs.grid
        if request.model is None:
            return self._router.reference(problem, None, request.key, grid)
        return self._router.surrogate(problem, request.model, request.key, grid, request.ticket)

    def _batch(self, asked: _Asked, bucket: Bucket, start: Start) -> Batch:
        request, inputs, queue = asked.request, asked.inputs, self._references
        deadline = math.inf if request.ticket.deadline is None else request.ticket.deadline
        tolerance = ANY if request.tolerance is None else request.tolerance
        fields = placed({**inputs.fields, _argument(asked): asked.directions.values}, queue, "float64")
        numbers = {TOLERANCE: np.full(inputs.rows, tolerance), DEADLINE: np.full(inputs.rows, deadline)}
        return Batch(bucket, fields | start.answers | numbers)

    # --- the answer

    async def _answer(
        self, asked: _Asked, chosen: Chosen, method: Literal["adjoint", "surrogate"], found: _Found
    ) -> Derivative:
        request, inputs = asked.request, asked.inputs
        backward = isinstance(request, VjpRequest)
        name = (request.wrt or asked.name) if backward else asked.problem.outputs[0].name
        values, errors = await off_loop(found.values.nbytes, _leaving, asked, name, found)
        total = time.perf_counter() - request.received
        return Derivative(
            values=values,
            name=name,
            single=inputs.single,
            model=None if chosen.served is None else str(chosen.bucket.version),
            method=method,
            operator=chosen.bucket.scheme,
            in_distribution=found.known,
            norm="directional" if backward else "energy",
            errors=errors,
            batch_size=found.outcome.batch_size,
            timing=Timing.of_seconds(found.outcome.queue, found.outcome.compute, 0.0, total),
        )


def _method(request: VjpRequest | JvpRequest) -> Literal["adjoint", "surrogate"]:
    if request.method == "auto":
        return "adjoint" if request.model is None or request.tolerance is not None else "surrogate"
    return "surrogate" if request.method == "surrogate" else "adjoint"


def _directions(
    problem: SteadyProblem, request: VjpRequest | JvpRequest, inputs: Inputs, limits: Limits
) -> Directions:
    """The cotangents of the output, or the tangents of the input itself.

    Raises:
        InvalidField: there is none, or one that does not fit the inputs.
        TooLarge: they are too many.
    """
    if isinstance(request, VjpRequest):
        return _cotangents(problem, request.cotangents, inputs, limits)
    directions = check_directions(inputs, "tangent", request.tangents, limits)
    name, logarithmic = chosen_input(problem, request.wrt)
    if not logarithmic:
        return directions
    values = directions.values * inputs.fields[name].astype(np.float64)[:, None]
    return directions._replace(values=values)


def _given_directions(request: VjpRequest | JvpRequest) -> Mapping[str, Any]:
    """What came beside the inputs."""
    return request.cotangents if isinstance(request, VjpRequest) else {TANGENT: request.tangents}


def _cotangents(
    problem: SteadyProblem, given: Mapping[str, Any], inputs: Inputs, limits: Limits
) -> Directions:
    """The cotangents of the problem's output.

    Raises:
        InvalidField: there is none, one of an unknown field, of another shape, or with numbers that are none.
    """
    # a problem with several outputs would need directions of each; none has
    (output,) = problem.outputs
    for name in (each[:LONGEST_QUOTE] for each in given if each != output.name):
        message = f"cotangent of {name!r}: expected one of {output.name}"
        raise InvalidField("cotangents", "unknown", message)
    if not given:
        message = f"cotangents: expected one of {output.name}, got none"
        raise InvalidField("cotangents", "missing", message)
    return check_directions(inputs, f"cotangent.{output.name}", given[output.name], limits)


def chosen_input(problem: Problem, wrt: str | None) -> tuple[str, bool]:
    """The input field that a derivative is wanted for, and whether for its logarithm.

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


def _argument(asked: _Asked) -> str:
    """The name of the directions in a batch."""
    if isinstance(asked.request, JvpRequest):
        return f"{TANGENT}{asked.name}"
    return f"{COTANGENT}{asked.problem.outputs[0].name}"


def _result(asked: _Asked) -> str:
    """The name of the derivatives among what a batch gives."""
    if isinstance(asked.request, JvpRequest):
        return f"{TANGENT}{asked.problem.outputs[0].name}"
    return f"{GRADIENT}{asked.name}"


@lru_cache(256)
def _differentiating(solved: Bucket, backward: bool, directions: int) -> Bucket:
    task: Literal["adjoint", "tangent"] = "adjoint" if backward else "tangent"
    return Bucket(
        *(solved.problem, solved.version, solved.scheme, solved.grid, "float64"),
        task=task,
        directions=directions,
    )


def _repeated(inputs: Inputs, times: int) -> Inputs:
    """The same fields, each so many times."""
    if times == 1:
        return inputs
    fields = {name: values.repeat(times, axis=0) for name, values in inputs.fields.items()}
    return inputs._replace(fields=fields, rows=inputs.rows * times)


def _row_for_each(asked: _Asked, chosen: Chosen) -> tuple[Batch, NDArray[np.int_]]:
    """A row for each direction of each field, near 1; and for its derivative a power of two as its factor.

    The derivative of ``u(a, f) = (f / a) u(1, 1)`` by a is proportional to f and inversely so to a^2.
    """
    problem, inputs, directions = asked.problem, asked.inputs, asked.directions.values
    of_directions = near_one(directions)
    of_fields = {spec.name: near_one(inputs.fields[spec.name]) for spec in problem.inputs}
    of_parameters = {
        spec.name: near_one(inputs.fields[spec.name][:, None, None]) for spec in problem.parameters
    }
    near = {name: over(inputs.fields[name], found) for name, found in (of_fields | of_parameters).items()}
    factor = np.sum([*of_parameters.values(), *(-2 * found for found in of_fields.values())], axis=0)
    # where the largest entry is near 1, the least may vanish
    fits = inputs.fits_float32 and not factor.any()
    many = _repeated(inputs._replace(fields=near, fits_float32=fits), asked.directions.number)
    batch = batch_of(problem, many, chosen.queue, chosen.bucket)
    flat = over(directions, of_directions).reshape(many.rows, *many.grid)
    placed_directions = placed({_argument(asked): flat}, chosen.queue, chosen.bucket.dtype)
    return Batch(chosen.bucket, {**batch.fields, **placed_directions}), of_directions + factor[:, None]


def _leaving(asked: _Asked, name: str, found: _Found) -> tuple[NDArray[Any], NDArray[np.float64] | None]:
    """The numbers that leave with the caller's axes, and what is wrong with them, their rounding included."""
    values, errors = _rounded(asked, name, found)
    single = asked.inputs.single
    # whoever writes them would else copy them
    values = np.ascontiguousarray(asked.directions.as_given(values, single=single))
    return values, None if errors is None else asked.directions.as_given(errors, single=single)


def _rounded(asked: _Asked, name: str, found: _Found) -> tuple[NDArray[Any], NDArray[np.float64] | None]:
    """The numbers that leave [batch direction y x], and their errors [batch direction]."""
    backward = isinstance(asked.request, VjpRequest)
    coefficient = asked.inputs.fields[asked.name].astype(np.float64)[:, None]
    exact = found.values * coefficient if backward and asked.logarithmic else found.values
    what = f"gradient of {asked.name}" if backward else f"tangent of {name}"
    if found.errors is None:
        require_carried(what, exact, asked.request.dtype)
    # what is guaranteed of a tangent is the energy of its error, which rounding would be a part of
    dtype = asked.request.dtype if backward or found.errors is None else "float64"
    (values,) = leaving({what: exact}, dtype, copy=True).values()
    if found.errors is None or not backward:
        return values, found.errors
    # in the logarithm of the input, a gradient is its coefficient times what leaves
    weight = 1.0 if asked.logarithmic else coefficient
    lost = np.abs(exact - values) * weight + ROUNDING * np.abs(exact * weight)
    return values, found.errors + lost.sum(axis=(-2, -1))
