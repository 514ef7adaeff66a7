"""The service of one process: it starts and stops, in a thread too."""

import queue
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model_store import open_store
from operators import Surrogate
from service.client import Client
from service.processes.supervisor import Addresses
from service.serve import Service
from service.settings import Imported, InvalidSettings, Settings


@pytest.fixture
def one_process(settings: Settings) -> Settings:
    return settings.model_copy(update={"processes": "none", "http_port": 0, "grpc_port": 0})


@contextmanager
def running(settings: Settings) -> Iterator[Addresses]:
    """A service in a thread; it has ended after the block."""
    started: queue.Queue[Addresses] = queue.Queue()
    service = Service(settings)
    thread = threading.Thread(target=service.run, args=(lambda addresses, _: started.put(addresses),))
    thread.start()
    try:
        yield started.get(timeout=120)
    finally:
        service.stop()
        thread.join(timeout=60)
    assert not thread.is_alive()


def test_it_answers_until_it_is_stopped(
    one_process: Settings, surrogate: Surrogate, permeability: NDArray[np.float32]
) -> None:
    with running(one_process) as addresses:
        assert addresses.grpc is not None
        with httpx.Client(base_url=addresses.http, timeout=60) as client:
            assert client.get("/healthz/ready").json() == {"status": "ready", "problems": []}
            assert client.get("/v1/models/darcy").json()["loaded"] == [1, 2]
        with torch.inference_mode():
            expected = surrogate(torch.from_numpy(permeability)[:, None], torch.ones(len(permeability)))
        for address in (addresses.http, addresses.grpc):
            with Client(address) as asking:
                answer = asking.solve("darcy", permeability)
            assert answer.model == "darcy@1"
            np.testing.assert_allclose(answer.pressure, expected[:, 0].numpy(), rtol=1e-4, atol=1e-6)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{addresses.http}/healthz/ready")


def test_a_version_that_was_replaced_leaves_nothing_behind(one_process: Settings, tmp_path: Path) -> None:
    assert one_process.store is not None
    folder = shutil.copytree(one_process.store.removeprefix("file:"), tmp_path / "store")
    settings = one_process.model_copy(update={"store": f"file:{folder}", "models": ("darcy",)})
    with running(settings) as addresses, httpx.Client(base_url=addresses.http, timeout=60) as client:
        body = {"permeability": np.ones((32, 32)).tolist()}

        def answered_by() -> str:
            answer = client.post("/v1/problems/darcy/solve", json=body)
            assert answer.status_code == 200, answer.text
            model: str = answer.json()["model"]
            return model

        def is_known(version: int) -> bool:
            return f'mno_batch_rows_count{{model="darcy",process="front-0",version="{version}"}}' in (
                client.get("/metrics").text
            )

        assert answered_by() == "darcy@1"
        assert is_known(1)
        open_store(f"file:{folder}").set_alias("darcy", "production", 2, expected=1)
        assert client.post("/v2/repository/models/darcy/load").status_code == 200
        # it was warmed up before anybody asked it
        assert is_known(2)
        assert answered_by() == "darcy@2"
        while is_known(1):
            pass
        assert client.get("/v1/models/darcy").json()["loaded"] == [2]


def test_models_that_nobody_would_serve_are_refused(one_process: Settings) -> None:
    imported = {"null": Imported(function="models:null")}
    with pytest.raises(InvalidSettings, match="imported: expected processes=workers with null"):
        Service(one_process.model_copy(update={"imported": imported}))


def test_stopping_before_it_runs_is_stopping_at_once(one_process: Settings) -> None:
    service = Service(one_process)
    service.stop()
    service.run(lambda *_: None)


def test_a_port_that_is_taken_is_refused_before_anything_is_answered(one_process: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidSettings, match=f"{port}.*choose another port"):
            Service(one_process.model_copy(update={"http_port": port}))


@pytest.mark.parametrize(
    ("update", "complaint"),
    [
        ({"models": ("navier",)}, "navier"),
        ({"scan_backend": "none"}, "scan_backend"),
        ({"store": "ftp://x"}, "store"),
    ],
)
def test_what_cannot_be_had_stops_the_start(
    one_process: Settings, update: dict[str, object], complaint: str
) -> None:
    with pytest.raises(InvalidSettings, match=complaint):
        Service(one_process.model_copy(update=update))
