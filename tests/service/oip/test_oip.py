"""Tensors, requests and models of the Open Inference Protocol, without a service around them."""

import contextlib
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import InvalidField, ServiceFault, TooLarge
from service.oip.http import Asked, _binary_head, binary_answer, binary_request
from service.oip.inference import InferResponse
from service.oip.model import describe, model_config
from service.oip.statistics import Statistics
from service.oip.tensor import Tensor, tensor_from_bytes, tensor_from_numbers, tensor_of
from service.options import Asker
from service.telemetry.timing import Timing
from service.versions.served import ServedVersion

ASKER = Asker("", "", 0.0)
DARCY = ServedVersion(name="d", version=3, problem="darcy", scheme="s", grids=((64, 32),))
DTYPES = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64}


@pytest.mark.parametrize("datatype", DTYPES)
def test_bytes_become_the_numbers_they_are(datatype: str) -> None:
    array = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(DTYPES[datatype])
    tensor = tensor_from_bytes("x", datatype, [2, 3, 4], array.tobytes())
    np.testing.assert_array_equal(tensor.array, array)
    assert tensor.shape == (2, 3, 4)


def test_bfloat16_is_the_upper_half_of_float32() -> None:
    # numbers whose lower half is zero
    exact = np.array([0.0, -0.0, 1.0, -1.5, np.inf, -np.inf, np.nan, 2.0**-133, 3 * 2.0**120], "f4")
    halves = (exact.view("u4") >> 16).astype("<u2")
    tensor = tensor_from_bytes("x", "BF16", [9], halves.tobytes())
    np.testing.assert_array_equal(tensor.array, exact)
    assert tensor.array.dtype == np.float32


@pytest.mark.parametrize(
    ("datatype", "shape", "size"),
    [
        ("FP32", [2, 2], 15),
        ("FP32", [2, 2], 17),
        ("FP32", [-2, -2], 16),
        ("FP32", [0, 4], 0),
        ("FP32", [2**32, 2**32], 16),
        ("FP32", [2**63, 2], 16),
        ("FP32", [2**62 + 1, 4], 16),
        ("FP32", [1] * 100, 4),
        ("FP32", [], 4),
        ("FP32", [2.0, 2], 16),
        ("FP32", [True, 4], 16),
        ("FP32", ["2", "2"], 16),
        ("INT8", [4], 4),
        ("BYTES", [4], 16),
        ("", [4], 16),
        ("x" * 1000, [4], 16),
    ],
)
def test_forged_tensors_are_refused_before_they_are_arrays(
    datatype: str, shape: list[Any], size: int
) -> None:
    with pytest.raises(InvalidField) as refusal:
        tensor_from_bytes("x", datatype, shape, b"\0" * size)
    assert len(str(refusal.value)) < 300


def test_numbers_are_flat_or_of_the_shape() -> None:
    flat, nested = np.arange(6.0), np.arange(6.0).reshape(2, 3)
    for numbers in (flat, nested):
        np.testing.assert_array_equal(tensor_from_numbers("x", "FP32", [2, 3], numbers).array, nested)
    for numbers, shape in ((flat, [2, 2]), (nested, [3, 2]), (nested, [2, -3])):
        with pytest.raises(InvalidField):
            tensor_from_numbers("x", "FP32", shape, numbers)


@pytest.mark.parametrize(
    "array",
    [
        np.ones(3, "f4"),
        np.ones((2, 2)),
        np.array([True, False]),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    ],
)
def test_an_answer_s_bytes_are_its_elements_in_order(array: np.ndarray) -> None:
    tensor = tensor_of("x", array)
    assert bytes(tensor.raw()) == array.tobytes()
    assert tensor.datatype in ("FP32", "FP64", "BOOL")


def request(document: dict[str, Any], data: bytes = b"", length: str | None = None) -> Asked:
    head = orjson.dumps(document)
    return binary_request("m", "", head + data, str(len(head)) if length is None else length, ASKER)


def tensor(**changes: Any) -> dict[str, Any]:
    known = {"name": "x", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}
    return {name: value for name, value in {**known, **changes}.items() if value is not None}


def test_inputs_take_their_bytes_in_their_order() -> None:
    entries = [tensor(), tensor(name="y", parameters=None, data=[5, 6]), tensor(name="z", datatype="FP64")]
    entries[2]["parameters"] = {"binary_data_size": 16}
    data = np.array([1, 2], "f4").tobytes() + np.array([3, 4], "f8").tobytes()
    asked = request(
        {"inputs": entries, "id": "7", "outputs": [{"name": "o", "parameters": {"binary_data": True}}]}, data
    )
    found = {name: each.array.tolist() for name, each in asked.request.inputs.items()}
    assert found == {"x": [1, 2], "y": [5, 6], "z": [3, 4]}
    assert (asked.request.id, asked.request.order.outputs, asked.chosen) == ("7", ("o",), {"o": True})


