"""The client's rollouts against a network that the test breaks."""

import io
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest

from service.client import Client, ServiceError

BLOCK = 4
STATE = np.array([[[2.0, 3.0]], [[0.5, 0.0]]], dtype=np.float32)


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def record(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


class Broken(httpx.SyncByteStream):
    """The parts of a stream, and then what becomes of the connection."""

    def __init__(self, parts: list[bytes], error: Exception | None) -> None:
        self._parts = parts
        self._error = error
        self.sent = 0
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        for part in self._parts:
            # as a network does: cut anywhere
            yield part[:5]
            yield part[5:]
            self.sent += 1
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self.closed = True


@dataclass
class Service:
    """Doubles the first field a step, and loses a hundredth of it for the record; breaks as it is told.

    Attributes:
        breaks: for each request, after how many frames the stream breaks, and how; None: it does not.
    """

    breaks: list[tuple[int, Exception | bytes | None]]
    asked: list[httpx.Request] = field(default_factory=list)
    streams: list[Broken] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        query = request.url.params
        start, steps, every = (int(query.get(name, "0")) for name in ("start_step", "steps", "every"))
        state = np.load(io.BytesIO(request.read()))
        parts = [
            self._frame(state, start, step, "defects" in query)
            for step in range(start + 1, steps + 1)
            if step % every == 0
        ] + [struct.pack("<Q", 0)]
        error: Exception | None = None
        if self.breaks:
            count, how = self.breaks.pop(0)
            parts = parts[:count] + ([how] if isinstance(how, bytes) else [])
            error = how if isinstance(how, Exception) else None
        self.streams.append(Broken(parts, error))
        headers = {
            "Mno-Model": "water@3",
            "Mno-Fields": "h,hu",
            "Mno-Block": str(BLOCK),
            "Content-Type": "application/x-npy-stream",
        }
        return httpx.Response(200, headers=headers, stream=self.streams[-1])

    def _frame(self, state: Any, start: int, step: int, compared: bool) -> bytes:
        known = {
            "step": step,
            "time": step / 100,
            "invariants": {"mass_defect": 0.99 ** (step - start) - 1, "depth_min": 1.0},
            "error": {"kind": "calibrated", "norm": "l2", "upper": step, "coverage": 0.9, "later": 1},
            "in_distribution": start == 0,
            **({"defect": step / 4, "exponential_bound": step - start} if compared else {}),
        }
        factors = np.array([2.0 ** (step - start), 1.0], dtype=np.float32)[:, None, None]
        return record(json.dumps(known).encode()) + record(npy(state * factors))

    def client(self, **options: Any) -> Client:
        return Client("http://service", transport=httpx.MockTransport(self), **options)


BREAKS = [
    httpx.ReadError("reset"),
    httpx.RemoteProtocolError("chunk"),
    httpx.ReadTimeout("late"),
    None,
    b"\x05",
]


@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_broken_stream_goes_on_as_if_it_had_not_broken(how: Any, every: int) -> None:
    service = Service([(5, how), (3, how)])
    with service.client() as client:
        frames = list(client.rollout("shallow_water", STATE, steps=24, every=every))
    assert [frame.step for frame in frames] == list(range(every, 25, every))
    for frame in frames:
        assert np.array_equal(frame.fields["h"], STATE[0] * 2.0**frame.step)
        assert np.array_equal(frame.fields["hu"], STATE[1])
        assert frame.invariants["mass_defect"] == pytest.approx(0.99**frame.step - 1)
        assert frame.invariants["depth_min"] == 1.0
        assert frame.time == frame.step / 100
        assert frame.error is not None
        assert frame.error.upper == frame.step
        # that of the state the caller gave
        assert frame.in_distribution
        assert frame.model == "water@3"
    # only from the beginning of a block are the frames the same
    starts = [int(request.url.params["start_step"]) for request in service.asked]
    assert len(starts) == 3
    assert all(start % BLOCK == 0 for start in starts)
    assert starts[1] == max(step for step in [0, *range(every, 5 * every + 1, every)] if step % BLOCK == 0)
    # an alias may have moved: the version that began goes on
    assert [request.url.params.get("model") for request in service.asked] == [None, "water@3", "water@3"]


def test_a_bound_is_from_the_first_state_or_left_out() -> None:
    service = Service([(5, None), (3, None)])
    with service.client() as client:
        frames = list(client.rollout("shallow_water", STATE, steps=12, start_step=2, defects="all"))
        plain = list(client.rollout("shallow_water", STATE, steps=3))
    assert [frame.defect for frame in frames] == [step / 4 for step in range(3, 13)]
    # those of the second connection are from the state that it went on from
    assert [frame.exponential_bound for frame in frames] == [1, 2, 3, 4, 5, *[None] * 5]
    assert [request.url.params.get("defects") for request in service.asked] == ["all"] * 3 + [None]
    assert {(frame.defect, frame.exponential_bound) for frame in plain} == {(None, None)}


@pytest.mark.parametrize("how", BREAKS)
def test_blocks_count_from_where_the_rollout_began(how: Any) -> None:
    service = Service([(6, how), (4, how)])
    with service.client() as client:
        frames = list(client.rollout("shallow_water", STATE, steps=24, start_step=5))
    assert [frame.step for frame in frames] == list(range(6, 25))
    for frame in frames:
        assert np.array_equal(frame.fields["h"], STATE[0] * 2.0 ** (frame.step - 5))
    assert [int(request.url.params["start_step"]) for request in service.asked] == [5, 9, 13]


def test_a_stream_that_breaks_without_any_frame_is_given_up() -> None:
    service = Service([(2, None), *[(0, httpx.ReadError("reset"))] * 20])
    with service.client(timeout=0.3) as client:
        rollout = client.rollout("shallow_water", STATE, steps=9)
        assert [next(rollout).step, next(rollout).step] == [1, 2]
        with pytest.raises(httpx.ReadError, match="frames up to step 2"):
            next(rollout)
    assert 2 <= len(service.asked) < 20


def test_without_retries_a_broken_stream_is_given_up() -> None:
    service = Service([(2, None)])
    with service.client(retries=0) as client, pytest.raises(httpx.RemoteProtocolError, match="end"):
        list(client.rollout("shallow_water", STATE, steps=9))
    assert len(service.asked) == 1


def test_a_worker_lost_in_the_stream_is_a_refusal() -> None:
    problem = {"type": "worker-lost", "status": 503, "detail": "its worker died"}
    lost = record(json.dumps({"error": problem}).encode())
    service = Service([(2, lost), (0, lost)])
    with service.client() as client:
        assert [frame.step for frame in client.rollout("shallow_water", STATE, steps=5)] == [1, 2, 3, 4, 5]
    assert len(service.asked) == 3
    service = Service([(2, lost), (0, lost)])
    with (
        service.client(retries=1) as client,
        pytest.raises(ServiceError, match="frames up to step 2") as loss,
    ):
        list(client.rollout("shallow_water", STATE, steps=5))
    assert (loss.value.status, loss.value.type, len(service.asked)) == (503, "worker-lost", 2)


@pytest.mark.parametrize("retries", [0, 2])
def test_a_stream_that_lacks_only_its_end_is_whole(retries: int) -> None:
    service = Service([(3, None)])
    with service.client(retries=retries) as client:
        assert [frame.step for frame in client.rollout("shallow_water", STATE, steps=7, every=2)] == [2, 4, 6]
    assert len(service.asked) == 1


def test_a_failure_in_the_stream_is_an_error_and_is_not_tried_again() -> None:
    problem = {"type": "deadline-exceeded", "status": 504, "detail": "late"}
    service = Service([(2, record(json.dumps({"error": problem}).encode()))])
    with service.client() as client, pytest.raises(ServiceError, match="late") as failure:
        list(client.rollout("shallow_water", STATE, steps=9))
    assert (failure.value.status, failure.value.type) == (504, "deadline-exceeded")
    assert len(service.asked) == 1


def test_a_closed_rollout_closes_its_stream() -> None:
    service = Service([])
    with service.client() as client:
        rollout = client.rollout("shallow_water", STATE, steps=9)
        next(rollout)
        rollout.close()
        assert service.streams[0].closed
        assert service.streams[0].sent < 3


def test_names_travel_with_their_channels_and_options_with_the_query() -> None:
    service = Service([])
    with service.client() as client:
        state = {"hu": STATE[1], "h": STATE[0]}
        options = {"walls": "periodic", "method": "solver", "timeout_ms": 1000.0, "start_step": 4}
        list(client.rollout("shallow_water", state, steps=5, model="water@production", **options))
    (request,) = service.asked
    query = dict(request.url.params)
    assert 900 < float(query.pop("timeout_ms")) <= 1000
    assert query == {
        "steps": "5",
        "every": "1",
        "model": "water@production",
        "method": "solver",
        "walls": "periodic",
        "start_step": "4",
        "fields": "hu,h",
    }
    assert request.headers["Accept"] == "application/x-npy-stream"
    assert np.array_equal(np.load(io.BytesIO(request.content)), STATE[::-1])


def test_a_refusal_is_an_error_before_any_frame() -> None:
    problem = {"type": "invalid-field", "status": 422, "detail": "h must exceed 0 m"}
    transport = httpx.MockTransport(lambda _: httpx.Response(422, json=problem))
    with Client("http://service", transport=transport) as client, pytest.raises(ServiceError, match="exceed"):
        next(client.rollout("shallow_water", STATE))
