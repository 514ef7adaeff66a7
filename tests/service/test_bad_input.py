"""Whatever is sent, the answer is the contract's problem document, and the service keeps serving."""

import gzip
import io
import json
import pickle
import socket
import zlib
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from service.client import Client, ServiceError

SOLVE = "/v1/problems/darcy/solve"
VJP = "/v1/problems/darcy/vjp"
JSON = {"Content-Type": "application/json"}
NPY = {"Content-Type": "application/x-npy"}


def field(**changes: float) -> list[list[float]]:
    """A good field [32, 32], except at ``y_x``."""
    values = np.ones((32, 32)).tolist()
    for place, value in changes.items():
        y, x = map(int, place.removeprefix("at_").split("_"))
        values[y][x] = value
    return values


def npy(array: NDArray[Any], *, allow_pickle: bool = False) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=allow_pickle)
    return stream.getvalue()


def of_shape(shape: tuple[int, ...]) -> bytes:
    """A float32 in so many axes; NumPy itself has at most 64."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue() + b"\0\0\x80\x3f"


def with_nan(*place: int) -> NDArray[Any]:
    array = np.ones((2, 32, 32), dtype=np.float32)
    array[place] = np.nan
    return array


@pytest.fixture(autouse=True)
def _still_serving(http: httpx.Client) -> Any:
    yield
    assert http.post(SOLVE, json={"permeability": field()}).status_code == 200


def problem(response: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = response.json()
    assert (document["type"], document["status"]) == (slug, status)
    assert document["detail"]
    assert document["request_id"] == response.headers["X-Request-Id"]
    assert "Traceback" not in response.text
    return document


@pytest.mark.parametrize(
    ("value", "rule", "index"),
    [
        (field(at_3_4=0.0), "exclusive_minimum", [3, 4]),
        (field(at_3_4=-1.0), "exclusive_minimum", [3, 4]),
        ([field(), field(at_5_6=-1.0)], "exclusive_minimum", [1, 5, 6]),
        ([*field()[:7], [1.0] * 31, *field()[8:]], "rectangular", [7]),
        ([*field()[:7], [1.0, 2.0, "3", *[1.0] * 29], *field()[8:]], "numbers", [7, 2]),
        ([*field()[:7], 5.0, *field()[8:]], "rectangular", [7]),
        ([*field()[:7], [*[1.0] * 31, None], *field()[8:]], "numbers", [7, 31]),
        ([*field()[:7], [*[1.0] * 31, [1.0]], *field()[8:]], "rectangular", [7, 31]),
        ([[True] * 32] * 32, "numbers", [0, 0]),
        ([[{}] * 8] * 8, "numbers", [0, 0]),
        ([[True, 1.0], [1.0, 1.0]], "numbers", [0, 0]),
        ([[[1.0, 1.0], [1.0, False]]], "numbers", [0, 1, 1]),
        ([[[[{}]]]], "rank", None),
        ([], "not empty", None),
        ([[], []], "not empty", None),
        ([1.0, 2.0], "rank", None),
        ([[field()]], "rank", None),
        (field()[:20], "grid", None),
        ("1", "numbers", None),
        (1.0, "numbers", None),
        (None, "numbers", None),
        (field(at_1_1=1e-60), "float32", [1, 1]),
        (field(at_1_1=1e60), "float32", [1, 1]),
    ],
)
def test_a_bad_field_names_field_rule_and_index(
    http: httpx.Client, value: Any, rule: str, index: Any
) -> None:
    document = problem(http.post(SOLVE, json={"permeability": value}), 422, "invalid-field")
    assert (document["field"], document["rule"], document["index"]) == ("permeability", rule, index)


@pytest.mark.parametrize(
    ("body", "where", "rule", "index"),
    [
        (npy(with_nan(1, 2, 3)), "permeability", "finite", [1, 2, 3]),
        (npy(np.full((32, 32), np.inf)), "permeability", "finite", [0, 0]),
        (npy(np.zeros((32, 32))), "permeability", "exclusive_minimum", [0, 0]),
        (npy(np.ones((32, 32), dtype=object), allow_pickle=True), "permeability", "dtype", None),
        (npy(np.ones((32, 32), dtype=complex)), "permeability", "dtype", None),
        (npy(np.ones((32, 32), dtype=bool)), "permeability", "dtype", None),
        (npy(np.ones((32, 32), dtype="U1")), "permeability", "dtype", None),
        (npy(np.ones((32, 32), dtype=[("a", "f4")])), "permeability", "dtype", None),
        (npy(np.ones((0, 32, 32))), "permeability", "not empty", None),
        (npy(np.ones(32)), "permeability", "rank", None),
        (npy(np.array(1.0)), "permeability", "rank", None),
        (npy(np.ones((1,) * 5)), "permeability", "rank", None),
        (of_shape((1,) * 65), "permeability", "rank", None),
        (of_shape((1,) * 1000), "permeability", "rank", None),
        (npy(np.ones((8, 8))), "permeability", "grid", None),
        (npy(np.ones((32, 32)))[:-1], "body", "npy", None),
        (npy(np.ones((32, 32))) + b"x", "body", "npy", None),
        (npy(np.ones((32, 32)))[:40], "body", "npy", None),
        (b"", "body", "npy", None),
        (pickle.dumps(np.ones((32, 32))), "body", "npy", None),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "body", "npy", None),
        (npy(np.ones((32, 32))).replace(b"(32, 32)", b"(-4,256)"), "permeability", "not empty", None),
        (npy(np.ones((32, 32))).replace(b"(32, 32), ", b"(99**99,),"), "body", "npy", None),
        (npy(np.ones((32, 32))).replace(b"(32, 32)", b"(9999**9"), "body", "npy", None),
    ],
)
def test_a_bad_npy_is_refused_unread(
    http: httpx.Client, body: bytes, where: str, rule: str, index: Any
) -> None:
    document = problem(http.post(SOLVE, content=body, headers=NPY), 422, "invalid-field")
    assert (document["field"], document["rule"], document["index"]) == (where, rule, index)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"permeability": [[1.0, 2',
        b'{"permeability": [[NaN]]}',
        b'{"permeability": [[Infinity]]}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"permeability": ' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"permeability": ' + b"[" * 1015 + b"]" * 1015 + b"}",
        b'{"permeability": ' + b'{"a":' * 400 + b"1" + b"}" * 400 + b"}",
        b'{"permeability": [' + b"[]," * 300_000 + b"[]]}",
        b'{"permeability": [' + b"{}," * 300_000 + b"{}]}",
    ],
)
def test_a_body_that_is_no_json_object_is_refused(http: httpx.Client, body: bytes) -> None:
    problem(http.post(SOLVE, content=body, headers=JSON), 422, "invalid-field")


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"source": "1"}, "source"),
        ({"source": None}, "source"),
        ({"source": [1.0]}, "source"),
        ({"source": True}, "source"),
        ({"source": 1e300}, "source"),
        ({"method": "magic"}, "method"),
        ({"error": "sure"}, "error"),
        ({"timeout_ms": 0}, "timeout_ms"),
        ({"timeout_ms": "5"}, "timeout_ms"),
        ({"model": 3}, "model"),
        ({"tolerance": "loose"}, "tolerance"),
        ({"sorce": 1.0}, "sorce"),
    ],
)
def test_a_bad_option_is_named(http: httpx.Client, options: dict[str, Any], where: str) -> None:
    document = problem(http.post(SOLVE, json={"permeability": field(), **options}), 422, "invalid-field")
    assert document["field"] == where


def test_a_misspelt_option_is_told_the_right_one(http: httpx.Client) -> None:
    document = problem(http.post(SOLVE, json={"permeability": field(), "sorce": 1}), 422, "invalid-field")
    assert "'source'" in document["detail"]
    missing = problem(http.post(SOLVE, json={}), 422, "invalid-field")
    assert (missing["field"], missing["rule"]) == ("permeability", "missing")


@pytest.mark.parametrize("query", ["source=nan", "source=inf", "source=x", "methd=solver", "timeout_ms=-1"])
def test_a_bad_query_is_refused(http: httpx.Client, query: str) -> None:
    response = http.post(f"{SOLVE}?{query}", content=npy(np.ones((32, 32))), headers=NPY)
    assert problem(response, 422, "invalid-field")["field"] == query.partition("=")[0]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"tolerance": 0}, "tolerance"),
        ({"tolerance": 2}, "tolerance"),
        ({"tolerance": "exact"}, "tolerance"),
        ({"tolerance": True}, "tolerance"),
        ({"tolerance": [1e-6]}, "tolerance"),
        ({"error": "exact"}, "error"),
        ({"method": "adjoint"}, "method"),
    ],
)
def test_what_no_answer_can_be_is_refused(http: httpx.Client, options: dict[str, Any], name: str) -> None:
    document = problem(http.post(SOLVE, json={"permeability": field(), **options}), 422, "invalid-field")
    assert document["field"] == name


@pytest.mark.parametrize("operation", ["jvp", "vjp", "quantities"])
def test_operations_on_nothing_are_refused(http: httpx.Client, operation: str) -> None:
    path = f"/v1/problems/darcy/{operation}"
    problem(http.post(path), 415, "unsupported-media-type")
    problem(http.post(path, json={}), 422, "invalid-field")
    problem(http.post(path, json={"permeability": field()}), 422, "invalid-field")
    problem(http.post("/v1/problems/darcy/nothing", json={}), 404, "not-found")


@pytest.mark.parametrize("key", ["tangent", "cotangent"])
def test_directions_of_different_shapes_are_refused(http: httpx.Client, key: str) -> None:
    path = f"/v1/problems/darcy/{'jvp' if key == 'tangent' else 'vjp'}"
    one, other = [[[1.0] * 32] * 32] * 2, [[[1.0] * 32] * 31] * 2
    body = {"permeability": [field()] * 2, key: [one, other]}
    assert problem(http.post(path, json=body), 422, "invalid-field")["rule"] == "shape"
    body = {"permeability": field(), key: [[[[1.0]]]]}
    problem(http.post(path, json=body), 422, "invalid-field")


ROLLOUT = "/v1/problems/shallow_water/rollout"


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        (SOLVE, {"Content-Type": "x" * 10_000}, 415),
        (VJP, {"Content-Type": "x" * 10_000}, 415),
        (ROLLOUT, {"Content-Type": "x" * 10_000}, 415),
        (SOLVE, {"Accept": "x" * 10_000}, 406),
        (ROLLOUT, {"Accept": "x" * 10_000}, 406),
        (SOLVE, {"Content-Encoding": "x" * 10_000}, 415),
        (f"/v1/problems/{'x' * 10_000}/solve", {}, 404),
        (f"/{'x' * 10_000}", {}, 404),
    ],
)
def test_what_is_refused_is_quoted_in_a_line(
    http: httpx.Client, path: str, headers: dict[str, str], status: int
) -> None:
    answer = http.post(path, content=b"1", headers=headers)
    assert answer.status_code == status
    assert len(answer.json()["detail"]) < 300


def test_unknown_names_are_404(http: httpx.Client) -> None:
    problem(http.get("/v1/problems/navier"), 404, "unknown-problem")
    problem(http.post("/v1/problems/navier/solve", json={}), 404, "unknown-problem")
    problem(http.get("/v1/models/navier"), 404, "unknown-model")
    problem(http.get("/v1/models/..%2fx"), 404, "not-found")
    problem(http.get("/v1/models/A%20b"), 404, "unknown-model")
    for model in ("darcy@9", "darcy@staging", "navier", "../x", ""):
        response = http.post(SOLVE, json={"permeability": field(), "model": model})
        problem(response, 404, "unknown-model")
    problem(http.get("/nowhere"), 404, "not-found")
    problem(http.post("/v1/problems/darcy/guess"), 404, "not-found")


def test_a_wrong_method_is_405(http: httpx.Client) -> None:
    response = http.get(SOLVE)
    problem(response, 405, "method-not-allowed")
    assert "POST" in response.headers["Allow"]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_other_media_types_are_415(http: httpx.Client, content_type: str) -> None:
    response = http.post(SOLVE, content=b"1", headers={"Content-Type": content_type})
    problem(response, 415, "unsupported-media-type")


def test_other_encodings_and_answers_are_refused(http: httpx.Client) -> None:
    body = json.dumps({"permeability": field()}).encode()
    problem(
        http.post(SOLVE, content=body, headers={**JSON, "Content-Encoding": "br"}),
        415,
        "unsupported-media-type",
    )
    problem(http.post(SOLVE, content=body, headers={**JSON, "Accept": "text/csv"}), 406, "not-acceptable")
    half = {**JSON, "Content-Encoding": "gzip"}
    problem(http.post(SOLVE, content=gzip.compress(body)[:-9], headers=half), 422, "invalid-field")
    problem(http.post(SOLVE, content=gzip.compress(body) + b"more", headers=half), 422, "invalid-field")
    problem(http.post(SOLVE, content=body, headers=half), 422, "invalid-field")


def test_too_much_is_413(http: httpx.Client) -> None:
    large = b"x" * (2**20 + 1)
    problem(http.post(SOLVE, content=large, headers=NPY), 413, "payload-too-large")
    # the length is not declared: the limit holds while the body streams in
    problem(http.post(SOLVE, content=iter([large]), headers=NPY), 413, "payload-too-large")
    bomb = gzip.compress(b" " * 2**26)
    problem(
        http.post(SOLVE, content=bomb, headers={**JSON, "Content-Encoding": "gzip"}), 413, "payload-too-large"
    )
    problem(http.post(SOLVE, content=npy(np.ones((9, 32, 32), "f2")), headers=NPY), 413, "payload-too-large")
    problem(http.post(SOLVE, content=npy(np.ones((65, 32), "f2")), headers=NPY), 413, "payload-too-large")


def test_a_client_that_hangs_up_within_its_body_does_no_harm(address: str) -> None:
    url = httpx.URL(address)
    with socket.create_connection((url.host, url.port)) as connection:
        connection.sendall(
            f"POST {SOLVE} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            "Content-Length: 1000\r\n\r\n{".encode()
        )


def test_a_deadline_that_cannot_be_met_is_504(http: httpx.Client) -> None:
    fields = np.random.default_rng(0).lognormal(size=(8, 64, 64)).astype(np.float32)
    response = http.post(f"{SOLVE}?method=solver&timeout_ms=0.001", content=npy(fields), headers=NPY)
    problem(response, 504, "deadline-exceeded")


def test_the_client_raises_the_problem(address: str) -> None:
    with Client(address) as client, pytest.raises(ServiceError, match="invalid-field") as refusal:
        client.solve("darcy", -np.ones((32, 32)))
    assert (refusal.value.status, refusal.value.type) == (422, "invalid-field")
    assert refusal.value.problem["index"] == [0, 0]


def test_more_rows_than_a_batch_may_have_are_refused_unparsed(http: httpx.Client) -> None:
    body = b'{"permeability": [' + b"[]," * 600 + b"[]]}"
    assert problem(http.post(SOLVE, content=body, headers=JSON), 422, "invalid-field")["rule"] == "rows"


def test_brackets_in_a_string_are_no_lists(http: httpx.Client) -> None:
    for model in ("[" * 600, '\\"[' * 600, "[" * 600 + "\\"):
        answer = http.post(SOLVE, json={"permeability": field(), "model": model})
        problem(answer, 404, "unknown-model")


def test_an_unsolvable_field_is_refused_and_names_its_place_in_the_batch(http: httpx.Client) -> None:
    extreme = np.where(np.random.default_rng(0).random((32, 32)) < 0.5, 1e-300, 1e300)
    body = npy(np.stack([np.ones((32, 32)), extreme]))
    document = problem(http.post(f"{SOLVE}?method=solver", content=body, headers=NPY), 422, "invalid-field")
    assert (document["field"], document["rule"], document["index"]) == ("permeability", "contrast", [1])


@pytest.mark.parametrize("method", ["surrogate", "solver"])
@pytest.mark.parametrize("contrast", [1e20, 1e32, 1e70])
def test_a_bound_that_is_sent_is_a_number(http: httpx.Client, method: str, contrast: float) -> None:
    k = np.where(np.random.default_rng(1).random((32, 32)) < 0.5, 1.0, contrast) / np.sqrt(contrast)
    response = http.post(SOLVE, json={"permeability": k.tolist(), "method": method})
    if response.status_code == 200:
        assert np.isfinite(response.json()["error"]["upper"])
    else:
        document = problem(response, 422, "invalid-field")
        assert document["rule"] in ("contrast", "finite", "float32")


def test_an_answer_whose_error_has_no_bound_is_refused_where_a_bound_is_wanted(http: httpx.Client) -> None:
    fields = np.ones((2, 32, 32))
    fields[1, 10] = 1e-200
    body, headers = npy(fields), {**NPY, "Accept": "application/x-npy"}
    document = problem(
        http.post(f"{SOLVE}?method=solver", content=body, headers=headers), 422, "invalid-field"
    )
    assert (document["field"], document["rule"], document["index"]) == ("permeability", "contrast", [1])
    assert http.post(f"{SOLVE}?method=solver&error=none", content=body, headers=headers).status_code == 200


def test_a_source_of_zero_has_an_exact_answer(http: httpx.Client) -> None:
    for method in ("surrogate", "solver"):
        answer = http.post(SOLVE, json={"permeability": field(), "source": 0.0, "method": method}).json()
        assert answer["error"]["upper"] == 0.0


def test_the_form_that_is_liked_best_is_sent(http: httpx.Client) -> None:
    headers = {"Accept": "image/png;q=0.8, application/json;q=0.9"}
    response = http.post(SOLVE, json={"permeability": field()}, headers=headers)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")


@pytest.mark.parametrize(
    "query", ["priority=urgent", "reproducible=perhaps", "&".join(f"a{n}=1" for n in range(60)), "=&="]
)
def test_bad_words_in_a_query_are_refused(http: httpx.Client, query: str) -> None:
    problem(http.post(f"{SOLVE}?{query}", content=npy(np.ones((32, 32))), headers=NPY), 422, "invalid-field")


INFER = "/v2/models/darcy/infer"


@pytest.mark.parametrize("path", [SOLVE, VJP, ROLLOUT, INFER])
def test_json_ten_thousand_deep_is_refused_everywhere(http: httpx.Client, path: str) -> None:
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        for body in (opening * 10_000 + b"1" + closing * 10_000, b'{"permeability": ' + opening * 10_000):
            assert http.post(path, content=body, headers=JSON).status_code in (400, 422)


@pytest.mark.parametrize(("coding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_bombs_are_refused_by_the_open_inference_protocol(
    http: httpx.Client, coding: str, compress: Callable[[bytes], bytes]
) -> None:
    headers = {"Content-Encoding": coding}
    bomb = http.post(INFER, content=compress(b" " * 2**26), headers=headers)
    assert (bomb.status_code, list(bomb.json())) == (413, ["error"])
    half = http.post(INFER, content=compress(b'{"inputs": []}')[:-3], headers=headers)
    assert half.status_code == 400


def test_json_is_not_sent_as_something_else(http: httpx.Client) -> None:
    json = b'{"inputs": []}'
    answer = http.post(INFER, content=json, headers=NPY)
    assert (answer.status_code, list(answer.json())) == (415, ["error"])


@pytest.mark.parametrize(
    "shape", [[-1, -1024], [2**32, 2**32], [2**62, 4], [0], [1024] * 9, [32, 33], ["32", 32], []]
)
def test_forged_shapes_are_refused_by_the_open_inference_protocol(
    http: httpx.Client, shape: list[Any]
) -> None:
    data = np.ones((32, 32), "f4").tobytes()
    parameters = {"binary_data_size": len(data)}
    tensor = {"name": "permeability", "datatype": "FP32", "shape": shape, "parameters": parameters}
    head = json.dumps({"inputs": [tensor]}).encode()
    for more in ({}, {"Content-Encoding": "identity"}):
        headers = {"Inference-Header-Content-Length": str(len(head)), **more}
        answer = http.post(INFER, content=head + data, headers=headers)
        assert (answer.status_code, list(answer.json())) == (400, ["error"]), answer.text
