"""The story of a request: validate, choose how to solve, batch, compute, bound, answer.

Protocols bring a :class:`SolveRequest` and carry a :class:`SolveResponse` away. The numbers of a request are
copied once, into memory that the workers read; a small request is looked through where it is, a large one off
the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self, final

import numpy as np
from numpy.typing import NDArray

from problems import EVOLUTION_PROBLEMS, STEADY_PROBLEMS, FieldSpec, SteadyProblem
from service.batching.batcher import Batcher
from service.deadline import Deadline
from service.errors import InvalidSettings, ServiceFault
from service.gradient import Derivative, Differentiator, JvpRequest, VjpRequest
from service.lookup import find_steady
from service.passage import SMALL, batch_of, leaving, size_of
from service.quantities import QuantitiesRequest, QuantitiesResponse, Reader
from service.refine import Refiner, wants_refinement
from service.request import ErrorKind, Method, SolveRequest, SolveResponse
from service.rollout import Progress, Roller, Rollout, RolloutRequest
from service.rollout_derivative import RolloutDifferentiator
from service.rollout_question import RolloutJvpRequest, RolloutVjpRequest
from service.route import Chosen, Router
from service.settings import Limits
from service.shadow import Comparisons, NoComparisons, Shadows
from service.telemetry.timing import Timing
from service.tolerance import check_tolerance, met_in_time
from service.trust import NOTHING_KNOWN, Judge, Trust, novelty_of, too_much_contrast
from service.validate import Inputs, validate_inputs
from service.versions.models import Models

__all__ = [
    "ErrorKind",
    "Method",
    "Queues",
    "SolveRequest",
    "SolveResponse",
    "Solver",
    "Timing",
]

# cells along a side, to warm up what has no grids of its own
WARM_UP_SIDE: Final = 64
WAY_OUT: Final = "allow more time or send fewer fields"


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
    """What is told of shadows and rollouts; ``service.telemetry.metrics`` counts it."""

    def rollouts(self, problem: str) -> Progress:
        """Who is told of a problem's rollouts."""

    def certified(self, problem: str, method: str, fields: int) -> None:
        """So many fields were solved within their tolerances."""


