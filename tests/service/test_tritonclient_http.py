"""The unmodified client of Triton, over HTTP, against a running service."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from numpy.typing import NDArray
from tritonclient.http import aio
from tritonclient.utils import InferenceServerException

TRUST = ["error_upper", "error_l2_estimate", "in_distribution"]
DATATYPES = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64}


@pytest.fixture
def client(address: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(address.removeprefix("http://"), concurrency=4) as client:
        yield client


@pytest.fixture
def waters(rollout_address: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(rollout_address.removeprefix("http://")) as client:
        yield client


def given(array: NDArray[Any], datatype: str, *, binary: bool = True, name: str = "permeability") -> Any:
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array.astype(DATATYPES[datatype]), binary_data=binary)
    return tensor


def wanted(*names: str, binary: bool = True) -> list[Any]:
    return [triton.InferRequestedOutput(name, binary_data=binary) for name in names]


def test_health_and_server_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("darcy")
    assert client.is_model_ready("darcy", "2")
    assert not client.is_model_ready("darcy", "9")
    assert not client.is_model_ready("nobody")
    server = client.get_server_metadata()
    assert server["name"] == "mno"
    assert {"binary_tensor_data", "model_repository", "statistics"} <= set(server["extensions"])


def test_metadata_and_configuration(client: triton.InferenceServerClient) -> None:
    metadata = client.get_model_metadata("darcy")
    assert (metadata["name"], metadata["versions"]) == ("darcy", ["1", "2"])
    assert metadata["inputs"] == [{"name": "permeability", "datatype": "FP32", "shape": [-1, -1, -1]}]
    assert [output["name"] for output in metadata["outputs"]] == ["pressure", *TRUST]
    assert client.get_model_metadata("darcy", "2") == metadata
    config = client.get_model_config("darcy")
    assert (config["name"], config["max_batch_size"]) == ("darcy", 8)
    assert config["input"][0] == {
        "name": "permeability",
        "data_type": "TYPE_FP32",
        "dims": [-1, -1],
        "optional": False,
    }
    assert "dynamic_batching" in config
    for call in (client.get_model_metadata, client.get_model_config, client.get_inference_statistics):
        with pytest.raises(InferenceServerException, match="nobody") as refusal:
            call("nobody")
        assert refusal.value.status() == "404"


@pytest.mark.parametrize(
    ("datatype", "into"),
    [("FP16", True), ("FP32", True), ("FP32", False), ("FP64", True), ("FP64", False)],
)
@pytest.mark.parametrize("out", [True, False])
def test_inference(
    client: triton.InferenceServerClient,
    permeability: NDArray[np.float32],
    datatype: str,
    into: bool,
    out: bool,
) -> None:
    field = permeability[0].astype(np.float16)
    result = client.infer(
        "darcy",
        [given(field, datatype, binary=into)],
        outputs=wanted("pressure", *TRUST, binary=out),
        request_id="seven",
    )
    answer = result.get_response()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("darcy", "1", "seven")
    pressure = result.as_numpy("pressure")
    assert pressure.shape == (32, 32)
    assert pressure.dtype == (np.float64 if datatype == "FP64" else np.float32)
    again = client.infer("darcy", [given(field, "FP64")], outputs=wanted("pressure"))
    np.testing.assert_allclose(pressure, again.as_numpy("pressure"), rtol=1e-6)
    assert 0 < result.as_numpy("error_upper")[0] < 10
    assert result.as_numpy("in_distribution").shape == (1,)


def test_all_outputs_are_sent_as_bytes_where_none_is_named(
    client: triton.InferenceServerClient, permeability: NDArray[np.float32]
) -> None:
    result = client.infer("darcy", [given(permeability, "FP32")], model_version="2")
    outputs = {output["name"]: output for output in result.get_response()["outputs"]}
    assert list(outputs) == ["pressure", *TRUST]
    assert all("binary_data_size" in output["parameters"] for output in outputs.values())
    assert result.as_numpy("pressure").shape == (3, 32, 32)
    assert result.as_numpy("error_upper").shape == (3, 1)
    assert result.as_numpy("in_distribution").dtype == np.bool_


def test_parameters_reach_the_solver(
    client: triton.InferenceServerClient, permeability: NDArray[np.float32]
) -> None:
    field, outputs = given(permeability[0], "FP32"), wanted("pressure")

    def pressure(**options: Any) -> NDArray[np.float32]:
        result: NDArray[np.float32] = client.infer("darcy", [field], outputs=outputs, **options).as_numpy(
            "pressure"
        )
        return result

    once = pressure()
    np.testing.assert_allclose(pressure(parameters={"source": 2.0}), 2 * once, rtol=1e-5)
    exact = pressure(parameters={"method": "solver"})
    assert not np.array_equal(exact, once)
    np.testing.assert_array_equal(pressure(priority=2, timeout=60_000_000), once)
    np.testing.assert_array_equal(
        pressure(parameters={"reproducible": True}), pressure(parameters={"reproducible": True})
    )


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"parameters": {"sorce": 1.0}}, "400"),
        ({"parameters": {"source": "much"}}, "400"),
        ({"parameters": {"tolerance": -1.0}}, "400"),
        ({"parameters": {"error": "none"}}, "400"),
        ({"sequence_id": 3, "sequence_start": True}, "400"),
        ({"timeout": 1}, "504"),
        ({"model_version": "9"}, "404"),
        ({"outputs": wanted("temperature")}, "400"),
        ({"outputs": [triton.InferRequestedOutput("pressure", class_count=3)]}, "400"),
    ],
)
def test_what_cannot_be_answered_is_said(
    client: triton.InferenceServerClient,
    permeability: NDArray[np.float32],
    options: dict[str, Any],
    status: str,
) -> None:
    options = {"outputs": wanted("pressure", "error_upper"), **options}
    with pytest.raises(InferenceServerException) as refusal:
        client.infer("darcy", [given(permeability[0], "FP32")], **options)
    assert refusal.value.status() == status
    assert refusal.value.message()


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(
    client: triton.InferenceServerClient, permeability: NDArray[np.float32], algorithm: str
) -> None:
    result = client.infer(
        "darcy",
        [given(permeability[0], "FP32")],
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    assert result.as_numpy("pressure").shape == (32, 32)


def test_asynchronous_inference(
    client: triton.InferenceServerClient, permeability: NDArray[np.float32]
) -> None:
    requests = [client.async_infer("darcy", [given(field, "FP32")]) for field in permeability]
    found = np.stack([request.get_result().as_numpy("pressure") for request in requests])
    together = client.infer("darcy", [given(permeability, "FP32")]).as_numpy("pressure")
    np.testing.assert_allclose(found, together, rtol=1e-4, atol=1e-6)


def test_statistics_count_what_was_answered(
    client: triton.InferenceServerClient, permeability: NDArray[np.float32]
) -> None:
    def counted() -> dict[str, Any]:
        (entry,) = client.get_inference_statistics("darcy", "2")["model_stats"]
        found: dict[str, Any] = entry
        return found

    before = counted()
    client.infer("darcy", [given(permeability, "FP32")], model_version="2")
    with pytest.raises(InferenceServerException):
        client.infer("darcy", [given(-permeability, "FP32")], model_version="2")
    after = counted()
    assert after["inference_count"] - before["inference_count"] == 3
    assert after["execution_count"] >= before["execution_count"]
    for name in ("success", "fail"):
        old, new = (entry["inference_stats"][name] for entry in (before, after))
        assert new["count"] - old["count"] == 1
        assert new["ns"] > old["ns"]
    every = client.get_inference_statistics()["model_stats"]
    assert {(entry["name"], entry["version"]) for entry in every} == {("darcy", "1"), ("darcy", "2")}


def test_repository(client: triton.InferenceServerClient) -> None:
    index = client.get_model_repository_index()
    states = {(entry["name"], entry["version"]): entry["state"] for entry in index}
    assert states["darcy", "1"] == states["darcy", "2"] == "READY"
    client.load_model("darcy")
    assert client.is_model_ready("darcy")
    for call in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="nobody") as refusal:
            call("nobody")
        assert refusal.value.status() == "404"
    with pytest.raises(InferenceServerException, match="never change"):
        client.load_model("darcy", config="{}")


def test_a_model_is_unloaded_and_loaded_again(
    client: triton.InferenceServerClient, permeability: NDArray[np.float32]
) -> None:
    client.unload_model("darcy@2")
    try:
        assert not client.is_model_ready("darcy", "2")
        with pytest.raises(InferenceServerException) as refusal:
            client.infer("darcy", [given(permeability[0], "FP32")], model_version="2")
        assert refusal.value.status() == "404"
        index = client.get_model_repository_index()
        states = {(entry["name"], entry["version"]): entry["state"] for entry in index}
        assert (states["darcy", "1"], states["darcy", "2"]) == ("READY", "UNAVAILABLE")
    finally:
        client.load_model("darcy@2")
    assert client.is_model_ready("darcy", "2")


def test_what_triton_has_and_this_service_has_not(client: triton.InferenceServerClient) -> None:
    assert client.get_trace_settings()["trace_level"] == ["OFF"]
    assert client.get_trace_settings("darcy")["trace_level"] == ["OFF"]
    assert client.get_log_settings()["log_error"] is True
    assert client.get_system_shared_memory_status() == []
    assert client.get_cuda_shared_memory_status() == []
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory()
    for refused, status in (
        (lambda: client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]}), "405"),
        (lambda: client.update_log_settings({"log_info": True}), "405"),
    ):
        with pytest.raises(InferenceServerException, match="not served here") as refusal:
            refused()
        assert refusal.value.status() == status
    for register in (
        lambda: client.register_system_shared_memory("a", "/a", 64),
        lambda: client.register_cuda_shared_memory("a", "YQ==", 0, 64),
    ):
        with pytest.raises(InferenceServerException, match="not supported; send binary tensors") as refusal:
            register()
        assert refusal.value.status() == "404"


def test_an_evolution_answers_with_a_block_of_frames(
    waters: triton.InferenceServerClient, water: NDArray[np.float32]
) -> None:
    metadata = waters.get_model_metadata("shallow_water")
    assert [entry["name"] for entry in metadata["inputs"]] == ["h", "hu", "hv"]
    shapes = {entry["name"]: entry["shape"] for entry in metadata["outputs"]}
    assert shapes == {
        "h": [-1, 4, -1, -1],
        "hu": [-1, 4, -1, -1],
        "hv": [-1, 4, -1, -1],
        "in_distribution": [-1, 1],
    }
    optional = {
        entry["name"]: entry["optional"] for entry in waters.get_model_config("shallow_water")["input"]
    }
    assert optional == {"h": False, "hu": True, "hv": True}
    inputs = [given(field, "FP32", name=name) for name, field in zip(("h", "hu", "hv"), water, strict=True)]
    result = waters.infer("shallow_water", inputs)
    frames = result.as_numpy("h")
    assert frames.shape == (4, 16, 24)
    np.testing.assert_allclose(frames[1], np.roll(water[0], 2, axis=-1), rtol=1e-6)
    batch = [
        given(np.stack([field, field]), "FP32", name=n)
        for n, field in zip(("h", "hu", "hv"), water, strict=True)
    ]
    assert waters.infer("shallow_water", batch).as_numpy("hu").shape == (2, 4, 16, 24)
    at_rest = waters.infer("shallow_water", inputs[:1])
    np.testing.assert_allclose(at_rest.as_numpy("h")[0], np.roll(water[0], 1, axis=-1), rtol=1e-6)
    with pytest.raises(InferenceServerException, match="rest is assumed"):
        waters.infer("shallow_water", inputs[:1], parameters={"start_step": 4})
    with pytest.raises(InferenceServerException, match="starts from 3 frames"):
        waters.infer("short", inputs)


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[aio.InferenceServerClient]:
    client = aio.InferenceServerClient(address.removeprefix("http://"))
    try:
        yield client
    finally:
        await client.close()


def test_the_asyncio_client(address: str, permeability: NDArray[np.float32]) -> None:
    async def story() -> None:
        async with connected(address) as client:
            checks: list[Callable[[], Coroutine[Any, Any, Any]]] = [
                client.is_server_live,
                client.is_server_ready,
                lambda: client.is_model_ready("darcy"),
                client.get_server_metadata,
                lambda: client.get_model_metadata("darcy"),
                lambda: client.get_model_config("darcy"),
                client.get_inference_statistics,
                client.get_model_repository_index,
                client.get_log_settings,
                client.get_trace_settings,
            ]
            assert all([await check() for check in checks])
            await client.load_model("darcy")
            asked = [client.infer("darcy", [given(field, "FP32")]) for field in permeability]
            answers = [answer.as_numpy("pressure") for answer in await asyncio.gather(*asked)]
            assert [answer.shape for answer in answers] == [(32, 32)] * 3
            as_json = await client.infer(
                "darcy",
                [given(permeability[0], "FP32", binary=False)],
                outputs=wanted("pressure", binary=False),
                request_compression_algorithm="gzip",
            )
            np.testing.assert_allclose(as_json.as_numpy("pressure"), answers[0], rtol=1e-4, atol=1e-6)
            with pytest.raises(InferenceServerException) as refusal:
                await client.infer("nobody", [given(permeability[0], "FP32")])
            assert refusal.value.status() == "404"
            with pytest.raises(InferenceServerException):
                await client.unload_model("nobody")

    asyncio.run(story())
