"""HTTP at the rim: the routes. ``wire.py`` knows what a request looks like, ``faults.py`` what is refused.

Small binary requests take another way to the same answers: see ``hot.py``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Literal, TypeVar, final

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from problems import PROBLEMS, EvolutionProblem, FieldSpec, Problem
from service.access.gate import Guard, Passage, principal_of, visit_of
from service.codec import encode_npy
from service.deadline import Deadline
from service.errors import InvalidField, NotAvailableYet, Overloaded, ServiceFault
from service.http import derivative_wire, pages, quantities_wire, rollout_wire, schemas, wire
from service.http.body import read_body, unless_client_leaves
from service.http.faults import (
    RequestScope,
    answer_fault,
    answer_http_exception,
    answer_nobody,
    answer_not_ready,
)
from service.http.frame_stream import FrameStream
from service.http.hot import HotRoutes
from service.http.in_flight import Admission, Budget, Share
from service.http.picture import Pictures, Subject
from service.http.written import SMALL_ANSWER, SMALL_BODY, computed, packed, written_json
from service.lookup import find_evolution, find_problem, find_steady
from service.oip import routes as oip_routes
from service.oip.inference import Inference
from service.oip.statistics import Statistics
from service.options import Asker
from service.settings import Limits
from service.solver import Solver, SolveRequest, SolveResponse
from service.telemetry.metrics import merge_pages
from service.validate import AT_REST
from service.versions.models import Models
from service.versions.repository import Repository

__all__ = ["create_app"]

Handler = TypeVar("Handler", bound=Callable[..., Any])


def create_app(
    solver: Solver,
    models: Models,
    repository: Repository,
    limits: Limits,
    *,
    guard: Guard | None = None,
    draining: Callable[[], bool] = lambda: False,
    statistics: Statistics | None = None,
    pictures: Pictures | None = None,
) -> FastAPI:
    """The ASGI application; give it to a server as it is, so that ``AbortableProtocol`` finds ``state.hot``.

    Args:
        solver: answers requests; whoever owns it starts and closes it.
        models: what is served.
        repository: what the stores have, and who is asked to load and unload.
        limits: what one request may ask for.
        guard: who may ask, and what is noted; default: everybody, nothing.
        draining: the process is about to stop: not ready, still answering.
        statistics: what is counted for the Open Inference Protocol; shared with other protocols.
        pictures: who draws; default: a process that the first picture starts.
    """
    guard = guard or Guard()
    budget = Budget(limits.inflight_bytes)
    inference = Inference(solver, models, limits, statistics or Statistics())
    # the stock documentation page loads its scripts from another host, so there is one of our own
    app = FastAPI(
        title="mno",
        version=pages.VERSION,
        docs_url=None,
        redoc_url=None,
        responses=schemas.PROBLEM_ANSWER,
        # to where the client's ``Host`` says, and over http behind a proxy that speaks https
        redirect_slashes=False,
    )
    app.state.hot = HotRoutes(solver, inference, limits, guard, budget)
    app.add_middleware(Admission, budget=budget)
    app.add_middleware(Passage, guard=guard, routes=app.routes)
    app.add_middleware(RequestScope)
    app.add_exception_handler(ServiceFault, _answer_and_count(guard))
    app.add_exception_handler(HTTPException, answer_http_exception)
    app.add_exception_handler(ClientDisconnect, answer_nobody)
    desk = _Desk(solver, limits, pictures or Pictures())
    _add_solving(app, desk)
    _add_rollouts(app, desk)
    _add_catalog(app, models, repository, limits)
    _add_health(app, guard, repository, draining)
    oip_routes.add_open_inference(app, inference, repository, limits, guard, draining)
    return app


def _answer_and_count(guard: Guard) -> Callable[[Request, Exception], Response]:
    def answer(request: Request, fault: Exception) -> Response:
        guard.refused(fault)
        return answer_fault(request, fault)

    return answer


@final
class _Desk:
    """Reads requests to solve and writes their answers, in a thread where that takes long."""

    def __init__(self, solver: Solver, limits: Limits, pictures: Pictures) -> None:
        self.solver = solver
        self.limits = limits
        self._pictures = pictures

    async def solve(self, problem: str, request: Request) -> Response:
        received = time.perf_counter()
        form = wire.choose_form(request.headers)
        found = find_steady(problem)
        body = await read_body(request, self.limits)
        given = (found, request.headers, request.url.query, body, self.limits, asker_of(request, received))
        wanted = await computed(len(body) > SMALL_BODY, wire.read_request, *given)
        if form == wire.PNG:
            response, picture = await unless_client_leaves(request, self._draw(found, wanted))
            visit_of(request.scope).note(response.timing, response.model, response.batch_size)
            return Response(picture, headers=wire.answer_headers(response, form), media_type=form)
        response = await unless_client_leaves(request, self.solver.solve(wanted))
        visit_of(request.scope).note(response.timing, response.model, response.batch_size)
        if form == wire.NPY:
            # a problem with several output fields would need a container; none has
            ((_, values),) = response.fields.items()
            headers = wire.answer_headers(response, form)
            return Response(encode_npy(values), headers=headers, media_type=form)
        named, written = await written_json(response, gzip=wire.accepts_gzip(request.headers))
        return Response(written, headers=named, media_type=wire.JSON)

    async def _draw(self, problem: Problem, wanted: SolveRequest) -> tuple[SolveResponse, bytes]:
        """A solution and its picture, both before the request's deadline."""
        for spec in problem.inputs:
            if np.ndim(wanted.given.get(spec.name, 0)) > 2:
                raise InvalidField(spec.name, "rank", f"{spec.name}: a picture shows one field; ask for each")
        deadline = Deadline(wanted.ticket.deadline, wanted.received, "allow more time or ask for the numbers")
        with self._pictures.place():
            async with deadline.kept():
                response = await self.solver.solve(wanted)
                return response, await self._pictures.draw(_subject(problem, response))

    async def differentiate(
        self,
        found: Problem,
        request: Request,
        read: derivative_wire.Reads,
        key: Literal["gradient", "tangent"],
    ) -> Response:
        received = time.perf_counter()
        form = wire.choose_form(request.headers)
        if form == wire.PNG:
            raise NotAvailableYet(f"a {key} has no picture; accept {wire.JSON} or {wire.NPY}")
        body = await read_body(request, self.limits)
        given = (found, request.headers, request.url.query, body, self.limits, asker_of(request, received))
        wanted = await computed(len(body) > SMALL_BODY, read, *given)
        response = await unless_client_leaves(request, self.solver.differentiate(wanted))
        visit_of(request.scope).note(response.timing, response.model, response.batch_size)
        headers = derivative_wire.derivative_headers(response, form)
        long = response.values.size > SMALL_ANSWER
        if form == wire.NPY:
            body = await computed(long, encode_npy, response.values)
            return Response(body, headers=headers, media_type=form)
        body = await computed(long, derivative_wire.json_derivative, response, key)
        named, written = await packed(body, headers, gzip=wire.accepts_gzip(request.headers))
        return Response(written, headers=named, media_type=wire.JSON)

    async def read(self, problem: str, request: Request) -> Response:
        received = time.perf_counter()
        found = find_steady(problem)
        body = await read_body(request, self.limits)
        given = (found, request.headers, request.url.query, body, self.limits, asker_of(request, received))
        wanted = await computed(len(body) > SMALL_BODY, quantities_wire.read_quantities, *given)
        response = await unless_client_leaves(request, self.solver.read(wanted))
        visit_of(request.scope).note(response.timing, response.model, response.batch_size)
        return Response(
            quantities_wire.json_quantities(response),
            headers=quantities_wire.quantities_headers(response),
            media_type=wire.JSON,
        )


