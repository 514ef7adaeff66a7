"""gRPC's own services: health (`grpc.health.v1`) and reflection (`grpc.reflection.v1alpha` and `v1`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Final, final

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from service.grpc.call import Call, Method
from service.grpc.faults import UnknownService
from service.pb.decode import decode
from service.pb.pool import POOL

__all__ = ["Health", "health_methods", "reflection_methods"]

HEALTH: Final = "grpc.health.v1.Health"
REFLECTION: Final = "grpc.reflection.v1alpha.ServerReflection"
# the same messages under another name
REFLECTION_V1: Final = "grpc.reflection.v1.ServerReflection"

for _module in (health_pb2, reflection_pb2):
    POOL.AddSerializedFile(_module.DESCRIPTOR.serialized_pb)


@final
class Health:
    """Whether the services answer: all do, until the process is about to stop.

    Attributes:
        stopped: the server is stopping, and nothing changes any more.
        change: is set at the next change.
    """

    def __init__(self, services: Iterable[str], draining: Callable[[], bool]) -> None:
        self.services = frozenset(services) | {""}
        self._draining = draining
        self.stopped = False
        self.change = asyncio.Event()

    @property
    def serving(self) -> bool:
        """Whether calls are welcome."""
        return not (self.stopped or self._draining())

    def changed(self) -> None:
        """Have whoever watches look again whether calls are welcome."""
        change, self.change = self.change, asyncio.Event()
        change.set()

    def stop(self) -> None:
        """From now on calls are not welcome, and whoever watches is told."""
        self.stopped = True
        self.changed()


def health_methods(health: Health) -> list[Method]:
    """`Check` and `Watch`."""

    def status(service: str) -> Any:
        known = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        if service in health.services:
            serving = health_pb2.HealthCheckResponse.SERVING
            known = serving if health.serving else health_pb2.HealthCheckResponse.NOT_SERVING
        return health_pb2.HealthCheckResponse(status=known).SerializeToString()

    async def check(call: Call) -> None:
        request = decode(health_pb2.HealthCheckRequest, await call.message() or b"")
        if request.service not in health.services:
            known = ", ".join(sorted(health.services - {""}))
            raise UnknownService(f"{request.service[:80]!r} is no service here; expected one of {known}")
        await call.send([status(request.service)])

    async def watch(call: Call) -> None:
        request = decode(health_pb2.HealthCheckRequest, await call.message() or b"")
        told = None
        while True:
            # what changes while this is sent is not missed
            change, stopped, known = health.change, health.stopped, status(request.service)
            if known != told:
                await call.send([known])
                told = known
            if stopped:
                return
            await change.wait()

    return [
        Method(f"/{HEALTH}/Check", check, scope=None),
        Method(f"/{HEALTH}/Watch", watch, scope=None, kind="answers"),
    ]


def reflection_methods(services: Iterable[str]) -> list[Method]:
    """What there is to call, for tools; it is published with the source anyway."""
    names = sorted({*services, HEALTH, REFLECTION})

    async def reflect(call: Call) -> None:
        while (message := await call.message()) is not None:
            request = decode(reflection_pb2.ServerReflectionRequest, message)
            await call.send([_reflected(request, names).SerializeToString()])
            call.let_go(len(message))

    return [
        Method(f"/{name}/ServerReflectionInfo", reflect, scope=None, kind="stream")
        for name in (REFLECTION, REFLECTION_V1)
    ]


def _reflected(
    request: reflection_pb2.ServerReflectionRequest, names: list[str]
) -> reflection_pb2.ServerReflectionResponse:
    answer = reflection_pb2.ServerReflectionResponse(valid_host=request.host[:200], original_request=request)
    try:
        match request.WhichOneof("message_request"):
            case "list_services":
                for name in names:
                    answer.list_services_response.service.add(name=name)
            case "file_by_filename":
                _add_file(answer, request.file_by_filename)
            case "file_containing_symbol":
                found = POOL.FindFileContainingSymbol(request.file_containing_symbol)
                _add_file(answer, found.name)
            case _:
                raise KeyError
    except KeyError:
        answer.error_response.error_code = grpc.StatusCode.NOT_FOUND.value[0]
        answer.error_response.error_message = "not found"
    return answer


def _add_file(answer: reflection_pb2.ServerReflectionResponse, name: str) -> None:
    """The file and all that it needs."""
    files, waiting = {}, [name]
    while waiting:
        descriptor = POOL.FindFileByName(waiting.pop())
        if descriptor.name not in files:
            files[descriptor.name] = descriptor.serialized_pb
            waiting += [each.name for each in descriptor.dependencies]
    answer.file_descriptor_response.file_descriptor_proto.extend(files.values())
