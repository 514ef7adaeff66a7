"""What HTTP has beside solutions and rollouts: gradients, compressed answers, health, metrics."""

import gzip
import io
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

SOLVE = "/v1/problems/darcy/solve"
VJP = "/v1/problems/darcy/vjp"
NPY = {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}


def npy(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_gradients_in_both_forms(http: httpx.Client, permeability: NDArray[np.float32]) -> None:
    field, cotangent = permeability[0], np.cos(permeability[1])
    said = {"wrt": "log_permeability", "model": "darcy"}
    body = {"permeability": field.tolist(), "cotangent": cotangent.tolist(), **said}
    answer = http.post(VJP, json=body)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["wrt"], told["model"], told["method"]) == ("log_permeability", "darcy@1", "surrogate")
    assert answer.headers["server-timing"].startswith("queue;dur=")
    named = http.post(VJP, json={**body, "cotangent": {"pressure": cotangent.tolist()}})
    np.testing.assert_allclose(named.json()["gradient"], told["gradient"], rtol=1e-4, atol=1e-7)
    raw = http.post(VJP, params=said, content=npy(np.stack([field, cotangent])), headers=NPY)
    assert raw.status_code == 200, raw.text
    assert raw.headers["Mno-Field"] == "log_permeability"
    np.testing.assert_allclose(np.load(io.BytesIO(raw.content)), told["gradient"], rtol=1e-4, atol=1e-7)


def test_a_gradient_predicts_what_a_small_change_does(
    http: httpx.Client, permeability: NDArray[np.float32]
) -> None:
    field = permeability[0].astype(np.float64)
    cotangent, change = np.cos(3 * field), np.sin(5 * field) * field
    pair = npy(np.stack([field, cotangent]))
    gradient = np.load(
        io.BytesIO(http.post(f"{VJP}?wrt=permeability&method=surrogate", content=pair, headers=NPY).content)
    )

    def weighed(step: float) -> float:
        path = f"{SOLVE}?error=none&reproducible=true"
        answer = http.post(path, content=npy(field + step * change), headers=NPY)
        return float((np.load(io.BytesIO(answer.content)) * cotangent).sum())

    step = 2.0**-6
    slope = (weighed(step) - weighed(-step)) / (2 * step)
    assert (gradient * change).sum() == pytest.approx(slope, rel=2e-2)