@final
class Solver:
    """Answers requests with the served surrogates and the reference solvers."""

    def __init__(
        self, models: Models, queues: Queues, limits: Limits, observer: Observer | None = None
    ) -> None:
        self._models = models
        self._queues = queues
        self._limits = limits
        self._router = Router(models, queues.references)
        self._judge = Judge(queues.bounds, queues.references)
        self._refiner = Refiner(self._router, self._judge, queues.references)
        self._observer = observer
        self._shadows = Shadows(observer or NoComparisons())
        self._differentiator = Differentiator(self._router, self._judge, limits, queues.references)
        self._reader = Reader(self._router, limits, queues.references)
        progress = None if observer is None else observer.rollouts
        self._roller = Roller(models, queues.marches, limits, self._shadows, progress)
        # the frames of these rollouts go to nobody, and are not counted
        unwatched = Roller(models, queues.marches, limits, self._shadows)
        self._rollout_differentiator = RolloutDifferentiator(unwatched, limits)

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
        for name in STEADY_PROBLEMS:
            await self._try_out(name, (side, side), {"method": "solver", "tolerance": 1e-6})
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

    async def roll_out(self, request: RolloutRequest) -> Rollout:
        """The frames that follow from a state; see :meth:`Roller.start`."""
        return await self._roller.start(request)

    async def differentiate(
        self, request: VjpRequest | JvpRequest | RolloutVjpRequest | RolloutJvpRequest
    ) -> Derivative:
        """The gradient of solution times cotangents, or a tangent of it; see :class:`Differentiator`.

        Of frames of a rollout, see :class:`RolloutDifferentiator`.
        """
        if isinstance(request, RolloutVjpRequest | RolloutJvpRequest):
            return await self._rollout_differentiator.differentiate(request)
        return await self._differentiator.differentiate(request)

    async def read(self, request: QuantitiesRequest) -> QuantitiesResponse:
        """Numbers that are read off solutions; see :class:`Reader`."""
        return await self._reader.read(request)

    async def solve(self, request: SolveRequest) -> SolveResponse:
        """The solutions of a request.

        Raises:
            ServiceFault: one of its kinds, when there is no solution to give.
        """
        check_tolerance(request.tolerance)
        problem = find_steady(request.problem)
        if request.ticket.deadline is None:
            return await self._solve(problem, request)
        with met_in_time(request.tolerance):
            async with Deadline(request.ticket.deadline, request.received, WAY_OUT).kept():
                return await self._solve(problem, request)

    async def _solve(self, problem: SteadyProblem, request: SolveRequest) -> SolveResponse:
        # not ``off_loop``: on the way of most requests even that is felt
        small = size_of(request.given) <= SMALL
        if small:
            inputs = validate_inputs(problem, request.given, self._limits)
        else:
            inputs = await asyncio.to_thread(validate_inputs, problem, request.given, self._limits)
        if wants_refinement(request):
            return self._counted(problem, await self._refiner.solve(problem, request, inputs))
        chosen = self._choose(problem, request, inputs)
        self._require_room(request, chosen, inputs)
        if small:
            batch = batch_of(problem, inputs, chosen.queue, chosen.bucket)
        else:
            batch = await asyncio.to_thread(batch_of, problem, inputs, chosen.queue, chosen.bucket)
        # nobody came in between, or it has to be asked again whether there is room
        outcome = await chosen.queue.submit(batch, request.ticket, admitted=small)
        for row, why in outcome.solutions.unsolved.items():
            raise too_much_contrast(problem, inputs, row, why)
        solved = outcome.solutions.fields
        # its own memory: who reads slowly would else hold the answers of the whole batch
        copy = outcome.batch_size > inputs.rows
        if small:
            answers = leaving(solved, request.dtype, copy=copy)
        else:
            answers = await asyncio.to_thread(leaving, solved, request.dtype, copy=copy)
        trust = NOTHING_KNOWN
        if request.error != "none":
            judged = await self._judge.judge(problem, request, chosen, inputs, answers)
            scores = outcome.solutions.novelty
            novelty = novelty_of(chosen, inputs, judged.variations, judged.errors, scores)
            trust = Trust(judged.errors, novelty, judged.seconds)
        if chosen.served is not None:
            self._shadows.follow(chosen.served, batch, solved)
        total = time.perf_counter() - request.received
        version = chosen.bucket.version
        return SolveResponse(
            fields={name: values[0] for name, values in answers.items()} if inputs.single else answers,
            single=inputs.single,
            model=None if version is None else str(version),
            method="solver" if version is None else "surrogate",
            operator=chosen.bucket.scheme,
            errors=trust.errors,
            novelty=trust.novelty,
            iterations=outcome.solutions.iterations,
            timing=Timing.of_seconds(outcome.queue, outcome.compute, trust.seconds, total),
            batch_size=outcome.batch_size,
        )

    def _choose(self, problem: SteadyProblem, request: SolveRequest, inputs: Inputs) -> Chosen:
        # without a tolerance, whoever leaves it to the service asks for what it was trained for
        if request.method == "solver":
            return self._router.reference(problem, request.model, request.key, inputs.grid)
        return self._router.surrogate(problem, request.model, request.key, inputs.grid, request.ticket)

    def _require_room(self, request: SolveRequest, chosen: Chosen, inputs: Inputs) -> None:
        """Refuse what the queues would, before anything is copied."""
        chosen.queue.require_room(chosen.bucket, inputs.rows, inputs.nbytes, request.ticket)
        if request.error != "none":
            self._judge.require_room(request, chosen, inputs)

    def _counted(self, problem: SteadyProblem, response: SolveResponse) -> SolveResponse:
        if self._observer is not None and response.certified:
            self._observer.certified(problem.name, response.method, len(response.iterations))
        return response


def _plain(specs: Iterable[FieldSpec], grid: tuple[int, int]) -> dict[str, NDArray[np.float64]]:
    """Constant fields on ``grid``: 1 where a field has to be positive, else 0."""
    return {spec.name: np.full(grid, 1.0 if spec.exclusive_minimum == 0 else 0.0) for spec in specs}
