"""Rollouts over the network: streamed equals published, known to be whole, resumable, in both encodings."""

import asyncio
import gzip
import io
import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model_store import LoadedVersion
from operators import EvolutionSurrogate
from problems import EVOLUTION_PROBLEMS, Grid
from service.batching.batcher import BatchRules
from service.client import Client
from service.settings import Limits
from service.workers.compute import Surrogates
from service.workers.worker import ThreadWorker

ROLLOUT = "/v1/problems/shallow_water/rollout"
NPY = {"Content-Type": "application/x-npy"}
NAMES = ("h", "hu", "hv")


@pytest.fixture
def http(rollout_address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=rollout_address, timeout=60) as client:
        yield client


def npy(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def state(water: NDArray[Any]) -> dict[str, Any]:
    return {name: field.tolist() for name, field in zip(NAMES, water, strict=True)}


def lines(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]


def records(body: bytes) -> list[bytes]:
    """What a stream of records holds, the one of length 0 included."""
    found, position = [], 0
    while position < len(body):
        (length,) = struct.unpack_from("<Q", body, position)
        position += 8 + length
        assert position <= len(body), "the last record is torn"
        found.append(body[position - length : position])
    return found


def stacked(frames: list[dict[str, Any]]) -> NDArray[np.float32]:
    return np.array([[frame["fields"][name] for name in NAMES] for frame in frames], dtype=np.float32)


def published(drift: EvolutionSurrogate, water: NDArray[np.float32], steps: int) -> NDArray[np.float32]:
    """What the surrogate's own rollout says: [steps 3 y x]."""
    blocks = drift.blocks(torch.from_numpy(water)[None, None], (5.0, 5.0))
    with torch.inference_mode():
        return np.concatenate([np.asarray(next(blocks)[0]) for _ in range(-(-steps // drift.frames))])[:steps]


def test_lines_are_the_published_rollout(
    http: httpx.Client, drift: EvolutionSurrogate, water: NDArray[np.float32]
) -> None:
    response = http.post(ROLLOUT, json={"state": state(water), "steps": 11})
    frames = lines(response)
    assert response.headers["content-type"] == "application/x-ndjson"
    assert [frame["step"] for frame in frames] == list(range(1, 12))
    assert frames[6]["time"] == pytest.approx(0.07)
    assert np.array_equal(stacked(frames), published(drift, water, 11))
    assert set(frames[0]) == {
        *("step", "time", "fields", "invariants", "error", "in_distribution", "ood_score")
    }
    known = {name: response.headers[f"Mno-{name}"] for name in ("Model", "Method", "Operator", "Walls")}
    assert known == {
        "Model": "shallow_water@1",
        "Method": "surrogate",
        "Operator": "hllc-muscl-v1",
        "Walls": "outflow",
    }
    assert response.headers["Mno-Fields"] == "h,hu,hv"
    assert (response.headers["Mno-Steps"], response.headers["Mno-Frames"]) == ("11", "11")
    assert (response.headers["Mno-Block"], response.headers["Mno-Frame-Interval"]) == ("4", "0.01")
    assert response.headers["Mno-In-Distribution"] == "true"
    assert response.headers["X-Request-Id"]


@pytest.mark.parametrize("accept", ["application/x-npy", "application/x-npy-stream"])
def test_records_hold_the_same_frames(
    http: httpx.Client, drift: EvolutionSurrogate, water: NDArray[np.float32], accept: str
) -> None:
    response = http.post(
        ROLLOUT, content=npy(water), headers=NPY | {"Accept": accept}, params={"steps": 9, "every": 3}
    )
    assert response.headers["content-type"] == "application/x-npy-stream"
    assert response.headers["Mno-Frames"] == "3"
    *found, end = records(response.content)
    assert end == b""
    numbers = [json.loads(record) for record in found[::2]]
    arrays = np.stack([np.load(io.BytesIO(record), allow_pickle=False) for record in found[1::2]])
    assert [number["step"] for number in numbers] == [3, 6, 9]
    assert set(numbers[0]) == {*("step", "time", "invariants", "error", "in_distribution", "ood_score")}
    assert arrays.dtype == np.float32
    assert np.array_equal(arrays, published(drift, water, 9)[2::3])


def test_a_resumed_rollout_is_the_tail_of_the_unbroken_one(
    http: httpx.Client, water: NDArray[np.float32]
) -> None:
    whole = lines(http.post(ROLLOUT, json={"state": state(water), "steps": 14}))
    rest = lines(http.post(ROLLOUT, json={"state": whole[7]["fields"], "steps": 14, "start_step": 8}))
    assert [frame["step"] for frame in rest] == list(range(9, 15))
    assert [frame["time"] for frame in rest] == [frame["time"] for frame in whole[8:]]
    assert np.array_equal(stacked(rest), stacked(whole[8:]))
    rest = lines(
        http.post(ROLLOUT, json={"state": whole[3]["fields"], "steps": 14, "start_step": 4, "every": 3})
    )
    assert [frame["step"] for frame in rest] == [6, 9, 12]
    assert np.array_equal(stacked(rest), stacked(whole[5::3]))
    # the middle of a block is another beginning
    other = lines(http.post(ROLLOUT, json={"state": whole[5]["fields"], "steps": 14, "start_step": 6}))
    assert not np.array_equal(stacked(other), stacked(whole[6:]))


def test_each_frame_says_what_is_known_about_it(http: httpx.Client, water: NDArray[np.float32]) -> None:
    frames = lines(http.post(ROLLOUT, json={"state": state(water), "steps": 21}))
    # between the calibrated frames 10 and 20, as before and as at them; nothing beyond
    upper = {step: frames[step - 1]["error"] for step in (1, 10, 15, 20, 21)}
    assert upper[15] == {
        "kind": "calibrated",
        "norm": "perturbation_l2",
        "upper": pytest.approx(0.3),
        "coverage": 0.9,
    }
    assert [upper[step]["upper"] for step in (1, 10, 20)] == [0.2, 0.2, 0.4]
    assert upper[21] is None
    h = np.array(frames[20]["fields"]["h"])
    assert frames[20]["invariants"]["depth_min"] == h.min()
    assert frames[20]["invariants"]["mass"] == pytest.approx(h.sum() * (5 / 16) * (5 / 24))
    assert frames[20]["invariants"]["mass_defect"] == 0.0
    assert all(frame["in_distribution"] for frame in frames)


@pytest.mark.parametrize(("start_step", "upper"), [(0, 0.4), (5, 0.3), (10, 0.2), (15, 0.2)])
def test_the_calibration_counts_from_the_first_frame_of_the_training(
    evolution_versions: tuple[LoadedVersion, ...],
    serve: Any,
    serve_with: Any,
    water: NDArray[np.float32],
    start_step: int,
    upper: float,
) -> None:
    version = evolution_versions[0]
    later = replace(version, card=version.card.model_copy(update={"first_frame": 10}))

    async def story() -> None:
        worker = ThreadWorker(Surrogates([later], torch.device("cpu")))
        served = serve_with(worker, [later], Limits(), BatchRules())
        async with (
            serve(served, Limits()) as address,
            httpx.AsyncClient(base_url=address, timeout=60) as client,
        ):
            options = {"steps": 20, "start_step": start_step, "every": 20}
            (frame,) = lines(await client.post(ROLLOUT, json={"state": state(water), **options}))
        assert frame["error"]["upper"] == pytest.approx(upper)

    asyncio.run(story())


def test_a_state_unlike_those_of_the_training_is_flagged(
    http: httpx.Client, water: NDArray[np.float32]
) -> None:
    response = http.post(ROLLOUT, json={"state": {"h": (4 * water[0]).tolist()}, "steps": 1})
    assert lines(response)[0]["in_distribution"] is False
    assert response.headers["Mno-In-Distribution"] == "false"


def test_water_without_momentum_is_at_rest(
    http: httpx.Client, drift: EvolutionSurrogate, water: NDArray[np.float32]
) -> None:
    still = np.stack([water[0], np.zeros((16, 24)), np.zeros((16, 24))]).astype(np.float32)
    expected = published(drift, still, 5)
    assert np.array_equal(
        stacked(lines(http.post(ROLLOUT, json={"state": {"h": water[0].tolist()}, "steps": 5}))), expected
    )
    for body, fields in ((water[:1], None), (water[:1], "h"), (still[::-1].copy(), "hv,hu,h")):
        params = {"steps": 5} | ({"fields": fields} if fields else {})
        assert np.array_equal(
            stacked(lines(http.post(ROLLOUT, content=npy(body), headers=NPY, params=params))), expected
        )


@pytest.mark.parametrize("name", list(EVOLUTION_PROBLEMS))
def test_the_reference_solver_streams_its_frames_in_float64(rollout_address: str, name: str) -> None:
    problem = EVOLUTION_PROBLEMS[name]
    rng = np.random.default_rng(1)
    given = {spec.name: rng.uniform(0.5, 1.0, (12, 20)) for spec in problem.inputs}
    frames = problem.frames(given, Grid((12, 20), problem.grid.extent, problem.grid.origin))
    with Client(rollout_address) as client:
        found = list(client.rollout(name, given, steps=5, every=2, method="solver"))
    expected = [next(frames) for _ in range(5)][1::2]
    assert [frame.step for frame in found] == [2, 4]
    for frame, exact in zip(found, expected, strict=True):
        assert frame.model is None
        assert frame.error is None
        assert frame.in_distribution
        assert frame.time == pytest.approx(frame.step * problem.frame_interval)
        for field, values in frame.fields.items():
            assert values.dtype == np.float64
            np.testing.assert_allclose(values, exact[field], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", list(EVOLUTION_PROBLEMS))
def test_the_reference_solver_goes_on_where_it_stopped(rollout_address: str, name: str) -> None:
    problem = EVOLUTION_PROBLEMS[name]
    rng = np.random.default_rng(2)
    given = {spec.name: rng.uniform(0.5, 1.0, (12, 20)) for spec in problem.inputs}
    with Client(rollout_address) as client:
        whole = list(client.rollout(name, given, steps=4, method="solver"))
        rest = list(client.rollout(name, whole[0].fields, steps=4, start_step=1, method="solver"))
    assert [frame.step for frame in rest] == [2, 3, 4]
    for frame, same in zip(rest, whole[1:], strict=True):
        assert all(np.array_equal(frame.fields[field], same.fields[field]) for field in given)


def test_walls_are_the_solver_s_to_choose(rollout_address: str, water: NDArray[np.float32]) -> None:
    with Client(rollout_address) as client:
        mass = {
            walls: [
                frame.invariants["mass_defect"]
                for frame in client.rollout(
                    "shallow_water", water.astype(float), steps=20, every=20, method="solver", walls=walls
                )
            ]
            for walls in (None, "outflow", "reflecting", "periodic")
        }
    assert mass[None] == mass["outflow"]
    assert abs(mass["outflow"][0]) > 1e-6
    assert max(abs(mass["reflecting"][0]), abs(mass["periodic"][0])) < 1e-12


def test_gzip_bodies_are_read(http: httpx.Client, water: NDArray[np.float32]) -> None:
    body = gzip.compress(json.dumps({"state": state(water), "steps": 1}).encode())
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert len(lines(http.post(ROLLOUT, content=body, headers=headers))) == 1


def test_without_a_number_of_steps_there_are_100(http: httpx.Client, water: NDArray[np.float32]) -> None:
    response = http.post(ROLLOUT, content=npy(water), headers=NPY, params={"every": 50})
    assert [frame["step"] for frame in lines(response)] == [50, 100]


def test_the_client_reads_frames(
    rollout_address: str, drift: EvolutionSurrogate, water: NDArray[np.float32]
) -> None:
    expected = published(drift, water, 7)
    named = dict(zip(NAMES, water, strict=True))
    with Client(rollout_address) as client:
        for given in (water, named, dict(reversed(named.items()))):
            frames = list(client.rollout("shallow_water", given, steps=7))
            assert [frame.step for frame in frames] == list(range(1, 8))
            for frame, fields in zip(frames, expected, strict=True):
                assert all(
                    np.array_equal(frame.fields[name], fields[channel]) for channel, name in enumerate(NAMES)
                )
        assert frames[0].model == "shallow_water@1"
        assert frames[0].error is not None
        assert frames[0].error.upper == 0.2
        assert frames[0].time == 0.01
        assert frames[0].invariants["mass_defect"] == 0.0


def test_the_catalog_tells_what_evolves(http: httpx.Client) -> None:
    described = {problem["name"]: problem for problem in http.get("/v1/problems").json()["problems"]}
    water = described["shallow_water"]
    assert water["operations"] == ["rollout", "vjp", "jvp"]
    assert water["optional_inputs"] == ["hu", "hv"]
    assert water["walls"] == ["outflow", "reflecting", "periodic"]
    assert water["frame_interval"] == 0.01
    assert water["domain"]["extent"] == [5.0, 5.0]
    assert water["grids"]["surrogate"] == [[16, 16], [16, 24], [512, 512]]
    assert water["models"] == ["shallow_water@1", "short@1"]
    assert described["darcy"]["operations"] == ["solve", "vjp", "jvp", "quantities"]
    assert "walls" not in described["darcy"]
    assert ROLLOUT.replace("shallow_water", "{problem}") in http.get("/openapi.json").json()["paths"]
