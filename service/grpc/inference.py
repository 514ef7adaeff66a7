"""The service `inference.GRPCInferenceService`: the Open Inference Protocol, version 2, as messages.

What the protocol means is in `service/oip/inference.py`; messages of inference are read and written in
`inference_wire.py`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any, Final, final

from google.protobuf.json_format import ParseDict

from service.access.audit import Audit
from service.errors import LONGEST_QUOTE, InvalidField, NotAvailableYet
from service.grpc.call import Call, Method
from service.grpc.health import Health
from service.grpc.inference_wire import (
    INFER_FORM,
    read_inference,
    streamed,
    write_failure,
    write_inference,
)
from service.grpc.parts import Parts
from service.grpc.pipelined import Item, Pipeline
from service.http.pages import VERSION
from service.oip.inference import (
    EXTENSIONS,
    NAME,
    NO_SHARED_MEMORY,
    Inference,
    InferRequest,
    InferResponse,
)
from service.oip.order import Order, Parameter
from service.oip.tensor import Tensor, tensor_of
from service.pb import inference_pb2 as pb
from service.pb.decode import decode
from service.pb.usual import Reader, Wanted
from service.rollout import Frame, Rollout
from service.versions.repository import ModelEntry, Repository

__all__ = ["SERVICE", "inference_methods"]

SERVICE: Final = "inference.GRPCInferenceService"
# a message that names a model is no longer, unless somebody plays with it [B]
NAMES: Final = 2**16

# what a request to step in time says beside the state: answered frame by frame, in a stream
STEPS, EVERY = "steps", "every"
WANTS_END: Final = "triton_enable_empty_final_response"
IS_END: Final = "triton_final_response"


def inference_methods(
    inference: Inference, repository: Repository, health: Health, audit: Audit
) -> list[Method]:
    """The calls of the service."""
    infer, facts = _Infer(inference), _Facts(inference, health)
    changes = _Changes(repository, audit)

    def free(name: str, handler: Any) -> Method:
        return Method(f"/{SERVICE}/{name}", handler, scope=None)

    def guarded(name: str, handler: Any, subject: Callable[[bytes], str]) -> Method:
        return Method(f"/{SERVICE}/{name}", handler, scope="admin", subject=subject)

    return [
        free("ServerLive", facts.server_live),
        free("ServerReady", facts.server_ready),
        free("ModelReady", facts.model_ready),
        free("ServerMetadata", facts.server_metadata),
        Method(f"/{SERVICE}/ModelMetadata", facts.model_metadata),
        Method(f"/{SERVICE}/ModelConfig", facts.model_config),
        Method(f"/{SERVICE}/ModelStatistics", facts.statistics),
        Method(f"/{SERVICE}/ModelInfer", infer.infer),
        Method(f"/{SERVICE}/ModelStreamInfer", infer.stream, kind="stream"),
        Method(f"/{SERVICE}/RepositoryIndex", changes.index),
        guarded("RepositoryModelLoad", changes.load, _model_of(pb.RepositoryModelLoadRequest)),
        guarded("RepositoryModelUnload", changes.unload, _model_of(pb.RepositoryModelUnloadRequest)),
        guarded("TraceSetting", facts.trace_setting, _model_of(pb.TraceSettingRequest)),
        Method(f"/{SERVICE}/LogSettings", facts.log_settings, scope="admin"),
        *_shared_memory("System"),
        *_shared_memory("Cuda"),
    ]


def _shared_memory(kind: str) -> list[Method]:
    """Of regions of memory that clients share there are none."""

    async def nothing(call: Call) -> None:
        # the answer that tells of none has no field
        await call.send([b""])

    async def register(_: Call) -> None:
        raise NotAvailableYet(NO_SHARED_MEMORY)

    handlers = {"Status": nothing, "Unregister": nothing, "Register": register}
    return [Method(f"/{SERVICE}/{kind}SharedMemory{name}", each) for name, each in handlers.items()]


def _model_of(kind: type[Any]) -> Callable[[bytes], str]:
    def name(message: bytes) -> str:
        return str(decode(kind, message).model_name) if len(message) <= NAMES else ""

    return name


@final
class _Facts:
    """What is said of the server and its models."""

    def __init__(self, inference: Inference, health: Health) -> None:
        self._inference = inference
        self._health = health

    async def server_live(self, call: Call) -> None:
        await _answer(call, pb.ServerLiveResponse(live=True))

    async def server_ready(self, call: Call) -> None:
        await _answer(call, pb.ServerReadyResponse(ready=self._health.serving))

    async def model_ready(self, call: Call) -> None:
        request = await _request(pb.ModelReadyRequest, call)
        ready = self._inference.is_ready(request.name, request.version)
        await _answer(call, pb.ModelReadyResponse(ready=ready and self._health.serving))

    async def server_metadata(self, call: Call) -> None:
        await _answer(call, pb.ServerMetadataResponse(name=NAME, version=VERSION, extensions=EXTENSIONS))

    async def model_metadata(self, call: Call) -> None:
        request = await _request(pb.ModelMetadataRequest, call)
        document = self._inference.metadata(request.name, request.version).document()
        await _answer(call, ParseDict(document, pb.ModelMetadataResponse()))

    async def model_config(self, call: Call) -> None:
        request = await _request(pb.ModelConfigRequest, call)
        document = {"config": self._inference.config(request.name, request.version)}
        await _answer(call, ParseDict(document, pb.ModelConfigResponse(), ignore_unknown_fields=True))

    async def statistics(self, call: Call) -> None:
        request = await _request(pb.ModelStatisticsRequest, call)
        document = {"model_stats": self._inference.statistics(request.name, request.version)}
        await _answer(call, ParseDict(document, pb.ModelStatisticsResponse(), ignore_unknown_fields=True))

    async def trace_setting(self, call: Call) -> None:
        request = await _request(pb.TraceSettingRequest, call)
        _refuse_settings(request.settings)
        await _answer(call, pb.TraceSettingResponse())

    async def log_settings(self, call: Call) -> None:
        request = await _request(pb.LogSettingsRequest, call)
        _refuse_settings(request.settings)
        await _answer(call, pb.LogSettingsResponse())


def _refuse_settings(settings: Mapping[str, Any]) -> None:
    if settings:
        raise NotAvailableYet(
            "settings of traces and logs come from the service's configuration; change it there"
        )


@final
class _Changes:
    """What is loaded, and loading more of it."""

    def __init__(self, repository: Repository, audit: Audit) -> None:
        self._repository = repository
        self._audit = audit

    async def index(self, call: Call) -> None:
        request = await _request(pb.RepositoryIndexRequest, call)
        answer = pb.RepositoryIndexResponse()
        for entry in await self._repository.index():
            for version, state, reason in _states(entry):
                if state == "READY" or not request.ready:
                    answer.models.add(name=entry.name, version=version, state=state, reason=reason)
        await _answer(call, answer)

    async def load(self, call: Call) -> None:
        request = await _request(pb.RepositoryModelLoadRequest, call)
        if request.parameters:
            raise NotAvailableYet(
                "a model is what its store says; publish a version, and load without parameters"
            )
        with self._audit.noting("load", request.model_name[:LONGEST_QUOTE], call.client):
            await self._repository.load(request.model_name)
        await _answer(call, pb.RepositoryModelLoadResponse())

    async def unload(self, call: Call) -> None:
        request = await _request(pb.RepositoryModelUnloadRequest, call)
        with self._audit.noting("unload", request.model_name[:LONGEST_QUOTE], call.client):
            await self._repository.unload(request.model_name)
        await _answer(call, pb.RepositoryModelUnloadResponse())


def _states(entry: ModelEntry) -> list[tuple[str, str, str]]:
    if entry.error is not None:
        return [("", "UNAVAILABLE", entry.error)]
    return [(str(each.version), each.state, each.reason) for each in entry.versions]


@final
class _Infer:
    """Inference, one by one and in streams."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference
        self._reader = Reader(INFER_FORM)
        self._inferences = Pipeline(self._reader.read, self._answers, write_failure)

    async def infer(self, call: Call) -> None:
        wanted = await self._reader.read(await call.message() or b"")
        response = await self._inference.infer(read_inference(wanted, call, call.received))
        call.timing = response.timing
        await call.send(write_inference(response))

    async def stream(self, call: Call) -> None:
        await self._inferences.run(call)

    async def _answers(self, wanted: Wanted[Order], item: Item) -> AsyncGenerator[Parts, None]:
        request = read_inference(wanted, item.call, item.arrived)
        order = request.order
        ends = order.parameters.get(WANTS_END) is True
        if STEPS not in order.parameters:
            found = await self._inference.infer(request)
            yield streamed(write_inference(found, {IS_END: True} if ends else {}))
            return
        async with aclosing(self._frames(request, item)) as frames:
            async for frame, known in frames:
                yield streamed(write_inference(frame, known | ({IS_END: False} if ends else {})))
        if ends:
            last = InferResponse(order.model, order.version, request.id, ())
            yield streamed(write_inference(last, {IS_END: True}))

    async def _frames(
        self, request: InferRequest, item: Item
    ) -> AsyncGenerator[tuple[InferResponse, dict[str, Parameter]], None]:
        order = request.order
        steps, every = _count(STEPS, order.parameters[STEPS]), _count(EVERY, order.parameters.get(EVERY, 1))
        block = request._replace(order=order.without(STEPS, EVERY))
        found, rollout = await self._inference.roll_out(block, steps, every)
        single = next(iter(request.inputs.values())).array.ndim == 2
        async with aclosing(rollout.frames) as frames:
            with item.holding(rollout.nbytes):
                async for frame in frames:
                    outputs = tuple(_frame_tensors(frame, rollout, order.outputs, single=single))
                    response = InferResponse(found.name, str(found.version), request.id, outputs)
                    yield response, {"step": frame.step, "time": frame.time}


def _count(name: str, value: Parameter) -> int:
    if type(value) is not int or not 1 <= value < 2**31:
        got = repr(value)[:LONGEST_QUOTE]
        raise InvalidField(name, "range", f"{name}: expected a number of steps, at least 1, got {got}")
    return value


def _frame_tensors(frame: Frame, rollout: Rollout, wanted: tuple[str, ...], *, single: bool) -> list[Tensor]:
    return [
        tensor_of(name, frame.fields[name][0] if single else frame.fields[name])
        for name in (wanted or rollout.names)
        if name in frame.fields
    ]


async def _answer(call: Call, message: Any) -> None:
    await call.send([message.SerializeToString()])


async def _request(kind: type[Any], call: Call) -> Any:
    return decode(kind, await call.message() or b"")
