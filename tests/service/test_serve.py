"""The service of one process: it starts and stops, in a thread too."""

import queue
import socket
import threading

import httpx
import pytest

from service.processes.supervisor import Addresses
from service.serve import Service
from service.settings import InvalidSettings, Settings


@pytest.fixture
def one_process(settings: Settings) -> Settings:
    return settings.model_copy(update={"processes": "none", "http_port": 0, "grpc_port": 0})


def test_it_answers_until_it_is_stopped(one_process: Settings) -> None:
    started: queue.Queue[Addresses] = queue.Queue()
    service = Service(one_process)
    thread = threading.Thread(target=service.run, args=(lambda addresses, _: started.put(addresses),))
    thread.start()
    addresses = started.get(timeout=120)
    with httpx.Client(base_url=addresses.http, timeout=60) as client:
        assert client.get("/healthz/ready").json() == {"status": "ready", "problems": []}
        assert client.get("/v1/models/darcy").json()["loaded"] == [1, 2]
    assert addresses.grpc is not None
    assert addresses.grpc.startswith("grpc://127.0.0.1:")
    service.stop()
    thread.join(timeout=60)
    assert not thread.is_alive()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{addresses.http}/healthz/ready")


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
        ({"store": "s3://x"}, "store"),
    ],
)
def test_what_cannot_be_had_stops_the_start(
    one_process: Settings, update: dict[str, object], complaint: str
) -> None:
    with pytest.raises(InvalidSettings, match=complaint):
        Service(one_process.model_copy(update=update))
