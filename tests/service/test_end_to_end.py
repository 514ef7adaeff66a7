"""A real server, asked over the network: served equals published; an outside solver confirms the bound."""

import gzip
import io
import json
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.linalg import spsolve

from operators import Surrogate
from service.client import Client, ErrorEstimate

SOLVE = "/v1/problems/darcy/solve"
NPY = {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}


def npy(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def published(surrogate: Surrogate, fields: NDArray[Any], source: float = 1.0) -> NDArray[np.float32]:
    """What the published surrogate says when called directly, with as many threads as the service has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            inputs = torch.from_numpy(fields.astype(np.float32))[:, None]
            return np.asarray(surrogate(inputs, torch.full((len(fields),), source))[:, 0])
    finally:
        torch.set_num_threads(threads)


def stencil(k: NDArray[np.float64]) -> tuple[coo_array, NDArray[np.float64]]:
    """Matrix and right-hand side of ``tpfa-harmonic-v1`` on the unit square, assembled face by face."""
    ny, nx = k.shape
    rows, columns, values = [], [], []

    def add(row: int, column: int, value: float) -> None:
        rows.append(row), columns.append(column), values.append(value)

    for j in range(ny):
        for i in range(nx):
            cell = j * nx + i
            for jj, ii, ratio in (
                (j, i + 1, nx / ny),
                (j, i - 1, nx / ny),
                (j + 1, i, ny / nx),
                (j - 1, i, ny / nx),
            ):
                if 0 <= jj < ny and 0 <= ii < nx:
                    t = ratio * 2 * k[j, i] * k[jj, ii] / (k[j, i] + k[jj, ii])
                    add(cell, cell, t)
                    add(cell, jj * nx + ii, -t)
                else:
                    add(cell, cell, ratio * 2 * k[j, i])
    size = ny * nx
    return coo_array((values, (rows, columns)), shape=(size, size)).tocsr(), np.full(size, 1 / size)


def relative_energy_error(k: NDArray[Any], pressure: NDArray[Any], source: float) -> float:
    """Of ``pressure`` against a direct solution."""
    matrix, unit = stencil(k.astype(np.float64))
    exact = spsolve(matrix, source * unit)
    error = pressure.astype(np.float64).ravel() - exact
    return float(np.sqrt(error @ (matrix @ error) / (exact @ (matrix @ exact))))


def test_json_answers_what_the_contract_says(
    http: httpx.Client, surrogate: Surrogate, permeability: NDArray[np.float32]
) -> None:
    response = http.post(SOLVE, json={"permeability": permeability[0].tolist(), "model": "darcy@production"})
    assert response.status_code == 200, response.text
    answer = response.json()
    assert set(answer) == {
        *("pressure", "model", "method", "operator", "error", "in_distribution", "certified", "iterations"),
        *("ood_score", "explanation", "timing_ms"),
    }
    assert (answer["model"], answer["method"], answer["operator"]) == (
        "darcy@1",
        "surrogate",
        "tpfa-harmonic-v1",
    )
    assert set(answer["error"]) == {
        *("kind", "norm", "lower", "upper", "l2_estimate", "steps", "reference"),
    }
    assert (answer["error"]["kind"], answer["error"]["norm"]) == ("guaranteed", "energy")
    assert answer["in_distribution"] is True
    assert answer["certified"] is False
    assert answer["iterations"] == 0
    assert set(answer["timing_ms"]) == {"queue", "compute", "certify", "total"}
    assert sum(answer["timing_ms"].values()) < 2.01 * answer["timing_ms"]["total"]
    expected = published(surrogate, permeability[:1])[0]
    assert np.array_equal(np.array(answer["pressure"], dtype=np.float32), expected)


def test_npy_carries_everything_else_in_headers(
    http: httpx.Client, surrogate: Surrogate, permeability: NDArray[np.float32]
) -> None:
    response = http.post(
        SOLVE, content=npy(permeability), headers=NPY, params={"source": 2.5, "model": "darcy@2"}
    )
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-npy"
    pressure = np.load(io.BytesIO(response.content), allow_pickle=False)
    assert pressure.dtype == np.float32
    assert np.array_equal(pressure, published(surrogate, permeability, 2.5))
    assert response.headers["Mno-Model"] == "darcy@2"
    assert len(json.loads(response.headers["Mno-Error-Estimate"])["upper"]) == 3
    assert json.loads(response.headers["Mno-In-Distribution"]) == [True, True, True]
    assert response.headers["Mno-Certified"] == "false"
    assert "compute;dur=" in response.headers["Server-Timing"]
    assert response.headers["X-Request-Id"]


@pytest.mark.parametrize("method", ["surrogate", "solver"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("source", [1.0, -3.0])
def test_the_bound_dominates_the_true_error(
    address: str, permeability: NDArray[np.float32], method: str, dtype: type, source: float
) -> None:
    fields = permeability.astype(dtype)
    with Client(address) as client:
        answer = client.solve("darcy", fields, method=method, source=source)
    assert answer.pressure.dtype == dtype
    for field, pressure, error in zip(fields, answer.pressure, answer.error, strict=True):
        true = relative_energy_error(field, pressure, source)
        assert error.lower <= true <= error.upper
        # not merely safe: near the truth for the surrogate; for the solver it is the rounding that counts
        assert error.upper < (2 * true if method == "surrogate" else 1e-4)


def test_the_reference_solver_takes_grids_that_the_surrogate_does_not(address: str) -> None:
    field = np.random.default_rng(0).lognormal(size=(12, 20))
    with Client(address) as client:
        answer = client.solve("darcy", field, method="solver")
    assert answer.model is None
    assert (answer.method, answer.in_distribution) == ("solver", True)
    assert answer.pressure.shape == (12, 20)
    assert answer.iterations > 0
    assert relative_energy_error(field, answer.pressure, 1.0) < 1e-8


def test_the_client_gives_one_field_for_one_field(
    address: str, surrogate: Surrogate, permeability: NDArray[np.float32]
) -> None:
    with Client(address) as client:
        answer = client.solve("darcy", permeability[1], error="bound")
        bare = client.solve("darcy", permeability[1], error="none")
    assert np.array_equal(answer.pressure, published(surrogate, permeability[1:2])[0])
    assert isinstance(answer.error, ErrorEstimate)
    assert bare.error is None
    assert answer.model == "darcy@1"
    assert answer.timing_ms["total"] > 0


def test_the_answer_scales_with_the_source(address: str, permeability: NDArray[np.float32]) -> None:
    with Client(address) as client:
        one, two = (client.solve("darcy", permeability[0], source=source) for source in (1.0, 2.0))
        none = client.solve("darcy", permeability[0], source=0.0)
    assert np.array_equal(two.pressure, 2 * one.pressure)
    assert not none.pressure.any()


def test_a_contrast_outside_the_training_hull_is_flagged(
    address: str, permeability: NDArray[np.float32]
) -> None:
    fields = np.stack([permeability[0], permeability[0] ** 3])
    with Client(address) as client:
        assert list(client.solve("darcy", fields).in_distribution) == [True, False]


def test_integers_float16_and_fortran_order_are_read(address: str, permeability: NDArray[np.float32]) -> None:
    whole = np.ceil(permeability[0]).astype(np.int32)
    with Client(address) as client:
        expected = client.solve("darcy", whole.astype(np.float32)).pressure
        for array in (whole, whole.astype(np.float16), whole.astype(">f4"), np.asfortranarray(whole)):
            answer = client.solve("darcy", array).pressure
            assert answer.dtype == np.float32
            assert np.array_equal(answer, expected)


def test_gzip_bodies_are_read(http: httpx.Client, permeability: NDArray[np.float32]) -> None:
    body = gzip.compress(json.dumps({"permeability": permeability[0].tolist()}).encode())
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert http.post(SOLVE, content=body, headers=headers).status_code == 200


def test_the_catalog_names_what_a_client_needs(http: httpx.Client) -> None:
    problem = http.get("/v1/problems/darcy").json()
    assert problem == http.get("/v1/problems").json()["problems"][0]
    assert problem["equation"]
    assert problem["inputs"][0]["name"] == "permeability"
    assert problem["inputs"][0]["exclusive_minimum"] == 0
    assert problem["grids"]["surrogate"] == [[32, 32], [32, 48]]
    assert set(problem["models"]) == {"darcy@1", "darcy@2"}
    (summary,) = (model for model in http.get("/v1/models").json()["models"] if model["name"] == "darcy")
    assert summary["aliases"] == {"production": 1}
    assert summary["loaded"] == [1, 2]
    assert http.get("/v1/models/darcy").json()["cards"]["1"]["scheme"] == "tpfa-harmonic-v1"


def test_health_and_pages(http: httpx.Client) -> None:
    assert http.get("/healthz/live").status_code == 200
    assert http.get("/healthz/ready").status_code == 200
    assert SOLVE.replace("darcy", "{problem}") in http.get("/openapi.json").json()["paths"]
    page = http.get("/docs").text
    assert "/v1/problems/{problem}/solve" in page
    assert "//" not in page.replace("http://", "")  # nothing from another host


def test_the_caller_s_request_id_comes_back(http: httpx.Client) -> None:
    assert http.get("/healthz/live", headers={"X-Request-Id": "abc-1"}).headers["X-Request-Id"] == "abc-1"
    forged = http.get("/healthz/live", headers={"X-Request-Id": "a b"}).headers["X-Request-Id"]
    assert forged != "a b"
