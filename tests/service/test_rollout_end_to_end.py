"""A service started from its settings: a published evolution model, warmed up, asked as the page says."""

import html
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from service_thread import running_service

from model_store import open_store
from operators import EvolutionSurrogate
from service.client import Client
from service.settings import Settings


@pytest.fixture(scope="module")
def address(water_store: str) -> Iterator[str]:
    # one thread, so that a forward pass in a test gives the same bits as one in the service
    settings = Settings(store=water_store, models=("shallow_water",), threads=1, device="cpu")
    with running_service(settings) as (addresses, versions):
        assert [str(version) for version in versions] == ["shallow_water@1"]
        yield addresses.http


def published(store: str, water: NDArray[np.float32], steps: int) -> NDArray[np.float32]:
    """The published surrogate's own rollout [steps 3 y x]."""
    surrogate = open_store(store).load("shallow_water", 1).surrogate
    assert isinstance(surrogate, EvolutionSurrogate)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            blocks = surrogate.blocks(torch.from_numpy(water)[None, None], (5.0, 5.0))
            count = -(-steps // surrogate.frames)
            return np.concatenate([np.asarray(next(blocks)[0]) for _ in range(count)])[:steps]
    finally:
        torch.set_num_threads(threads)


def test_streamed_equals_published(address: str, water_store: str, water: NDArray[np.float32]) -> None:
    with Client(address) as client:
        frames = list(client.rollout("shallow_water", water, steps=10))
    found = np.stack([np.stack(list(frame.fields.values())) for frame in frames])
    assert np.array_equal(found, published(water_store, water, 10))
    assert {frame.model for frame in frames} == {"shallow_water@1"}


def test_several_clients_at_once_get_their_own_frames(
    address: str, water_store: str, water: NDArray[np.float32]
) -> None:
    states = [water, water[:, ::-1].copy(), water[:, :, ::-1].copy(), 1 + water]
    states[3][1:] = 0
    answers: dict[int, NDArray[np.float32]] = {}

    def ask(number: int) -> None:
        with Client(address) as client:
            frames = list(client.rollout("shallow_water", states[number], steps=12, every=4))
        answers[number] = np.stack([np.stack(list(frame.fields.values())) for frame in frames])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(states))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, state in enumerate(states):
        # another size of batch is another order of summation
        np.testing.assert_allclose(answers[number], published(water_store, state, 12)[3::4], atol=1e-5)


def test_the_example_of_the_page_works(address: str, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    page = httpx.get(f"{address}/docs").text
    (example,) = (text for text in re.findall("<pre>(.*?)</pre>", page, re.S) if "rollout" in text)
    # the page speaks of the built-in model's grid
    command = html.unescape(example).replace("128, 128", "16, 16").replace(":64]", ":8]")
    said = subprocess.run(["bash", "-euc", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [json.loads(line)["step"] for line in said.stdout.splitlines()] == list(range(10, 101, 10))


def test_the_catalog_shows_the_evolution_model(address: str) -> None:
    with httpx.Client(base_url=address) as http:
        problem = http.get("/v1/problems/shallow_water").json()
        assert problem["models"] == ["shallow_water@1"]
        assert problem["grids"]["surrogate"] == [[16, 16], [16, 24]]
        card = http.get("/v1/models/shallow_water").json()["cards"]["1"]
    assert (card["walls"], card["frame_interval"]) == ("outflow", 0.01)
