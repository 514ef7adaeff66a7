"""The service `inference.GRPCInferenceService`: the Open Inference Protocol, version 2, as messages.

What the protocol means is in `service/oip/inference.py`; here its messages are read and written.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any, Final, final

import numpy as np
from google.protobuf.json_format import ParseDict
from numpy.typing import NDArray

from service.access.audit import Audit
from service.errors import LONGEST_QUOTE, InvalidField, NotAvailableYet
from service.grpc.call import Buffer, Call, Method
from service.grpc.faults import describe
from service.grpc.health import Health
from service.grpc.parts import Parts, tagged, varint
from service.grpc.wire import KEY_NAME
from service.http.pages import VERSION
from service.oip.inference import (
    EXTENSIONS,
    NAME,
    NO_SHARED_MEMORY,
    Inference,
    InferRequest,
    InferResponse,
    Parameter,
)
from service.oip.tensor import Tensor, tensor_from_bytes, tensor_from_numbers, tensor_of
from service.options import Asker
from service.pb import inference_pb2 as pb
from service.pb.decode import decode
from service.rollout import Frame, Rollout
from service.versions.repository import ModelEntry, Repository

__all__ = ["SERVICE", "inference_methods"]

SERVICE: Final = "inference.GRPCInferenceService"
# requests of one stream under way at once
MOST_AT_ONCE: Final = 64
# larger messages are read off the event loop
LARGE: Final = 2**21
# a message that names a model is no longer, unless somebody plays with it [B]
NAMES: Final = 2**16

# where a message has the elements of a datatype, if not as raw bytes
CONTENTS: Final = {"FP32": "fp32_contents", "FP64": "fp64_contents"}
RAW_OUTPUT: Final = b"\x32"  # ModelInferResponse.raw_output_contents = 6
INFER_RESPONSE: Final = b"\x12"  # ModelStreamInferResponse.infer_response = 2

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

    async def infer(self, call: Call) -> None:
        message = await _read(await call.message() or b"")
        response = await self._inference.infer(read_inference(message, call))
        call.timing = response.timing
        await call.send(write_inference(response))

    async def stream(self, call: Call) -> None:
        room, turn = asyncio.Semaphore(MOST_AT_ONCE), asyncio.Lock()

        async def answer(message: Buffer) -> None:
            try:
                async with aclosing(self._answers(call, message)) as answers:
                    async for parts in answers:
                        # the frames of two answers must not mix
                        async with turn:
                            await call.send(parts)
            finally:
                call.let_go(len(message))
                room.release()

        async with asyncio.TaskGroup() as tasks:
            while (message := await call.message()) is not None:
                await room.acquire()
                tasks.create_task(answer(message))

    async def _answers(self, call: Call, message: Buffer) -> AsyncGenerator[Parts, None]:
        """All answers to a request of a stream; what breaks is an answer too, and the stream goes on."""
        name = ""
        try:
            wanted = await _read(message)
            name = wanted.id
            ends = wanted.parameters[WANTS_END].bool_param if WANTS_END in wanted.parameters else False
            request = read_inference(wanted, call)
            if STEPS not in request.parameters:
                found = await self._inference.infer(request)
                yield _streamed(write_inference(found, {IS_END: True} if ends else {}))
                return
            async with aclosing(self._frames(request)) as frames:
                async for frame, known in frames:
                    yield _streamed(write_inference(frame, known | ({IS_END: False} if ends else {})))
            if ends:
                last = InferResponse(request.model, request.version, name, ())
                yield _streamed(write_inference(last, {IS_END: True}))
        except Exception as fault:  # whatever broke is this request's answer
            message_of = describe(fault, call.request_id).message
            failed = pb.ModelStreamInferResponse(error_message=message_of)
            failed.infer_response.id = name
            yield [failed.SerializeToString()]

    async def _frames(
        self, request: InferRequest
    ) -> AsyncGenerator[tuple[InferResponse, dict[str, Parameter]], None]:
        parameters = dict(request.parameters)
        steps = _count(STEPS, parameters.pop(STEPS))
        every = _count(EVERY, parameters.pop(EVERY, 1))
        found, rollout = await self._inference.roll_out(_with(request, parameters), steps, every)
        single = next(iter(request.inputs.values())).array.ndim == 2
        async with aclosing(rollout.frames) as frames:
            async for frame in frames:
                outputs = tuple(_frame_tensors(frame, rollout, request.outputs, single=single))
                response = InferResponse(found.name, str(found.version), request.id, outputs)
                yield response, {"step": frame.step, "time": frame.time}


def _with(request: InferRequest, parameters: Mapping[str, Parameter]) -> InferRequest:
    return InferRequest(**{**vars(request), "parameters": parameters})


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


async def _read(message: Buffer) -> pb.ModelInferRequest:
    if len(message) > LARGE:
        return await asyncio.to_thread(decode, pb.ModelInferRequest, message)
    return decode(pb.ModelInferRequest, message)


def read_inference(message: pb.ModelInferRequest, call: Call) -> InferRequest:
    """The request of a call.

    Raises:
        InvalidField: tensors whose elements are missing, too many, or no elements.
    """
    timeout_ms = None if call.deadline is None else max(1000 * (call.deadline - call.received), 0.001)
    return InferRequest(
        message.model_name,
        message.model_version,
        message.id,
        _tensors(message),
        tuple(output.name for output in message.outputs),
        {name: _parameter(name, value) for name, value in message.parameters.items()},
        asker=Asker(call.client, call.metadata.get(KEY_NAME, ""), call.received),
        timeout_ms=timeout_ms,
    )


def _tensors(message: pb.ModelInferRequest) -> dict[str, Tensor]:
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        got = f"got {len(raw)} for {len(message.inputs)} inputs"
        raise InvalidField(
            "raw_input_contents", "length", f"raw_input_contents: expected one for each input, {got}"
        )
    tensors = {}
    for position, given in enumerate(message.inputs):
        if given.name in tensors:
            what = given.name[:LONGEST_QUOTE]
            raise InvalidField(what, "twice", f"{what}: got two inputs of this name; send one")
        if raw:
            tensor = tensor_from_bytes(given.name, given.datatype, given.shape, raw[position])
        else:
            tensor = tensor_from_numbers(given.name, given.datatype, given.shape, _numbers(given))
        tensors[given.name] = tensor
    return tensors


def _numbers(given: pb.ModelInferRequest.InferInputTensor) -> NDArray[Any]:
    name = given.name[:LONGEST_QUOTE]
    if "shared_memory_region" in given.parameters:
        raise NotAvailableYet(f"{name}: {NO_SHARED_MEMORY}")
    field = CONTENTS.get(given.datatype)
    if field is None:
        expected = "expected raw_input_contents, or fp32_contents and fp64_contents"
        raise InvalidField(
            name, "datatype", f"{name}: {expected}; {given.datatype[:LONGEST_QUOTE]!r} has raw only"
        )
    return np.array(getattr(given.contents, field), np.float64 if given.datatype == "FP64" else np.float32)


def _parameter(name: str, value: pb.InferParameter) -> Parameter:
    kind = value.WhichOneof("parameter_choice")
    if kind is None:
        what = name[:LONGEST_QUOTE]
        raise InvalidField(what, "missing", f"{what}: expected a value, got a parameter without one")
    parameter: Parameter = getattr(value, kind)
    return parameter


def write_inference(response: InferResponse, more: Mapping[str, Parameter] | None = None) -> Parts:
    """A ``ModelInferResponse``; ``more`` are further parameters."""
    head = pb.ModelInferResponse(model_name=response.model, model_version=response.version, id=response.id)
    parts: list[Buffer] = []
    for tensor in response.outputs:
        head.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        data = tensor.raw()
        parts += [RAW_OUTPUT + varint(len(data)), data]
    for name, value in (more or {}).items():
        _set(head.parameters[name], value)
    return [head.SerializeToString(), *parts]


def _set(parameter: pb.InferParameter, value: Parameter) -> None:
    match value:
        case bool():
            parameter.bool_param = value
        case int():
            parameter.int64_param = value
        case float():
            parameter.double_param = value
        case _:
            parameter.string_param = str(value)


def _streamed(parts: Parts) -> Parts:
    """A ``ModelStreamInferResponse`` around a ``ModelInferResponse``."""
    return tagged(INFER_RESPONSE, parts)
