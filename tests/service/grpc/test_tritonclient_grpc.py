"""Triton's own client, as it comes from PyPI: every call that it makes over gRPC, but shared memory."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

TIMEOUT = 60


@pytest.fixture
def client(grpc_address: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(grpc_address) as client:
        yield client


@pytest.fixture
def water_client(water_address: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(water_address) as client:
        yield client


def inputs(
    module: Any, array: NDArray[Any], name: str = "permeability", datatype: str = "FP32"
) -> list[triton.InferInput]:
    given = module.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array)
    return [given]


def test_health(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live(client_timeout=TIMEOUT)
    assert client.is_server_ready(client_timeout=TIMEOUT)
    assert client.is_model_ready("darcy")
    assert client.is_model_ready("darcy", "2")
    assert not client.is_model_ready("darcy", "7")
    assert not client.is_model_ready("heat")


def test_metadata(client: triton.InferenceServerClient) -> None:
    server = client.get_server_metadata(as_json=True)
    assert server["name"] == "mno"
    assert "model_repository" in server["extensions"]
    model = client.get_model_metadata("darcy", as_json=True)
    assert model["name"] == "darcy"
    assert model["versions"] == ["1", "2"]
    (given,) = model["inputs"]
    assert (given["name"], given["datatype"], given["shape"]) == ("permeability", "FP32", ["-1", "-1", "-1"])
    assert "pressure" in [output["name"] for output in model["outputs"]]


def test_config(client: triton.InferenceServerClient) -> None:
    config = client.get_model_config("darcy", "1").config
    assert config.name == "darcy"
    assert config.max_batch_size == 8
    assert [each.name for each in config.input] == ["permeability"]
    assert list(config.input[0].dims) == [-1, -1]
    assert config.dynamic_batching.priority_levels == 2
    assert not config.model_transaction_policy.decoupled


def test_inference(client: triton.InferenceServerClient, permeability: NDArray[np.float32]) -> None:
    wanted = [triton.InferRequestedOutput("pressure")]
    result = client.infer(
        "darcy", inputs(triton, permeability), outputs=wanted, request_id="my id", client_timeout=TIMEOUT
    )
    pressure = result.as_numpy("pressure")
    assert pressure.shape == permeability.shape
    assert pressure.dtype == np.float32
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("my id", "darcy", "1")
    assert result.as_numpy("error_upper") is None
    doubled = client.infer("darcy", inputs(triton, permeability), parameters={"source": 2.0})
    assert np.allclose(doubled.as_numpy("pressure"), 2 * pressure, rtol=1e-4, atol=1e-6)
    assert doubled.as_numpy("error_upper").shape == (3, 1)


def test_an_output_is_sent_once(
    client: triton.InferenceServerClient, permeability: NDArray[np.float32]
) -> None:
    # else a request of some bytes gets as many fields as it likes
    wanted = [triton.InferRequestedOutput("pressure")] * 2
    with pytest.raises(InferenceServerException, match="once"):
        client.infer("darcy", inputs(triton, permeability), outputs=wanted, client_timeout=TIMEOUT)


@pytest.mark.parametrize(("datatype", "dtype"), [("FP64", np.float64), ("FP16", np.float16)])
def test_datatypes(
    client: triton.InferenceServerClient, permeability: NDArray[np.float32], datatype: str, dtype: type
) -> None:
    given = permeability.astype(dtype)
    result = client.infer("darcy", inputs(triton, given, datatype=datatype), priority=2, timeout=60_000_000)
    assert result.as_numpy("pressure").dtype == (np.float64 if datatype == "FP64" else np.float32)


def test_bfloat16(client: triton.InferenceServerClient, permeability: NDArray[np.float32]) -> None:
    # its upper half is what float32 has; the client's own way needs a package for this dtype
    halves = (permeability.view(np.uint32) >> 16).astype(np.uint16)
    request = triton.service_pb2.ModelInferRequest(model_name="darcy", raw_input_contents=[halves.tobytes()])
    request.inputs.add(name="permeability", datatype="BF16", shape=permeability.shape)
    request.outputs.add(name="pressure")
    response = client._client_stub.ModelInfer(request, timeout=TIMEOUT)
    rounded = (halves.astype(np.uint32) << 16).view(np.float32)
    same = client.infer("darcy", inputs(triton, rounded), outputs=[triton.InferRequestedOutput("pressure")])
    assert response.raw_output_contents[0] == same.as_numpy("pressure").tobytes()


def test_compression(client: triton.InferenceServerClient, permeability: NDArray[np.float32]) -> None:
    plain = client.infer("darcy", inputs(triton, permeability)).as_numpy("pressure")
    for algorithm in ("gzip", "deflate"):
        packed = client.infer("darcy", inputs(triton, permeability), compression_algorithm=algorithm)
        assert np.array_equal(packed.as_numpy("pressure"), plain)


def test_typed_contents(client: triton.InferenceServerClient, permeability: NDArray[np.float32]) -> None:
    plain = client.infer("darcy", inputs(triton, permeability[0]))
    # the client has no call for them: its stub does
    request = triton.service_pb2.ModelInferRequest(model_name="darcy")
    given = request.inputs.add(name="permeability", datatype="FP32", shape=[32, 32])
    given.contents.fp32_contents.extend(permeability[0].ravel().tolist())
    response = client._client_stub.ModelInfer(request, timeout=TIMEOUT)
    assert response.raw_output_contents[0] == plain.get_response().raw_output_contents[0]


def test_errors(client: triton.InferenceServerClient, permeability: NDArray[np.float32]) -> None:
    cases: list[tuple[str, str, dict[str, Any]]] = [
        ("heat", "NOT_FOUND", {}),
        ("darcy", "NOT_FOUND", {"model_version": "7"}),
        ("darcy", "INVALID_ARGUMENT", {"inputs": inputs(triton, -permeability)}),
        ("darcy", "INVALID_ARGUMENT", {"inputs": inputs(triton, permeability, name="conductivity")}),
        ("darcy", "INVALID_ARGUMENT", {"inputs": []}),
        ("darcy", "INVALID_ARGUMENT", {"outputs": [triton.InferRequestedOutput("velocity")]}),
        ("darcy", "INVALID_ARGUMENT", {"parameters": {"sauce": 1.0}}),
        ("darcy", "INVALID_ARGUMENT", {"sequence_id": 5, "sequence_start": True}),
    ]
    for model, status, options in cases:
        with pytest.raises(InferenceServerException) as refused:
            client.infer(model, **({"inputs": inputs(triton, permeability)} | options))
        assert refused.value.status() == f"StatusCode.{status}"
    with pytest.raises(InferenceServerException, match="7"):
        client.get_model_metadata("darcy", "7")


def test_a_timeout_is_kept(client: triton.InferenceServerClient, permeability: NDArray[np.float32]) -> None:
    with pytest.raises(InferenceServerException) as late:
        client.infer("darcy", inputs(triton, permeability), client_timeout=1e-6)
    assert late.value.status() == "StatusCode.DEADLINE_EXCEEDED"


def test_async_inference(client: triton.InferenceServerClient, permeability: NDArray[np.float32]) -> None:
    results: queue.Queue[tuple[Any, Any]] = queue.Queue()
    for number in range(5):
        client.async_infer(
            "darcy",
            inputs(triton, permeability),
            callback=lambda result, error: results.put((result, error)),
            request_id=str(number),
        )
    got = [results.get(timeout=TIMEOUT) for _ in range(5)]
    assert all(error is None for _, error in got)
    assert sorted(result.get_response().id for result, _ in got) == list("01234")
    canceled: queue.Queue[tuple[Any, Any]] = queue.Queue()
    call = client.async_infer(
        "darcy", inputs(triton, permeability), callback=lambda result, error: canceled.put((result, error))
    )
    call.cancel()
    result, error = canceled.get(timeout=TIMEOUT)
    # the answer may have been quicker
    assert (error is None) == (result is not None)
    assert error is None or error.status() == "StatusCode.CANCELLED"


def put(results: queue.Queue[tuple[Any, Any]], result: Any, error: Any) -> None:
    results.put((result, error))


def test_a_stream_goes_on_after_an_error(
    client: triton.InferenceServerClient, permeability: NDArray[np.float32]
) -> None:
    results: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(partial(put, results))
    for number in range(6):
        given = -permeability if number == 2 else permeability
        client.async_stream_infer("darcy", inputs(triton, given), request_id=str(number))
    got = [results.get(timeout=TIMEOUT) for _ in range(6)]
    client.stop_stream()
    (error,) = [error for _, error in got if error is not None]
    assert "must exceed" in str(error)
    answered = [result for result, error in got if error is None]
    assert sorted(result.get_response().id for result in answered) == ["0", "1", "3", "4", "5"]
    assert all(result.as_numpy("pressure").shape == permeability.shape for result in answered)


def test_a_final_response_is_marked_where_it_is_asked_for(
    client: triton.InferenceServerClient, permeability: NDArray[np.float32]
) -> None:
    results: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(partial(put, results))
    client.async_stream_infer("darcy", inputs(triton, permeability), enable_empty_final_response=True)
    result, error = results.get(timeout=TIMEOUT)
    client.stop_stream()
    assert error is None
    assert result.get_response().parameters["triton_final_response"].bool_param


def test_a_rollout_is_a_stream_of_responses(
    water_client: triton.InferenceServerClient, water: NDArray[np.float32]
) -> None:
    results: queue.Queue[tuple[Any, Any]] = queue.Queue()
    given = [
        each
        for name, field in zip(("h", "hu", "hv"), water, strict=True)
        for each in inputs(triton, field, name)
    ]
    before = water_client.get_inference_statistics("shallow_water").model_stats[0]
    water_client.start_stream(partial(put, results))
    water_client.async_stream_infer(
        "shallow_water",
        given,
        request_id="r",
        parameters={"steps": 6, "every": 2},
        enable_empty_final_response=True,
    )
    responses = [results.get(timeout=TIMEOUT) for _ in range(4)]
    water_client.stop_stream()
    assert all(error is None for _, error in responses)
    *frames, last = [result for result, _ in responses]
    assert [frame.get_response().parameters["step"].int64_param for frame in frames] == [2, 4, 6]
    for frame, step in zip(frames, (2, 4, 6), strict=True):
        assert np.array_equal(frame.as_numpy("h"), np.roll(water[0], step, axis=1))
        assert not frame.get_response().parameters["triton_final_response"].bool_param
    assert last.get_response().parameters["triton_final_response"].bool_param
    assert not last.get_response().outputs
    (counted,) = water_client.get_inference_statistics("shallow_water").model_stats
    assert counted.inference_count == before.inference_count + 1
    assert counted.inference_stats.success.count == before.inference_stats.success.count + 1
    assert counted.inference_stats.compute_infer.ns > before.inference_stats.compute_infer.ns
    block = water_client.infer("shallow_water", given)
    assert block.as_numpy("h").shape == (4, 16, 24)


def test_statistics(client: triton.InferenceServerClient, permeability: NDArray[np.float32]) -> None:
    before = client.get_inference_statistics("darcy", "2").model_stats[0].inference_stats.success.count
    client.infer("darcy", inputs(triton, permeability), model_version="2")
    (after,) = client.get_inference_statistics("darcy", "2").model_stats
    assert after.inference_stats.success.count == before + 1
    assert after.inference_stats.compute_infer.ns > 0
    assert len(client.get_inference_statistics().model_stats) == 2


def test_the_repository(client: triton.InferenceServerClient, permeability: NDArray[np.float32]) -> None:
    index = client.get_model_repository_index()
    assert ("darcy", "1", "READY") in [(each.name, each.version, each.state) for each in index.models]
    client.load_model("darcy")
    assert client.is_model_ready("darcy")
    with pytest.raises(InferenceServerException) as unknown:
        client.load_model("heat")
    assert unknown.value.status() == "StatusCode.NOT_FOUND"
    client.unload_model("darcy@2")
    assert not client.is_model_ready("darcy", "2")
    client.load_model("darcy@2")
    assert client.is_model_ready("darcy", "2")
    client.infer("darcy", inputs(triton, permeability), model_version="2")


def test_settings_can_be_read_and_not_changed(client: triton.InferenceServerClient) -> None:
    assert client.get_trace_settings(as_json=True) == {}
    assert client.get_log_settings(as_json=True) == {}
    for change in (
        lambda: client.update_trace_settings(settings={"trace_level": "OFF"}),
        lambda: client.update_log_settings({"log_info": True}),
    ):
        with pytest.raises(InferenceServerException) as refused:
            change()
        assert refused.value.status() == "StatusCode.UNIMPLEMENTED"


def test_shared_memory_is_not_served(client: triton.InferenceServerClient) -> None:
    assert not client.get_system_shared_memory_status().regions
    assert not client.get_cuda_shared_memory_status().regions
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory()
    for register in (
        lambda: client.register_system_shared_memory("a", "/a", 64),
        lambda: client.register_cuda_shared_memory("a", b"YQ==", 0, 64),
    ):
        with pytest.raises(InferenceServerException, match="send binary tensors") as refused:
            register()
        assert refused.value.status() == "StatusCode.UNIMPLEMENTED"


def test_the_asynchronous_client(grpc_address: str, permeability: NDArray[np.float32]) -> None:
    async def story() -> None:
        async with triton_aio.InferenceServerClient(grpc_address) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("darcy")
            assert (await client.get_model_metadata("darcy")).name == "darcy"
            assert (await client.get_model_config("darcy")).config.name == "darcy"
            assert (await client.get_server_metadata()).name == "mno"
            assert (await client.get_inference_statistics("darcy")).model_stats
            assert (await client.get_model_repository_index()).models
            given = inputs(triton_aio, permeability)
            results = await asyncio.gather(
                *(client.infer("darcy", given, request_id=str(n)) for n in range(8))
            )
            assert [result.get_response().id for result in results] == [str(n) for n in range(8)]

            async def requests() -> Any:
                for number in range(4):
                    wrong = inputs(triton_aio, -permeability)
                    yield {
                        "model_name": "darcy",
                        "inputs": wrong if number == 1 else given,
                        "request_id": str(number),
                    }

            got = [pair async for pair in client.stream_infer(requests())]
            assert sorted(result.get_response().id for result, error in got if error is None) == [
                "0",
                "2",
                "3",
            ]
            assert len([error for _, error in got if error is not None]) == 1
            with pytest.raises(InferenceServerException):
                await client.infer("heat", given)
            with pytest.raises(InferenceServerException) as late:
                await client.infer("darcy", given, client_timeout=1e-6)
            assert late.value.status() == "StatusCode.DEADLINE_EXCEEDED"

    asyncio.run(story())