def asker_of(request: Request, received: float) -> Asker:
    """Who asks, and since when."""
    return Asker(principal_of(request.scope).client, request.headers.get("mno-key", ""), received)


def _subject(problem: Problem, response: SolveResponse) -> Subject:
    spec = problem.outputs[0]
    said = [response.model or response.operator]
    if response.errors and response.single:
        error = response.errors[0]
        said.append(
            f"error ≤ {100 * error.upper:.2g} % ({error.norm}), ≈ {100 * error.l2_estimate:.2g} % (L2)"
        )
    return Subject(response.fields[spec.name], spec.name, spec.unit, " · ".join(said))


def _add_solving(app: FastAPI, desk: _Desk) -> None:
    @app.post("/v1/problems/{problem}/solve", openapi_extra=pages.SOLVE_BODY, response_class=Response)
    async def solve(problem: str, request: Request) -> Response:
        """Solutions of one field or a batch of fields, each with its error bound."""
        return await desk.solve(problem, request)

    @app.post("/v1/problems/{problem}/vjp", openapi_extra=pages.VJP_BODY, response_class=Response)
    async def vjp(problem: str, request: Request) -> Response:
        """The gradient of ``sum(cotangent * solution)`` with respect to the input field.

        Of a problem that evolves, of ``sum(cotangent * frame)`` with respect to the state.
        """
        found = find_problem(problem)
        return await desk.differentiate(found, request, derivative_wire.read_vjp, "gradient")

    @app.post("/v1/problems/{problem}/jvp", openapi_extra=pages.JVP_BODY, response_class=Response)
    async def jvp(problem: str, request: Request) -> Response:
        """What a small change of the input field changes in the solution, per change.

        Of a problem that evolves, what one of the state changes in the frames that follow.
        """
        found = find_problem(problem)
        return await desk.differentiate(found, request, derivative_wire.read_jvp, "tangent")

    @app.post(
        "/v1/problems/{problem}/quantities", openapi_extra=pages.QUANTITIES_BODY, response_class=Response
    )
    async def quantities(problem: str, request: Request) -> Response:
        """Numbers that are read off the discrete solution, each with a guaranteed half-width."""
        return await desk.read(problem, request)


