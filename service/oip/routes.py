"""The routes of the Open Inference Protocol, ``/v2``; ``inference.py`` knows what they mean."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, TypeVar, final

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from service.access.gate import Guard, principal_of, visit_of
from service.codec import decode_json
from service.errors import InvalidField, UnknownModel, UnsupportedMedia, WorkerLost
from service.http import pages, schemas
from service.http.body import read_body, unless_client_leaves
from service.http.faults import answer_not_ready
from service.http.wire import LENGTH_OF_JSON, NPY, media_type
from service.http.written import SMALL_BODY, computed
from service.oip.http import Asked, binary_request, written_answer
from service.oip.inference import EXTENSIONS, NAME, NO_SHARED_MEMORY, Inference
from service.options import Asker
from service.settings import Limits
from service.versions.repository import ModelEntry, Repository

__all__ = ["add_open_inference"]

# tritonclient compresses in either way
CODINGS: Final = ("gzip", "deflate")

Handler = TypeVar("Handler", bound=Callable[..., Any])


@final
class _Routes:
    """Routes below ``/v2``, whose errors have a form of their own."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._common: dict[str, Any] = {"responses": schemas.OIP_ERROR, "tags": ["Open Inference Protocol"]}

    def get(self, path: str, **options: Any) -> Callable[[Handler], Handler]:
        return self._app.get(f"/v2{path}", **self._common, **options)

    def post(self, path: str, **options: Any) -> Callable[[Handler], Handler]:
        return self._app.post(f"/v2{path}", **self._common, **options)


def add_open_inference(
    app: FastAPI,
    inference: Inference,
    repository: Repository,
    limits: Limits,
    guard: Guard,
    draining: Callable[[], bool],
) -> None:
    """Serve ``/v2``."""
    router = _Routes(app)
    _add_health(router, inference, repository, draining)
    # a model may be called as the others' paths are: what is fixed goes first
    _add_statistics(router, inference)
    _add_models(router, inference)
    _add_inference(router, inference, limits)
    _add_repository(router, repository, guard, limits)
    _add_what_others_have(router)


def _add_health(
    router: _Routes, inference: Inference, repository: Repository, draining: Callable[[], bool]
) -> None:
    @router.get("")
    async def server() -> dict[str, Any]:
        """What this server is."""
        return {"name": NAME, "version": pages.VERSION, "extensions": list(EXTENSIONS)}

    @router.get("/health/live")
    async def live() -> dict[str, bool]:
        """The process answers."""
        return {"live": True}

    @router.get("/health/ready", response_model=None)
    async def ready(request: Request) -> dict[str, bool] | Response:
        """Models are loaded, and the process is not about to stop."""
        known = await repository.readiness()
        if draining() or not known.ready:
            return answer_not_ready(request.scope, "; ".join(known.problems) or "the service is stopping")
        return {"ready": True}

    def answers(model: str, version: str) -> dict[str, Any]:
        found = inference.find(model, version)
        if not inference.is_ready(model, version):
            raise WorkerLost(f"the worker of {found} is being started; ask again")
        return {"name": found.name, "version": str(found.version), "ready": True}

    @router.get("/models/{model}/ready")
    async def model_ready(model: str) -> dict[str, Any]:
        """The model answers; 404 where it does not."""
        return answers(model, "")

    @router.get("/models/{model}/versions/{version}/ready")
    async def version_ready(model: str, version: str) -> dict[str, Any]:
        """This version of the model answers; 404 where it does not."""
        return answers(model, version)


def _add_statistics(router: _Routes, inference: Inference) -> None:
    @router.get("/models/stats")
    async def all_statistics() -> dict[str, Any]:
        """How often each version answered, and how long it took, since this process started."""
        return {"model_stats": inference.statistics()}

    @router.get("/models/{model}/stats")
    async def model_statistics(model: str) -> dict[str, Any]:
        """The same of one model."""
        return {"model_stats": inference.statistics(model)}

    @router.get("/models/{model}/versions/{version}/stats")
    async def version_statistics(model: str, version: str) -> dict[str, Any]:
        """The same of one version."""
        return {"model_stats": inference.statistics(model, version)}


def _add_models(router: _Routes, inference: Inference) -> None:
    @router.get("/models/{model}")
    async def model_metadata(model: str) -> dict[str, Any]:
        """Names, datatypes and shapes of a model's tensors."""
        return inference.metadata(model).document()

    @router.get("/models/{model}/versions/{version}")
    async def version_metadata(model: str, version: str) -> dict[str, Any]:
        """Names, datatypes and shapes of a version's tensors."""
        return inference.metadata(model, version).document()

    @router.get("/models/{model}/config")
    async def model_config(model: str) -> dict[str, Any]:
        """The model's configuration, as Triton writes it."""
        return inference.config(model)

    @router.get("/models/{model}/versions/{version}/config")
    async def version_config(model: str, version: str) -> dict[str, Any]:
        """The version's configuration, as Triton writes it."""
        return inference.config(model, version)