@pytest.mark.parametrize(
    ("document", "data"),
    [
        ({}, b""),
        ({"inputs": {}}, b""),
        ({"inputs": [1]}, b""),
        ({"inputs": [tensor()] * 65}, b"\0" * 8 * 65),
        ({"inputs": [tensor(), tensor()]}, b"\0" * 16),
        ({"inputs": [tensor()]}, b"\0" * 7),
        ({"inputs": [tensor()]}, b"\0" * 9),
        ({"inputs": [tensor(name=7)]}, b"\0" * 8),
        ({"inputs": [tensor(name="x" * 100)]}, b"\0" * 8),
        ({"inputs": [tensor(datatype=3)]}, b"\0" * 8),
        ({"inputs": [tensor(shape="2")]}, b"\0" * 8),
        ({"inputs": [tensor(shape=[-2])]}, b"\0" * 8),
        ({"inputs": [tensor(parameters={"binary_data_size": -8})]}, b"\0" * 8),
        ({"inputs": [tensor(parameters={"binary_data_size": 2**63})]}, b"\0" * 8),
        ({"inputs": [tensor(parameters={"binary_data_size": "8"})]}, b"\0" * 8),
        ({"inputs": [tensor(parameters={"binary_data_size": True})]}, b"\0" * 8),
        ({"inputs": [tensor(parameters=None)]}, b""),
        ({"inputs": [tensor(parameters=None, data="12")]}, b""),
        ({"inputs": [tensor(parameters=None, data=[1, "2"])]}, b""),
        ({"inputs": [tensor(parameters=None, data=[1])]}, b""),
        ({"inputs": [tensor(more=1)]}, b"\0" * 8),
        ({"inputs": [tensor()], "id": 7}, b"\0" * 8),
        ({"inputs": [tensor()], "parameters": []}, b"\0" * 8),
        ({"inputs": [tensor()], "parameters": {"a": None}}, b"\0" * 8),
        ({"inputs": [tensor()], "parameters": {str(n): n for n in range(99)}}, b"\0" * 8),
        ({"inputs": [tensor()], "outputs": [{"name": "o"}, {"name": "o"}]}, b"\0" * 8),
        ({"inputs": [tensor()], "outputs": [{"name": "o", "parameters": {"classification": 3}}]}, b"\0" * 8),
        ({"inputs": [tensor()], "outputs": [{}]}, b"\0" * 8),
        ({"inputs": [tensor()], "more": 1}, b"\0" * 8),
    ],
)
def test_a_bad_request_is_refused(document: dict[str, Any], data: bytes) -> None:
    with pytest.raises(InvalidField) as refusal:
        request(document, data)
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize("length", ["-1", "1e3", "", "x", "99999999999999", "10000", "²"])
def test_a_bad_length_of_the_json_is_refused(length: str) -> None:
    with pytest.raises(InvalidField):
        request({"inputs": [tensor()]}, b"\0" * 8, length)


def test_a_head_is_no_way_round_the_limits_on_json() -> None:
    head = orjson.dumps({"inputs": [tensor()]}).ljust(2**20 + 1)
    with pytest.raises(TooLarge, match="1048576 bytes"):
        binary_request("m", "", head + b"\0" * 8, str(len(head)), ASKER)
    assert binary_request("m", "", head[:-1] + b"\0" * 8, str(len(head) - 1), ASKER, 100).request.inputs


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, 150))
def test_no_bytes_break_the_reader(noise: bytes, place: int) -> None:
    head = orjson.dumps({"inputs": [tensor()]})
    good = head + b"\0" * 8
    for body in (noise, good[:place] + noise + good[place + len(noise) :]):
        for length in (None, str(len(head))):
            with contextlib.suppress(ServiceFault):
                binary_request("m", "", body, length, ASKER)


def test_outputs_are_bytes_or_numbers_as_the_client_likes() -> None:
    outputs = (Tensor("a", "FP32", np.array([1, np.nan], "f4")), Tensor("b", "BOOL", np.array([True])))
    response = InferResponse("m", "3", "7", outputs, 8, Timing(1, 2, 3, 6))
    for binary, chosen in ((False, {"a": True}), (True, {"b": False})):
        asked = request({"inputs": [tensor()]}, b"\0" * 8)
        headers, parts = binary_answer(response, Asked(asked.request, binary, chosen))
        head = orjson.loads(parts[0])
        assert (head["model_name"], head["model_version"], head["id"]) == ("m", "3", "7")
        assert headers["Inference-Header-Content-Length"] == str(len(parts[0]))
        assert head["outputs"][0]["parameters"] == {"binary_data_size": 8}
        assert head["outputs"][1]["data"] == [True]
        assert np.array_equal(np.frombuffer(parts[1], "f4"), [1, np.nan], equal_nan=True)
        assert headers["Mno-Batch-Size"] == "8"
    headers, parts = binary_answer(response, Asked(asked.request, False, {}))
    assert len(parts) == 1
    # no number is null, which is JSON
    assert orjson.loads(parts[0])["outputs"][0]["data"] == [1.0, None]