def _add_rollouts(app: FastAPI, desk: _Desk) -> None:
    limits = desk.limits

    @app.post("/v1/problems/{problem}/rollout", openapi_extra=pages.ROLLOUT_BODY, response_class=Response)
    async def rollout(problem: str, request: Request) -> Response:
        """The frames that follow from a state, each sent as soon as it is computed."""
        received = time.perf_counter()
        form = rollout_wire.choose_stream_form(request.headers)
        state = find_evolution(problem)
        body = await read_body(request, limits)
        given = (state, request.headers, request.url.query, body, limits, asker_of(request, received))
        wanted = await computed(len(body) > SMALL_BODY, rollout_wire.read_rollout, *given)
        found = await unless_client_leaves(request, desk.solver.roll_out(wanted))
        share: Share = request.state.share
        try:
            share.take(found.nbytes)
        except Overloaded:
            await found.close()
            raise
        return FrameStream(found, form, limits.stall_seconds)


def _add_catalog(app: FastAPI, models: Models, repository: Repository, limits: Limits) -> None:
    @app.get("/v1/problems")
    async def problems() -> dict[str, Any]:
        """All problems."""
        return {"problems": [_describe(problem, models, limits) for problem in PROBLEMS.values()]}

    @app.get("/v1/problems/{problem}")
    async def one_problem(problem: str) -> dict[str, Any]:
        """Fields, units, bounds, grids, boundary conditions, equation and models of a problem."""
        return _describe(find_problem(problem), models, limits)

    @app.get("/v1/models")
    async def all_models() -> dict[str, Any]:
        """Models in the stores, their versions and aliases, and which are loaded."""
        return {"models": [entry.summary() for entry in await repository.index()]}

    @app.get("/v1/models/{name}")
    async def one_model(name: str) -> dict[str, Any]:
        """A model with the cards of its versions."""
        return await repository.describe(name)


def _add_health(app: FastAPI, guard: Guard, repository: Repository, draining: Callable[[], bool]) -> None:
    @_page(app, "/healthz/live")
    async def live() -> dict[str, str]:
        """The process answers."""
        return {"status": "live"}

    @_page(app, "/healthz/ready", response_model=None)
    async def ready(request: Request) -> dict[str, Any] | Response:
        """The models are loaded and warm, and the process is not about to stop."""
        if draining():
            return answer_not_ready(request.scope, "the service is stopping; ask another one")
        known = await repository.readiness()
        if not known.ready:
            reasons = "; ".join(known.problems) or "the service is starting or stopping"
            return answer_not_ready(request.scope, reasons)
        return {"status": "ready", "problems": list(known.problems)}

    @app.get("/metrics", response_class=Response, openapi_extra=schemas.METRICS)
    async def metrics(request: Request) -> Response:
        """Everything that is counted, for Prometheus."""
        accept = request.headers.get("accept", "")
        others = await repository.pages(accept)
        # some milliseconds, in which others want to be answered
        own, media_type = await asyncio.to_thread(guard.metrics.render, accept)
        page = await asyncio.to_thread(merge_pages, [own, *others])
        return Response(page, headers={"Content-Type": media_type})

    @_page(app, "/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        return HTMLResponse(pages.docs(app.openapi(), str(request.base_url).rstrip("/")))

    @_page(app, "/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("/docs")


def _page(app: FastAPI, path: str, **options: Any) -> Callable[[Handler], Handler]:
    """A route for GET, and for the HEAD of balancers and others who only look whether somebody answers."""

    def add(handler: Handler) -> Handler:
        app.get(path, **options)(handler)
        app.head(path, **{**options, "include_in_schema": False})(handler)
        return handler

    return add


def _describe(problem: Problem, models: Models, limits: Limits) -> dict[str, Any]:
    def fields(specs: tuple[FieldSpec, ...]) -> list[dict[str, Any]]:
        return [vars(spec) for spec in specs]

    return {
        "name": problem.name,
        "title": problem.title,
        "equation": problem.equation,
        "boundary_conditions": problem.boundary_conditions,
        "inputs": fields(problem.inputs),
        "parameters": fields(problem.parameters),
        "outputs": fields(problem.outputs),
        "schemes": problem.schemes,
        "axes": ["y", "x"],
        "grids": {
            "surrogate": models.grids(problem.name),
            "solver": f"up to {limits.grid_side} cells a side",
        },
        "models": models.of_problem(problem.name),
        "operations": ["rollout", "vjp", "jvp"]
        if isinstance(problem, EvolutionProblem)
        else ["solve", "vjp", "jvp", "quantities"],
        **(_describe_evolution(problem, limits) if isinstance(problem, EvolutionProblem) else {}),
    }


def _describe_evolution(problem: EvolutionProblem, limits: Limits) -> dict[str, Any]:
    return {
        "optional_inputs": [spec.name for spec in problem.inputs if spec.name in AT_REST],
        "walls": problem.walls,
        "frame_interval": problem.frame_interval,
        "domain": {"origin": problem.grid.origin, "extent": problem.grid.extent, "unit": "m"},
        "steps": f"up to {limits.rollout_steps} a request",
    }
