"""HTTP at the rim: the routes. ``wire.py`` knows what a request looks like, ``faults.py`` what is refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from problems import PROBLEMS, EvolutionProblem, FieldSpec, Problem
from service import pages, rollout_wire, wire
from service.codec import gunzip
from service.errors import NotAvailableYet, Overloaded, ServiceFault, TooLarge
from service.faults import RequestScope, answer_fault, answer_http_exception, answer_nobody, answer_not_ready
from service.frame_stream import FrameStream
from service.in_flight import Admission, Share
from service.lookup import find_evolution, find_problem, find_steady
from service.models import Models
from service.settings import Limits
from service.solver import Solver
from service.validate import AT_REST

__all__ = ["create_app"]

Answer = TypeVar("Answer")


def create_app(
    solver: Solver,
    models: Models,
    limits: Limits,
    draining: Callable[[], bool] = lambda: False,
) -> FastAPI:
    """The ASGI application.

    Args:
        solver: answers requests; whoever owns it starts and closes it.
        models: what the catalog endpoints describe.
        limits: what one request may ask for.
        draining: the process is about to stop: not ready, still answering.
    """
    # the stock documentation page loads its scripts from another host, so there is one of our own
    app = FastAPI(title="mno", version=pages.VERSION, docs_url=None, redoc_url=None)
    app.add_middleware(Admission, limit=limits.inflight_bytes)
    app.add_middleware(RequestScope)
    app.add_exception_handler(ServiceFault, answer_fault)
    app.add_exception_handler(HTTPException, answer_http_exception)
    app.add_exception_handler(ClientDisconnect, answer_nobody)
    _add_solving(app, solver, limits)
    _add_rollouts(app, solver, limits)
    _add_operations_to_come(app)
    _add_catalog(app, models, limits)
    _add_health(app, draining)
    return app


def _add_solving(app: FastAPI, solver: Solver, limits: Limits) -> None:
    @app.post("/v1/problems/{problem}/solve", openapi_extra=pages.SOLVE_BODY, response_class=Response)
    async def solve(problem: str, request: Request) -> Response:
        """Solutions of one field or a batch of fields, each with its error bound."""
        received = time.perf_counter()
        form = wire.choose_form(request.headers)
        body = await _read_body(request, limits)
        headers, query = request.headers, request.query_params
        wanted = await asyncio.to_thread(
            wire.read_request, find_steady(problem), headers, query, body, limits, received
        )
        response = await _unless_client_leaves(request, solver.solve(wanted))
        return await asyncio.to_thread(wire.write_response, response, form)


def _add_rollouts(app: FastAPI, solver: Solver, limits: Limits) -> None:
    @app.post("/v1/problems/{problem}/rollout", openapi_extra=pages.ROLLOUT_BODY, response_class=Response)
    async def rollout(problem: str, request: Request) -> Response:
        """The frames that follow from a state, each sent as soon as it is computed."""
        received = time.perf_counter()
        form = rollout_wire.choose_stream_form(request.headers)
        body = await _read_body(request, limits)
        headers, query = request.headers, request.query_params
        wanted = await asyncio.to_thread(
            rollout_wire.read_rollout, find_evolution(problem), headers, query, body, limits, received
        )
        found = await _unless_client_leaves(request, solver.roll_out(wanted))
        share: Share = request.state.share
        try:
            share.take(found.nbytes)
        except Overloaded:
            await found.close()
            raise
        return FrameStream(found, form, limits.stall_seconds)


def _add_operations_to_come(app: FastAPI) -> None:
    @app.post("/v1/problems/{problem}/{operation}", response_model=None)
    async def operate(problem: str, operation: str) -> NoReturn:
        """``vjp`` and ``jvp`` come with a later release."""
        find_problem(problem)
        if operation not in pages.LATER:
            raise HTTPException(404)
        raise NotAvailableYet(f"{operation} comes with a later release; this one has solve and rollout")


def _add_catalog(app: FastAPI, models: Models, limits: Limits) -> None:
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
        return {"models": await asyncio.to_thread(models.catalog)}

    @app.get("/v1/models/{name}")
    async def one_model(name: str) -> dict[str, Any]:
        """A model with the cards of its versions."""
        return await asyncio.to_thread(models.describe, name)


def _add_health(app: FastAPI, draining: Callable[[], bool]) -> None:
    @app.get("/healthz/live")
    async def live() -> dict[str, str]:
        """The process answers."""
        return {"status": "live"}

    @app.get("/healthz/ready", response_model=None)
    async def ready(request: Request) -> dict[str, str] | Response:
        """The models are loaded and warm, and the process is not about to stop."""
        # nobody is answered before the warm-up, so that only stopping makes an answering service unready
        return answer_not_ready(request) if draining() else {"status": "ready"}

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        return HTMLResponse(pages.docs(app.openapi(), str(request.base_url).rstrip("/")))

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("/docs")


async def _read_body(request: Request, limits: Limits) -> bytes:
    """The body, uncompressed; what it takes in memory is held until the answer is written."""
    share: Share = request.state.share
    limit, weight = wire.body_limit(request.headers, limits), wire.body_weight(request.headers)
    body = await _stream_body(request, limit, share, weight)
    if not wire.is_gzip(request.headers):
        return body
    plain = await asyncio.to_thread(gunzip, body, limit)
    share.take(weight * (len(plain) - len(body)))
    return plain


async def _stream_body(request: Request, limit: int, share: Share, weight: int) -> bytes:
    """The body as it came, refused as soon as it is known to exceed ``limit`` bytes."""
    declared = request.headers.get("content-length", "0")
    body = bytearray()
    if not declared.isdecimal() or int(declared) <= limit:
        async for chunk in request.stream():
            share.take(weight * len(chunk))
            body += chunk
            if len(body) > limit:
                break
        else:
            return bytes(body)
    raise TooLarge(f"the body exceeds {limit} bytes; send fewer fields a request, or application/x-npy")


async def _unless_client_leaves(request: Request, answer: Coroutine[Any, Any, Answer]) -> Answer:
    """Await ``answer``; when the client hangs up, cancel it, so that nothing is computed for nobody."""
    work = asyncio.ensure_future(answer)
    # after the body, the only message left to come is the disconnect
    left = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        left.cancel()
        work.cancel()


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
        "operations": ["rollout"] if isinstance(problem, EvolutionProblem) else ["solve"],
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