def kept(ask: Callable[[str], object]) -> int:
    """What is still held after some requests, each with a long text of its own [B]."""
    ask("usual")
    tracemalloc.start()
    try:
        for n in range(16):
            ask(chr(97 + n) * 2**19)
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_nothing_of_a_client_s_long_words_is_kept() -> None:
    outputs = (Tensor("a", "FP32", np.ones(2, "f4")),)

    def with_id(text: str) -> None:
        asked = request({"inputs": [tensor()], "id": text}, b"\0" * 8)
        head = orjson.loads(
            binary_answer(InferResponse("m", "3", text, outputs), Asked(asked.request, True, {}))[1][0]
        )
        assert (head["id"], head["outputs"][0]["parameters"]) == (text, {"binary_data_size": 8})

    def with_model(text: str) -> None:
        asked = request({"inputs": [tensor()], "parameters": {"model": text}}, b"\0" * 8)
        assert asked.request.order.to_solve(DARCY).options.model == text

    for ask in (with_id, with_model):
        assert kept(ask) < 2**20, ask.__name__


def test_an_id_does_not_push_out_what_is_remembered() -> None:
    outputs = (Tensor("a", "FP32", np.ones(2, "f4")),)
    asked = request({"inputs": [tensor()]}, b"\0" * 8)
    before = _binary_head.cache_info().currsize
    for n in range(10):
        binary_answer(InferResponse("only-here", "3", f"{n}", outputs), Asked(asked.request, True, {}))
    assert _binary_head.cache_info().currsize <= before + 1


def test_a_version_is_described_by_its_problem_and_grids() -> None:
    one = DARCY
    assert describe(one, ["3"]).document()["inputs"] == [
        {"name": "permeability", "datatype": "FP32", "shape": [-1, 64, 32]}
    ]
    several = one.model_copy(update={"grids": ((64, 32), (32, 32))})
    config = model_config(several, [3, 4], 16)
    assert config["input"][0]["dims"] == [-1, -1]
    assert config["version_policy"] == {"specific": {"versions": [3, 4]}}
    assert (config["max_batch_size"], config["parameters"]["grids"]) == (16, {"string_value": "64x32,32x32"})
    moving = one.model_copy(
        update={"problem": "shallow_water", "frames": 5, "history": 1, "walls": "outflow"}
    )
    shapes = {spec.name: spec.shape for spec in describe(moving, ()).outputs}
    assert shapes["h"] == (-1, 5, 64, 32)


def test_executions_are_counted_by_the_share_of_their_batches() -> None:
    statistics = Statistics()
    for rows in (1, 2, 1):
        statistics.answered("m", "1", rows=rows, batch=4, queue=0.1, compute=0.2, total=0.4)
    statistics.answered("m", "1", rows=2, batch=2, queue=0.0, compute=0.1, total=0.1)
    statistics.failed("m", "1", 0.5)
    told = statistics.document("m", "1")
    assert (told["inference_count"], told["execution_count"]) == (6, 2)
    assert told["inference_stats"]["success"] == {"count": 4, "ns": 1_300_000_000}
    assert told["inference_stats"]["fail"]["count"] == 1
    sizes = {entry["batch_size"]: entry["compute_infer"] for entry in told["batch_stats"]}
    assert sizes == {4: {"count": 1, "ns": 200_000_000}, 2: {"count": 1, "ns": 100_000_000}}
    assert statistics.document("m", "2")["inference_count"] == 0


def test_a_version_that_is_loaded_again_begins_anew() -> None:
    statistics = Statistics()
    for version in ("1", "2"):
        statistics.answered("darcy", version, rows=1, batch=1, queue=0.0, compute=0.1, total=0.2)
    statistics.forget("darcy", "1")
    statistics.forget("darcy", "3")
    counts = [statistics.document("darcy", each)["inference_count"] for each in ("1", "2")]
    assert counts == [0, 1]


def test_many_sizes_of_batches_are_counted_together() -> None:
    statistics = Statistics()
    for size in range(1, 500):
        statistics.answered("m", "1", rows=size, batch=size, queue=0, compute=0.1, total=0.1)
    told = statistics.document("m", "1")
    assert len(told["batch_stats"]) <= 64
    assert told["execution_count"] == 499
