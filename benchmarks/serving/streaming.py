"""Frames of rollouts a second: shallow water of 128x128, 196 KB a frame, from a model that costs nothing."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any, Final, Literal

import numpy as np

from benchmarks.serving.client import fetch
from benchmarks.serving.load import LoadFailed
from benchmarks.serving.models import SIDE
from benchmarks.serving.request import Array, Reply, Request, Route
from benchmarks.serving.results import Results
from benchmarks.serving.rounds import Plan
from benchmarks.serving.server import Place, Running, ServerFailed, running, wait_until
from benchmarks.serving.servers.ours import WAVES, Ours
from service.pb import solver_pb2

__all__ = ["measure_streaming"]

FIELDS: Final = ("h", "hu", "hv")
FRAME_BYTES: Final = len(FIELDS) * SIDE * SIDE * 4
# of one rollout; it begins anew when it ends
STEPS: Final = 200
STREAMS: Final = (1, 8)


def measure_streaming(plan: Plan, results: Results, report: Callable[[str], None]) -> None:
    """Rollouts over gRPC and as records over HTTP."""
    report("streaming")
    server = Ours()
    try:
        with running(server, plan.place(server, (WAVES,))) as process:
            wait_until(lambda: fetch(process.place.http_port, "/healthz/ready") == 200, process)
            results.extras["Streaming"] = list(_rows(process, plan))
    except (ServerFailed, LoadFailed, OSError) as error:
        results.troubles.append(f"streaming: {error}")


def _rows(process: Running, plan: Plan) -> Iterator[dict[str, Any]]:
    for route, request in _rollouts(process.place):
        if route.protocol not in plan.loop.protocols:
            continue
        for streams in STREAMS:
            before = process.tree.cpu_seconds()
            traffic = plan.loop.drive(route, request, streams, 2 * plan.seconds, plan.load_cores)
            spent = process.tree.cpu_seconds() - before
            # a rollout that the end of the burst cuts off has sent frames too
            frames = traffic.received / FRAME_BYTES
            yield {
                "route": route.title,
                "streams": streams,
                "frames/s": frames / traffic.seconds,
                "CPU ms/frame": 1e3 * spent / max(frames, 1),
                "failed": traffic.failed,
            }


def _rollouts(place: Place) -> Iterator[tuple[Route, Request]]:
    yield _route("mno: gRPC Rollout", "grpc", place.grpc_port), _over_grpc()
    yield _route("mno: HTTP records", "http", place.http_port), _over_http()


def _route(title: str, protocol: Literal["grpc", "http"], port: int) -> Route:
    """A stream is one request; what it answers is counted and not decoded."""
    return Route("mno-rollout", title, protocol, port, lambda _: _over_grpc(), _not_decoded)


def _not_decoded(reply: Reply) -> Array:
    raise AssertionError(f"a stream is counted and not decoded, got one of {len(reply.body)} bytes")


def _state() -> dict[str, Array]:
    still = np.zeros((SIDE, SIDE), np.float32)
    return dict(zip(FIELDS, (still + 1, still, still), strict=True))


def _over_grpc() -> Request:
    message = solver_pb2.RolloutRequest(
        problem="shallow_water",
        model=WAVES,
        method=solver_pb2.METHOD_SURROGATE,
        steps=STEPS,
        state={
            name: solver_pb2.Tensor(dtype="float32", shape=field.shape, data=field.tobytes())
            for name, field in _state().items()
        },
    )
    return Request("/mno.v1.Solver/Rollout", message.SerializeToString())


def _over_http() -> Request:
    file = io.BytesIO()
    np.save(file, np.stack(list(_state().values())))
    path = f"/v1/problems/shallow_water/rollout?model={WAVES}&method=surrogate&steps={STEPS}"
    return Request(
        path, file.getvalue(), {"content-type": "application/x-npy", "accept": "application/x-npy-stream"}
    )
