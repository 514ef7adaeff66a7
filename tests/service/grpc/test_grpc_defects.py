"""One-step defects over gRPC, beside those over HTTP."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from service.client import AsyncClient, Client, ServiceError
from service.pb import solver_pb2 as pb

ROLLOUT = "/mno.v1.Solver/Rollout"


def ask(channel: grpc.Channel, water: NDArray[np.float32], defects: int = 0) -> list[pb.Frame]:
    names = zip(("h", "hu", "hv"), water, strict=True)
    state = {name: pb.Tensor(dtype="float32", shape=each.shape, data=each.tobytes()) for name, each in names}
    wanted = pb.RolloutRequest(problem="shallow_water", state=state, steps=6, defects=defects)
    method = channel.unary_stream(ROLLOUT, pb.RolloutRequest.SerializeToString, pb.Frame.FromString)
    return list(method(wanted, timeout=60))


def test_frames_have_the_defects_that_http_tells(
    water_channel: grpc.Channel, rollout_address: str, water: NDArray[np.float32]
) -> None:
    with Client(rollout_address) as client:
        expected = [frame.defect for frame in client.rollout("shallow_water", water, steps=6, defects="all")]
    found = ask(water_channel, water, defects=2**32 - 1)
    assert [frame.defect for frame in found] == expected
    assert not any(frame.HasField("exponential_bound") for frame in found)
    some = ask(water_channel, water, defects=2)
    assert sum(frame.HasField("defect") for frame in some) == 2
    assert not any(frame.HasField("defect") for frame in ask(water_channel, water))


def test_both_clients_read_them(
    water_channel: grpc.Channel, water_address: str, water: NDArray[np.float32]
) -> None:
    expected = [frame.defect for frame in ask(water_channel, water, defects=6)]
    with Client(f"grpc://{water_address}") as client:
        found = list(client.rollout("shallow_water", water, steps=6, defects="all"))
        some = list(client.rollout("shallow_water", water, steps=6, defects=2))
        none = list(client.rollout("shallow_water", water, steps=6))
    assert [frame.defect for frame in found] == expected
    assert sum(frame.defect is not None for frame in some) == 2
    assert {(frame.defect, frame.exponential_bound) for frame in none} == {(None, None)}

    async def read() -> list[float | None]:
        async with AsyncClient(f"grpc://{water_address}") as client:
            frames = client.rollout("shallow_water", water, steps=6, defects="all")
            return [frame.defect async for frame in frames]

    assert asyncio.run(read()) == expected


def test_the_solver_s_own_steps_are_not_compared(water_address: str, water: NDArray[np.float32]) -> None:
    with Client(f"grpc://{water_address}") as client, pytest.raises(ServiceError) as refusal:
        next(client.rollout("shallow_water", water, steps=6, method="solver", defects=1))
    assert (refusal.value.status, refusal.value.problem["field"]) == (422, "defects")