def test_gradients_of_a_batch(http: httpx.Client, permeability: NDArray[np.float32]) -> None:
    pair = np.stack([permeability, np.ones_like(permeability)])
    surrogate = f"{VJP}?method=surrogate"
    together = http.post(surrogate, content=npy(pair), headers=NPY)
    assert together.headers["Mno-In-Distribution"] == "[true,true,true]"
    alone = [http.post(surrogate, content=npy(pair[:, n]), headers=NPY).content for n in range(3)]
    found = np.stack([np.load(io.BytesIO(each)) for each in alone])
    # float32 sums of another order, which is felt where large contributions cancel
    scale = np.abs(found).max()
    np.testing.assert_allclose(np.load(io.BytesIO(together.content)), found, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"permeability": [[1.0]]}, 422),
        ({"permeability": np.ones((32, 32)).tolist(), "cotangent": 3}, 422),
        ({"permeability": np.ones((32, 32)).tolist(), "cotangent": [[1.0]]}, 422),
        (
            {"permeability": np.ones((32, 32)).tolist(), "cotangent": {"heat": np.ones((32, 32)).tolist()}},
            422,
        ),
        (
            {
                "permeability": np.ones((32, 32)).tolist(),
                "cotangent": np.ones((32, 32)).tolist(),
                "wrt": "heat",
            },
            422,
        ),
        (
            {
                "permeability": np.ones((32, 32)).tolist(),
                "cotangent": np.ones((32, 32)).tolist(),
                "method": "hybrid",
            },
            422,
        ),
        ({"permeability": np.ones((32, 32)).tolist(), "cotangent": np.ones((32, 32)).tolist(), "a": 1}, 422),
    ],
)
def test_a_bad_request_for_a_gradient_is_refused(
    http: httpx.Client, body: dict[str, Any], status: int
) -> None:
    answer = http.post(VJP, json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["detail"]


def test_bad_binary_gradients_are_refused(http: httpx.Client) -> None:
    for array in (np.ones((32, 32)), np.ones((1, 32, 32)), np.ones((2, 2, 2, 32, 32))):
        assert http.post(VJP, content=npy(array), headers=NPY).status_code == 422
    accept = {"Accept": "image/png"}
    assert http.post(VJP, json={"permeability": []}, headers=accept).status_code == 501
    assert http.post("/v1/problems/shallow_water/vjp", json={}).status_code == 422


def test_json_is_compressed_for_those_who_like_it(
    http: httpx.Client, permeability: NDArray[np.float32]
) -> None:
    body = {"permeability": permeability[0].tolist(), "reproducible": True}
    for accepted, packed in (
        ("gzip", True),
        ("br, gzip;q=0.5", True),
        ("identity", False),
        ("gzip;q=0", False),
    ):
        with http.stream("POST", SOLVE, json=body, headers={"Accept-Encoding": accepted}) as answer:
            raw = b"".join(answer.iter_raw())
        assert ("content-encoding" in answer.headers) == packed, accepted
        assert answer.headers["vary"] == "Accept-Encoding"
        assert answer.headers["mno-batch-size"].isdigit()
        assert (raw[:2] == b"\x1f\x8b") == packed
        plain = gzip.decompress(raw) if packed else raw
        assert plain.startswith(b'{"pressure":[[')
        assert int(answer.headers["content-length"]) == len(raw)


@pytest.mark.parametrize("path", ["/healthz/live", "/healthz/ready", "/docs", "/", "/openapi.json"])
def test_balancers_may_only_look(http: httpx.Client, path: str) -> None:
    looked, read = http.head(path), http.get(path)
    assert looked.status_code == read.status_code < 400
    assert looked.content == b""
    assert looked.headers["content-type" if read.content else "location"]
    assert looked.headers.get("content-length") == read.headers.get("content-length")


@pytest.mark.parametrize("path", ["/v1/problems/", "/healthz/live/", "/docs/", "/v1/problems/darcy/"])
def test_nobody_is_sent_to_where_a_header_says(http: httpx.Client, path: str) -> None:
    answer = http.get(path, headers={"Host": "evil.example"})
    assert (answer.status_code, answer.json()["type"]) == (404, "not-found")
    assert "location" not in answer.headers


def test_readiness_says_why(http: httpx.Client) -> None:
    assert http.get("/healthz/live").json() == {"status": "live"}
    assert http.get("/healthz/ready").json() == {"status": "ready", "problems": []}
    assert http.get("/v2/health/ready").json() == {"ready": True}


def test_metrics_are_for_prometheus(http: httpx.Client, permeability: NDArray[np.float32]) -> None:
    http.post(SOLVE, json={"permeability": permeability[0].tolist()})
    http.get("/nowhere/at/all")
    answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert 'route="/v1/problems/{problem}/solve"' in answer.text
    assert 'route="unknown"' in answer.text
    assert "/nowhere" not in answer.text


def test_priorities_and_reproducible_answers_in_both_forms(
    http: httpx.Client, permeability: NDArray[np.float32]
) -> None:
    field = permeability[0]
    raw = http.post(f"{SOLVE}?priority=bulk&reproducible=true", content=npy(field), headers=NPY)
    options = {"priority": "interactive", "reproducible": True}
    told = http.post(SOLVE, json={"permeability": field.tolist(), **options})
    np.testing.assert_array_equal(np.load(io.BytesIO(raw.content)), np.float32(told.json()["pressure"]))
