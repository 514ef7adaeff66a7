"""What clients with an open stream see when the service is told to stop, from outside."""

from __future__ import annotations

import queue
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from server_process import Server, running

from service.pb import solver_pb2 as pb

pytestmark = pytest.mark.slow

STREAM = "/mno.v1.Solver/SolveStream"
PROCESSES = pytest.mark.parametrize("processes", ["workers", "none"])


def request(name: str) -> pb.SolveRequest:
    field = np.ones((32, 32), np.float32)
    tensor = pb.Tensor(dtype="float32", shape=field.shape, data=field.tobytes())
    return pb.SolveRequest(id=name, problem="darcy", fields={"permeability": tensor})


def open_stream(channel: grpc.Channel, requests: Iterator[pb.SolveRequest]) -> Any:
    method = channel.stream_stream(STREAM, pb.SolveRequest.SerializeToString, pb.SolveResponse.FromString)
    return method(requests, timeout=120)


def serving(store_url: str, processes: str, **variables: str) -> Any:
    return running("--store", store_url, "--models", "darcy", "--processes", processes, **variables)


@PROCESSES
def test_whoever_watches_is_told_at_once(store_url: str, processes: str) -> None:
    with (
        serving(store_url, processes, MNO_DRAIN_DELAY_SECONDS="3600") as server,
        grpc.insecure_channel(server.grpc_address) as channel,
    ):
        watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=120)
        assert next(watching).status == health_pb2.HealthCheckResponse.SERVING
        server.process.send_signal(signal.SIGTERM)
        assert next(watching).status == health_pb2.HealthCheckResponse.NOT_SERVING
        # there is time to notice: who asks is answered
        assert not next(open_stream(channel, iter([request("0")]))).HasField("fault")


@PROCESSES
def test_an_open_stream_does_not_hold_up_the_stop(store_url: str, processes: str) -> None:
    with (
        serving(store_url, processes, MNO_GRACE_SECONDS="3600") as server,
        grpc.insecure_channel(server.grpc_address) as channel,
    ):
        idle: queue.SimpleQueue[pb.SolveRequest] = queue.SimpleQueue()
        idle.put(request("0"))
        stream = open_stream(channel, iter(idle.get, None))
        assert next(stream).id == "0"
        assert server.stop() == 0
        with pytest.raises(grpc.RpcError) as ended:
            next(stream)
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        assert dict(ended.value.trailing_metadata())["mno-fault"] == "not-ready"


@PROCESSES
def test_a_stream_that_never_pauses_ends_with_its_service(store_url: str, processes: str) -> None:
    with (
        serving(store_url, processes, MNO_GRACE_SECONDS="3600") as server,
        grpc.insecure_channel(server.grpc_address) as channel,
        ThreadPoolExecutor(1) as pool,
    ):
        stream = open_stream(channel, endless())
        answers = [next(stream)]
        stopping = pool.submit(stop, server)
        with pytest.raises(grpc.RpcError) as ended:
            answers.extend(iter(stream.next, None))
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        assert dict(ended.value.trailing_metadata())["mno-fault"] == "not-ready"
        assert stopping.result(timeout=60) == 0
        assert not any(answer.HasField("fault") for answer in answers)
        # what was read is answered: none is missing between the others
        assert sorted(int(answer.id) for answer in answers) == list(range(len(answers)))


def endless() -> Iterator[pb.SolveRequest]:
    number = 0
    while True:
        yield request(str(number))
        number += 1


def stop(server: Server) -> int:
    return server.stop(120)
