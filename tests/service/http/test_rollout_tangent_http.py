"""Tangents through rollouts over HTTP: JSON and ``.npy``, and what is wrong with a request."""

import io
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from service.client import Client

PATH = "/v1/problems/shallow_water/jvp"
NPY = {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}
NAMES = ("h", "hu", "hv")
REST = np.ones((16, 24))


@pytest.fixture
def drifting(rollout_address: str) -> Any:
    with httpx.Client(base_url=rollout_address, timeout=60) as client:
        yield client


def lists(fields: NDArray[np.float32]) -> dict[str, Any]:
    return dict(zip(NAMES, fields.tolist(), strict=True))


def npy(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.fixture(scope="module")
def moved() -> NDArray[np.float32]:
    return np.random.default_rng(2).normal(size=(2, 3, 16, 24)).astype(np.float32)


def test_json(drifting: httpx.Client, water: NDArray[np.float32], moved: NDArray[np.float32]) -> None:
    body = {"state": lists(water), "tangent": lists(moved[0]), "steps": 7, "start_step": 1}
    answer = drifting.post(PATH, json=body | {"method": "surrogate", "walls": "outflow", "priority": "bulk"})
    assert answer.status_code == 200, answer.text
    document = answer.json()
    found = [document["tangent"][name] for name in NAMES]
    assert np.array_equal(np.float32(found), np.roll(moved[0], 6, axis=-1))
    told = ("of", "steps", "model", "method", "operator", "error", "certified", "in_distribution")
    assert {name: document[name] for name in told} == {
        "of": ["h", "hu", "hv"],
        "steps": [7],
        "model": "shallow_water@1",
        "method": "surrogate",
        "operator": "hllc-muscl-v1",
        "error": None,
        "certified": False,
        "in_distribution": True,
    }
    assert document["timing_ms"]["total"] > 0
    # rest need not be sent, nor what does not change; several tangents come before several frames
    few = {"state": {"h": water[0].tolist()}, "tangent": {"h": moved[:, 0].tolist()}, "steps": 4, "every": 2}
    document = drifting.post(PATH, json=few).json()
    assert document["steps"] == [2, 4]
    tangent = np.float32(document["tangent"]["h"])
    assert tangent.shape == (2, 2, 16, 24)
    assert np.array_equal(tangent[:, 1], np.roll(moved[:, 0], 4, axis=-1))
    assert not np.any(document["tangent"]["hu"])


def test_npy(drifting: httpx.Client, water: NDArray[np.float32], moved: NDArray[np.float32]) -> None:
    several = npy(np.concatenate([water[None], moved]))
    answer = drifting.post(PATH, params={"steps": 6, "every": 3}, content=several, headers=NPY)
    assert answer.status_code == 200, answer.text
    tangent = np.load(io.BytesIO(answer.content))
    assert tangent.dtype == np.float32
    assert np.array_equal(tangent, np.stack([np.roll(moved, step, axis=-1) for step in (3, 6)], axis=1))
    told = ("Field", "Steps", "Method", "Error-Estimate", "Certified")
    assert {name: answer.headers[f"Mno-{name}"] for name in told} == {
        "Field": "h,hu,hv",
        "Steps": "3,6",
        "Method": "surrogate",
        "Error-Estimate": "null",
        "Certified": "false",
    }
    # one tangent has no axis of its own, channels may be named, and float64 stays
    exact = npy(np.stack([water[[0, 2, 1]], moved[0][[0, 2, 1]]]).astype(np.float64))
    answer = drifting.post(
        PATH, params={"steps": 5, "wrt": "log_h", "fields": "h,hv,hu"}, content=exact, headers=NPY
    )
    tangent = np.load(io.BytesIO(answer.content))
    assert tangent.dtype == np.float64
    expected = moved[0] * np.stack([water[0], np.ones_like(REST), np.ones_like(REST)])
    np.testing.assert_allclose(tangent, np.roll(expected, 5, axis=-1), rtol=1e-6)


BAD: list[tuple[dict[str, Any], int, str, str]] = [
    ({"steps": 0}, 422, "invalid-field", "steps"),
    ({"steps": None}, 422, "invalid-field", "steps"),
    ({"steps": 101}, 422, "invalid-field", "at most 100, got 101"),
    ({"every": 0}, 422, "invalid-field", "every"),
    ({"every": 6}, 422, "invalid-field", "no multiple of 6"),
    ({"start_step": -1}, 422, "invalid-field", "start_step"),
    ({"state": None}, 422, "invalid-field", "state: expected an object"),
    ({"state": {"h": [REST.tolist()]}}, 422, "invalid-field", "starts from one state"),
    ({"tangent": None}, 422, "invalid-field", "tangent: expected an object"),
    ({"tangent": REST.tolist()}, 422, "invalid-field", "tangent: expected an object"),
    ({"tangent": {}}, 422, "invalid-field", "got none"),
    ({"tangent": {"depth": REST.tolist()}}, 422, "invalid-field", "'depth'"),
    ({"tangent": {"h": [[1.0]]}}, 422, "invalid-field", "expected shape (16, 24)"),
    ({"cotangent": {"h": REST.tolist()}}, 422, "invalid-field", "'cotangent' is not an option"),
    ({"tolerance": 1e-6}, 409, "not-certifiable", "no adjoint of the reference solver"),
    ({"method": "adjoint"}, 501, "not-available-yet", "ask for surrogate"),
    ({"method": "hybrid"}, 422, "invalid-field", "method"),
    ({"wrt": "depth"}, 422, "invalid-field", "wrt: expected h or hu or hv or log_h"),
    ({"model": "shallow_water@7"}, 404, "unknown-model", "not loaded"),
]


@pytest.mark.parametrize(("changes", "status", "slug", "why"), BAD)
def test_what_is_refused(
    drifting: httpx.Client, changes: dict[str, Any], status: int, slug: str, why: str
) -> None:
    good = {"state": {"h": REST.tolist()}, "tangent": {"h": REST.tolist()}, "steps": 5}
    answer = drifting.post(PATH, json=good | changes)
    document = answer.json()
    assert (answer.status_code, document["type"]) == (status, slug), document
    assert why in document["detail"]


@pytest.mark.parametrize("shape", [(3, 16, 24), (1, 3, 16, 24), (2, 4, 16, 24), (2, 2, 3, 16, 24)])
def test_stacks_that_are_none_are_refused(drifting: httpx.Client, shape: tuple[int, ...]) -> None:
    answer = drifting.post(PATH, params={"steps": 5}, content=npy(np.ones(shape, np.float32)), headers=NPY)
    assert (answer.status_code, answer.json()["type"]) == (422, "invalid-field")


def test_it_is_listed(drifting: httpx.Client) -> None:
    described = drifting.get("/v1/problems/shallow_water").json()
    assert described["operations"] == ["rollout", "vjp", "jvp"]


def test_the_client_does_not_ask_for_what_makes_no_sense(water: NDArray[np.float32]) -> None:
    named = dict(zip(NAMES, water, strict=True))
    with Client("http://127.0.0.1:9") as client:
        for state, tangent in (({"h": water[0]}, named), (water, named), (named, {})):
            with pytest.raises(ValueError, match=r"^tangent: expected"):
                client.jvp("shallow_water", state, tangent, steps=3)
        with pytest.raises(ValueError, match="every: expected 1 or more, got 0"):
            client.jvp("shallow_water", water, water, steps=2, every=0)
        with pytest.raises(ValueError, match="every: expected steps with them"):
            client.jvp("darcy", water[0], water[0], every=2)
