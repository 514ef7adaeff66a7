"""Gradients through rollouts over HTTP: JSON and ``.npy``, and what is wrong with a request."""

import io
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from service.client import Client

PATH = "/v1/problems/shallow_water/vjp"
NPY = {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}
REST = np.ones((16, 24))


@pytest.fixture
def drifting(rollout_address: str) -> Any:
    with httpx.Client(base_url=rollout_address, timeout=60) as client:
        yield client


def lists(fields: NDArray[np.float32]) -> dict[str, Any]:
    return dict(zip(("h", "hu", "hv"), fields.tolist(), strict=True))


def npy(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.fixture(scope="module")
def weights() -> NDArray[np.float32]:
    return np.random.default_rng(2).normal(size=(2, 3, 16, 24)).astype(np.float32)


def test_json(drifting: httpx.Client, water: NDArray[np.float32], weights: NDArray[np.float32]) -> None:
    body = {"state": lists(water), "cotangent": lists(weights[0]), "steps": 7, "start_step": 1, "wrt": "hv"}
    answer = drifting.post(PATH, json=body | {"method": "surrogate", "walls": "outflow", "priority": "bulk"})
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert np.array_equal(np.float32(document["gradient"]), np.roll(weights[0, 2], -6, axis=-1))
    assert {
        name: document[name] for name in ("wrt", "model", "method", "operator", "error", "certified")
    } == {
        "wrt": "hv",
        "model": "shallow_water@1",
        "method": "surrogate",
        "operator": "hllc-muscl-v1",
        "error": None,
        "certified": False,
    }
    assert document["in_distribution"] is True
    assert document["timing_ms"]["total"] > 0
    # rest need not be sent, nor cotangents that do not count
    few = {"state": {"h": water[0].tolist()}, "cotangent": {"h": weights[:, 0].tolist()}, "steps": 2}
    document = drifting.post(PATH, json=few).json()
    assert document["wrt"] == "h"
    assert np.array_equal(np.float32(document["gradient"]), np.roll(weights[:, 0], -2, axis=-1))


def test_npy(drifting: httpx.Client, water: NDArray[np.float32], weights: NDArray[np.float32]) -> None:
    several = npy(np.concatenate([water[None], weights]))
    answer = drifting.post(PATH, params={"steps": 5, "wrt": "hu"}, content=several, headers=NPY)
    assert answer.status_code == 200, answer.text
    gradient = np.load(io.BytesIO(answer.content))
    assert gradient.dtype == np.float32
    assert np.array_equal(gradient, np.roll(weights[:, 1], -5, axis=-1))
    told = {
        name: answer.headers[f"Mno-{name}"] for name in ("Field", "Method", "Error-Estimate", "Certified")
    }
    assert told == {"Field": "hu", "Method": "surrogate", "Error-Estimate": "null", "Certified": "false"}
    # one cotangent has no axis of its own, channels may be named, and float64 stays
    exact = npy(np.stack([water[[0, 2, 1]], weights[0][[0, 2, 1]]]).astype(np.float64))
    params = {"steps": 5, "wrt": "log_h", "fields": "h,hv,hu"}
    answer = drifting.post(PATH, params=params, content=exact, headers=NPY)
    gradient = np.load(io.BytesIO(answer.content))
    expected = np.roll(weights[0, 0], -5, axis=-1) * water[0].astype(np.float64)
    assert np.array_equal(gradient, expected)


BAD: list[tuple[dict[str, Any], int, str, str]] = [
    ({"steps": 0}, 422, "invalid-field", "steps"),
    ({"steps": None}, 422, "invalid-field", "steps"),
    ({"steps": 101}, 422, "invalid-field", "at most 100, got 101"),
    ({"steps": 2**31}, 422, "invalid-field", "steps"),
    ({"start_step": -1}, 422, "invalid-field", "start_step"),
    ({"every": 2}, 422, "invalid-field", "'every' is not an option"),
    ({"state": None}, 422, "invalid-field", "state: expected an object"),
    ({"state": {"h": [REST.tolist()]}}, 422, "invalid-field", "starts from one state"),
    ({"state": {"h": (0 * REST).tolist()}}, 422, "invalid-field", "h"),
    ({"cotangent": None}, 422, "invalid-field", "cotangent: expected an object"),
    ({"cotangent": {}}, 422, "invalid-field", "got none"),
    ({"cotangent": {"depth": REST.tolist()}}, 422, "invalid-field", "'depth'"),
    ({"cotangent": {"h": [[1.0]]}}, 422, "invalid-field", "expected shape (16, 24)"),
    ({"tolerance": 1e-6}, 409, "not-certifiable", "no adjoint of the reference solver"),
    ({"method": "adjoint"}, 501, "not-available-yet", "ask for surrogate"),
    ({"method": "hybrid"}, 422, "invalid-field", "method"),
    ({"wrt": "depth"}, 422, "invalid-field", "wrt: expected h or hu or hv or log_h"),
    ({"model": "shallow_water@7"}, 404, "unknown-model", "not loaded"),
    ({"model": "short"}, 422, "invalid-field", "starts from 3 frames"),
]


@pytest.mark.parametrize(("changes", "status", "slug", "why"), BAD)
def test_what_is_refused(
    drifting: httpx.Client, changes: dict[str, Any], status: int, slug: str, why: str
) -> None:
    good = {"state": {"h": REST.tolist()}, "cotangent": {"h": REST.tolist()}, "steps": 5}
    answer = drifting.post(PATH, json=good | changes)
    document = answer.json()
    assert (answer.status_code, document["type"]) == (status, slug), document
    assert why in document["detail"]


@pytest.mark.parametrize("shape", [(3, 16, 24), (1, 3, 16, 24), (2, 4, 16, 24), (2, 2, 3, 16, 24)])
def test_stacks_that_are_none_are_refused(drifting: httpx.Client, shape: tuple[int, ...]) -> None:
    answer = drifting.post(PATH, params={"steps": 5}, content=npy(np.ones(shape, np.float32)), headers=NPY)
    assert (answer.status_code, answer.json()["type"]) == (422, "invalid-field")


def test_pictures_are_refused(drifting: httpx.Client) -> None:
    answer = drifting.post(PATH, json={}, headers={"Accept": "image/png"})
    assert answer.status_code == 501


def test_the_client_does_not_ask_for_what_makes_no_sense(water: NDArray[np.float32]) -> None:
    named = dict(zip(("h", "hu", "hv"), water, strict=True))
    with Client("http://127.0.0.1:9") as client:
        for state, cotangent in (({"h": water[0]}, named), (water, named), (named, {})):
            with pytest.raises(ValueError, match="cotangent: expected"):
                client.vjp("shallow_water", state, cotangent, steps=3)
        with pytest.raises(ValueError, match="belong to a rollout"):
            client.vjp("darcy", water[0], water[0], walls="outflow")