def _add_inference(router: _Routes, inference: Inference, limits: Limits) -> None:
    most_lists = limits.batch * (limits.grid_side + 1) + schemas.LISTS_OF_A_REQUEST

    async def answer(request: Request, model: str, version: str) -> Response:
        received = time.perf_counter()
        inference.find(model, version)
        if media_type(request.headers) == NPY:
            raise UnsupportedMedia(f"expected JSON, and the bytes of tensors after it, got {NPY}")
        body = await read_body(request, limits, CODINGS)
        asker = Asker(principal_of(request.scope).client, request.headers.get("mno-key", ""), received)
        length = request.headers.get(LENGTH_OF_JSON)
        given = (model, version, body, length, asker, most_lists)
        asked: Asked = await computed(len(body) > SMALL_BODY, binary_request, *given)
        response = await unless_client_leaves(request, inference.infer(asked.request))
        answered_by = f"{response.model}@{response.version}"
        visit_of(request.scope).note(response.timing, answered_by, response.batch_size)
        headers, parts = await written_answer(response, asked)
        return Response(b"".join(parts), headers=headers)

    @router.post("/models/{model}/infer", openapi_extra=schemas.INFER_BODY, response_class=Response)
    async def infer(request: Request, model: str) -> Response:
        """The answer of a model: a solution, or the block of frames that follow from a state."""
        return await answer(request, model, "")

    @router.post(
        "/models/{model}/versions/{version}/infer", openapi_extra=schemas.INFER_BODY, response_class=Response
    )
    async def infer_version(request: Request, model: str, version: str) -> Response:
        """The answer of one version."""
        return await answer(request, model, version)


def _add_repository(router: _Routes, repository: Repository, guard: Guard, limits: Limits) -> None:
    @router.post("/repository/index", openapi_extra=schemas.INDEX_BODY)
    async def index(request: Request) -> list[dict[str, str]]:
        """All versions in the stores, and whether they are served."""
        options = await _read_options(request, limits, {"ready"})
        if not isinstance(options.get("ready", False), bool):
            raise InvalidField("ready", "type", "ready: expected true or false")
        entries = [state for entry in await repository.index() for state in _states(entry)]
        return [state for state in entries if not options.get("ready") or state["state"] == "READY"]

    @router.post("/repository/models/{model}/load", openapi_extra=schemas.CONTROL_BODY)
    async def load(request: Request, model: str) -> JSONResponse:
        """Serve what a model's name and aliases mean now; answered when it is served."""
        await _refuse_overrides(request, limits)
        with guard.audit.noting("load", model, principal_of(request.scope).client):
            await repository.load(model)
        return JSONResponse({})

    @router.post("/repository/models/{model}/unload", openapi_extra=schemas.CONTROL_BODY)
    async def unload(request: Request, model: str) -> JSONResponse:
        """Serve a model no more; requests under way are answered."""
        await _refuse_overrides(request, limits)
        with guard.audit.noting("unload", model, principal_of(request.scope).client):
            await repository.unload(model)
        return JSONResponse({})


def _states(entry: ModelEntry) -> list[dict[str, str]]:
    if entry.error is not None:
        return [{"name": entry.name, "version": "", "state": "UNAVAILABLE", "reason": entry.error}]
    return [
        {"name": entry.name, "version": str(each.version), "state": each.state, "reason": each.reason}
        for each in entry.versions
    ]


async def _read_options(request: Request, limits: Limits, known: set[str]) -> dict[str, Any]:
    body = await read_body(request, limits, CODINGS)
    document = decode_json(body, schemas.LISTS_OF_A_REQUEST) if body.strip() else {}
    for name in document.keys() - known:
        raise InvalidField(name[:80], "unknown", f"{name[:80]!r} is not expected: {', '.join(sorted(known))}")
    return document


async def _refuse_overrides(request: Request, limits: Limits) -> None:
    """A model is what its store says it is."""
    parameters = (await _read_options(request, limits, {"parameters"})).get("parameters", {})
    if not isinstance(parameters, dict) or parameters.keys() - {"unload_dependents"}:
        message = (
            "parameters: versions never change; publish one, and load its name, instead of files or config"
        )
        raise InvalidField("parameters", "unknown", message)


def _add_what_others_have(router: _Routes) -> None:
    """What clients of Triton may look at: it is off, and stays as it is."""
    traces = {"trace_level": ["OFF"], "trace_rate": "0", "trace_count": "0", "log_frequency": "0"}

    @router.get("/trace/setting")
    async def all_traces() -> dict[str, Any]:
        """Triton's traces, which are off: see ``[tracing]`` of the settings."""
        return traces

    @router.get("/models/{model}/trace/setting")
    async def traces_of_a_model(model: str) -> dict[str, Any]:  # noqa: ARG001
        """The same of a model."""
        return traces

    @router.get("/logging")
    async def logging() -> dict[str, Any]:
        """Triton's log: see ``[logs]`` of the settings."""
        return {"log_file": "", "log_info": False, "log_warning": True, "log_error": True}

    for kind in ("systemsharedmemory", "cudasharedmemory"):
        _add_shared_memory(router, kind)


def _add_shared_memory(router: _Routes, kind: str) -> None:
    @router.get(f"/{kind}/status")
    async def regions() -> list[dict[str, Any]]:
        """Regions of memory that clients share: none."""
        return []

    @router.get(f"/{kind}/region/{{region}}/status")
    async def one_region(region: str) -> list[dict[str, Any]]:  # noqa: ARG001
        """The same of one region."""
        return []

    @router.post(f"/{kind}/region/{{region}}/register")
    async def register(region: str) -> dict[str, Any]:  # noqa: ARG001
        """Refused: a service that may be on another machine reads nobody's memory."""
        # 404: nothing is wrong with the request, there is nothing to register with
        raise UnknownModel(NO_SHARED_MEMORY)

    @router.post(f"/{kind}/unregister")
    async def unregister() -> dict[str, Any]:
        """Nothing is registered, and nothing is any more."""
        return {}

    @router.post(f"/{kind}/region/{{region}}/unregister")
    async def unregister_one(region: str) -> dict[str, Any]:  # noqa: ARG001
        """Nothing is registered, and nothing is any more."""
        return {}
