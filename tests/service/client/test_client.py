"""The client against a network that the test plays."""

import asyncio
import io
import json
from typing import Any

import httpx
import numpy as np
import pytest

from service.client import AsyncClient, Client, ServiceError

ESTIMATE = {
    "kind": "guaranteed",
    "norm": "energy",
    "lower": 0.0,
    "upper": 0.3,
    "l2_estimate": 0.01,
    "steps": 0,
}


def answer(request: httpx.Request) -> httpx.Response:
    """The field itself, as a service would send it."""
    headers = {
        "Mno-Field": "pressure",
        "Mno-Model": "darcy@3",
        "Mno-Method": "surrogate",
        "Mno-Operator": "tpfa-harmonic-v1",
        "Mno-Error-Estimate": json.dumps({**ESTIMATE, "added_later": 1}),
        "Mno-In-Distribution": "true",
        "Mno-Certified": "false",
        "Mno-Iterations": "0",
        "Server-Timing": "queue;dur=0.4, compute;dur=6.1",
    }
    return httpx.Response(200, content=request.content, headers=headers)


def refusing(*statuses: int) -> tuple[httpx.MockTransport, list[httpx.Request]]:
    """A service that refuses with these statuses, and then answers."""
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if len(seen) > len(statuses):
            return answer(request)
        problem = {"type": "overloaded", "detail": "full"}
        return httpx.Response(statuses[len(seen) - 1], json=problem, headers={"Retry-After": "0"})

    return httpx.MockTransport(handle), seen


def client_of(transport: httpx.BaseTransport, **options: Any) -> Client:
    return Client("http://service", transport=transport, **options)


def test_an_answer_has_fields_and_what_is_known_about_them() -> None:
    transport, seen = refusing()
    with client_of(transport, token="secret") as client:
        got = client.solve("darcy", [[1.0, 2.0]], source=2.0, model="darcy@3", timeout_ms=10)
    assert np.array_equal(got.pressure, [[1.0, 2.0]])
    assert (got.model, got.error.upper, got.in_distribution, got.certified) == ("darcy@3", 0.3, True, False)
    assert got.timing_ms == {"queue": 0.4, "compute": 6.1}
    assert not hasattr(got, "velocity")
    assert seen[0].headers["Authorization"] == "Bearer secret"
    query = {"source": "2.0", "model": "darcy@3", "timeout_ms": "10", "method": "auto", "error": "bound"}
    assert dict(seen[0].url.params) == query
    assert np.load(io.BytesIO(seen[0].content)).tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("status", [429, 503])
def test_it_comes_back_when_the_service_asks_for_it(status: int) -> None:
    transport, seen = refusing(status, status)
    with client_of(transport, retries=2) as client:
        client.solve("darcy", [[1.0]])
    assert len(seen) == 3


def test_it_gives_up_after_its_retries() -> None:
    transport, seen = refusing(429, 429)
    with client_of(transport, retries=1) as client, pytest.raises(ServiceError, match="overloaded"):
        client.solve("darcy", [[1.0]])
    assert len(seen) == 2


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def asynchronous(request: pytest.FixtureRequest) -> bool:
    found: bool = request.param
    return found


def failing(error: httpx.TransportError, times: int) -> tuple[httpx.MockTransport, list[httpx.Request]]:
    """A network that fails so many times, and then has a service."""
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if len(seen) <= times:
            raise error
        return answer(request)

    return httpx.MockTransport(handle), seen


def solve(transport: httpx.MockTransport, *, asynchronous: bool, **options: Any) -> Any:
    async def asked() -> Any:
        async with AsyncClient("http://service", transport=transport, **options) as client:
            return await client.solve("darcy", [[1.0]])

    if asynchronous:
        return asyncio.run(asked())
    with client_of(transport, **options) as client:
        return client.solve("darcy", [[1.0]])


LOSSES = [
    httpx.ConnectError("refused"),
    httpx.ReadError("reset"),
    httpx.WriteError("broken pipe"),
    httpx.RemoteProtocolError("disconnected"),
]


@pytest.mark.parametrize("error", LOSSES, ids=lambda error: type(error).__name__)
def test_a_service_that_is_lost_is_asked_until_it_is_back(
    asynchronous: bool, error: httpx.TransportError
) -> None:
    transport, seen = failing(error, 3)
    assert solve(transport, asynchronous=asynchronous).model == "darcy@3"
    assert len(seen) == 4


@pytest.mark.parametrize("error", LOSSES[:2], ids=lambda error: type(error).__name__)
def test_a_service_that_stays_lost_is_given_up(asynchronous: bool, error: httpx.TransportError) -> None:
    for options, fewest, most in (({"timeout": 0.2}, 2, 5), ({"retries": 0}, 1, 1)):
        transport, seen = failing(error, 20)
        with pytest.raises(type(error), match=str(error)):
            solve(transport, asynchronous=asynchronous, **options)
        assert fewest <= len(seen) <= most


@pytest.mark.parametrize(
    "error",
    [
        httpx.ReadTimeout("late"),
        httpx.ConnectTimeout("late"),
        httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"),
    ],
    ids=["read", "connect", "certificate"],
)
def test_what_a_second_attempt_does_not_mend_is_final(
    asynchronous: bool, error: httpx.TransportError
) -> None:
    transport, seen = failing(error, 1)
    with pytest.raises(type(error)):
        solve(transport, asynchronous=asynchronous)
    assert len(seen) == 1


@pytest.mark.parametrize("status", [422, 500, 504])
def test_other_refusals_are_final(status: int) -> None:
    transport, seen = refusing(status)
    with client_of(transport) as client, pytest.raises(ServiceError) as refusal:
        client.solve("darcy", [[1.0]])
    assert (len(seen), refusal.value.status) == (1, status)


def test_an_answer_from_something_in_between_is_an_error_too() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(502, text="<html>bad gateway"))
    with client_of(transport) as client, pytest.raises(ServiceError, match="bad gateway"):
        client.solve("darcy", [[1.0]])


BATCH = {
    "kind": "guaranteed",
    "norm": "energy",
    "lower": [0.0, 0.1],
    "upper": [0.3, 0.4],
    "l2_estimate": [0.01, 0.02],
    "steps": 0,
    "added_later": 1,
}
SUMMARY = {
    "kind": "guaranteed",
    "norm": "energy",
    "upper_max": 0.4,
    "l2_estimate_median": 0.015,
    "steps": 0,
    "fields": 256,
    "added_later": 1,
}


def error_of(document: Any) -> Any:
    def handle(request: httpx.Request) -> httpx.Response:
        response = answer(request)
        response.headers["Mno-Error-Estimate"] = json.dumps(document)
        return response

    with client_of(httpx.MockTransport(handle)) as client:
        return client.solve("darcy", [[1.0]]).error


def test_a_batch_has_an_estimate_for_each_field_or_a_summary() -> None:
    first, second = error_of(BATCH)
    assert (first.upper, second.upper, second.lower, first.l2_estimate) == (0.3, 0.4, 0.1, 0.01)
    assert (first.kind, first.norm, first.steps) == ("guaranteed", "energy", 0)
    summary = error_of(SUMMARY)
    assert (summary.upper_max, summary.l2_estimate_median, summary.fields) == (0.4, 0.015, 256)
    assert error_of(None) is None
