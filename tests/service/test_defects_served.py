"""One-step defects over the network, against steps of the reference solver that the test takes itself."""

import io
import json
import math
import struct
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from problems import EVOLUTION_PROBLEMS, Grid
from service.client import Client

ROLLOUT = "/v1/problems/shallow_water/rollout"
NPY = {"Content-Type": "application/x-npy"}
NAMES = ("h", "hu", "hv")
WATER = EVOLUTION_PROBLEMS["shallow_water"]


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    """No request waits for a compiler."""
    grid = Grid((16, 16), WATER.grid.extent, WATER.grid.origin)
    next(WATER.frames(WATER.sample("pdebench", {}, 0, 0, grid), grid))


@pytest.fixture
def http(rollout_address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=rollout_address, timeout=60) as client:
        yield client


def npy(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def lines(http: httpx.Client, water: NDArray[np.float32], **options: Any) -> list[dict[str, Any]]:
    state = {name: field.tolist() for name, field in zip(NAMES, water, strict=True)}
    response = http.post(ROLLOUT, json={"state": state, **options})
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]


def defect(before: Mapping[str, Any], after: Mapping[str, Any], step: int) -> float:
    """Of the transition from ``step``, by hand."""
    state = {name: np.asarray(before[name], np.float64) for name in NAMES}
    grid = Grid(state["h"].shape, (5.0, 5.0), WATER.grid.origin)
    (stepped,) = islice(WATER.frames(state, grid, "hllc-muscl-v1", "outflow", step), 1)
    squares = [np.mean((np.asarray(after[name], np.float64) - stepped[name]) ** 2) for name in NAMES]
    return math.sqrt(sum(squares) / len(squares))


def given(water: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    return dict(zip(NAMES, water, strict=True))


def test_every_frame_says_how_far_it_is_from_a_step_of_the_solver(
    http: httpx.Client, water: NDArray[np.float32]
) -> None:
    frames = lines(http, water, steps=9, defects="all")
    plain = lines(http, water, steps=9)
    assert [{**frame, "defect": 0} for frame in plain] == [{**frame, "defect": 0} for frame in frames]
    assert not any("defect" in frame for frame in plain)
    before: Mapping[str, Any] = given(water)
    for frame in frames:
        assert frame["defect"] == pytest.approx(defect(before, frame["fields"], frame["step"] - 1))
        assert frame["defect"] > 0.01
        # nothing bounds how fast two solutions of shallow water part
        assert "exponential_bound" not in frame
        before = frame["fields"]


@pytest.mark.parametrize("every", [1, 3])
def test_a_sample_needs_the_frames_before_it_also_if_they_are_not_sent(
    http: httpx.Client, water: NDArray[np.float32], every: int
) -> None:
    all_fields = [given(water), *(frame["fields"] for frame in lines(http, water, steps=12))]
    frames = lines(http, water, steps=12, every=every, defects=2)
    looked = {frame["step"]: frame["defect"] for frame in frames if "defect" in frame}
    assert len(frames) == 12 // every
    assert len(looked) == 2
    for step, found in looked.items():
        assert found == pytest.approx(defect(all_fields[step - 1], all_fields[step], step - 1))
    again = lines(http, water, steps=12, every=every, defects=2)
    assert {frame["step"]: frame["defect"] for frame in again if "defect" in frame} == looked


def test_a_resumed_stream_compares_its_own_frames(http: httpx.Client, water: NDArray[np.float32]) -> None:
    whole = lines(http, water, steps=12, defects="all")
    state = np.array([whole[3]["fields"][name] for name in NAMES], np.float32)
    rest = lines(http, state, steps=12, start_step=4, defects="all")
    assert [frame["step"] for frame in rest] == list(range(5, 13))
    assert [frame["defect"] for frame in rest] == [frame["defect"] for frame in whole[4:]]


def test_records_say_the_same_and_without_being_asked_nothing(
    http: httpx.Client, water: NDArray[np.float32]
) -> None:
    expected = [frame["defect"] for frame in lines(http, water, steps=5, defects=10**6)]
    told: list[tuple[dict[str, str], list[Any]]] = [
        ({"defects": "all"}, expected),
        ({"defects": "5"}, expected),
        ({}, [None] * 5),
    ]
    for params, found in told:
        response = http.post(
            ROLLOUT,
            content=npy(water),
            headers=NPY | {"Accept": "application/x-npy"},
            params={"steps": "5", **params},
        )
        assert response.status_code == 200, response.text
        numbers, position = [], 0
        while position < len(response.content):
            (length,) = struct.unpack_from("<Q", response.content, position)
            position += 8 + length
            numbers.append(response.content[position - length : position])
        assert [json.loads(number).get("defect") for number in numbers[:-1:2]] == found


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"defects": -1}, "defects: Input should be greater than or equal to 0, got -1"),
        ({"defects": 2**32}, "defects: Input should be less than or equal to 4294967295"),
        ({"defects": "some"}, "defects: "),
        ({"defects": 1.5}, "defects: "),
        ({"defects": True}, "defects: "),
        ({"defects": None}, "defects: "),
        ({"defects": 3, "method": "solver"}, "method=solver takes the reference solver's own steps"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    http: httpx.Client, water: NDArray[np.float32], options: dict[str, Any], complaint: str
) -> None:
    response = http.post(ROLLOUT, json={"state": {"h": water[0].tolist()}, "steps": 3, **options})
    assert response.status_code == 422, response.text
    document = response.json()
    assert (document["type"], document["field"]) == ("invalid-field", "defects")
    assert complaint in document["detail"]


def test_the_client_reads_them(rollout_address: str, http: httpx.Client, water: NDArray[np.float32]) -> None:
    expected = [frame["defect"] for frame in lines(http, water, steps=6, defects="all")]
    with Client(rollout_address) as client:
        frames = list(client.rollout("shallow_water", water, steps=6, defects="all"))
        assert [frame.defect for frame in frames] == expected
        assert {frame.exponential_bound for frame in frames} == {None}
        some = [frame.defect for frame in client.rollout("shallow_water", water, steps=6, defects=4)]
        assert [each for each in some if each is not None] == [
            one for one, other in zip(expected, some, strict=True) if other is not None
        ]
        assert some.count(None) == 2
        assert {frame.defect for frame in client.rollout("shallow_water", water, steps=6)} == {None}


@pytest.mark.parametrize("wanted", [-1, 2**32, "some", 1.5])
def test_the_client_knows_what_is_no_number_of_frames(wanted: Any, water: NDArray[np.float32]) -> None:
    with Client("http://nowhere") as client, pytest.raises(ValueError, match="defects: expected a number"):
        next(client.rollout("shallow_water", water, defects=wanted))
