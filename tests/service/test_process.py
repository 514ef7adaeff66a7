"""The service as a process: it starts, says so, and drains at SIGTERM."""

import io
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


def start(*arguments: str, **variables: str) -> "subprocess.Popen[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MNO_")}
    return subprocess.Popen(
        [sys.executable, "-m", "service", *arguments],
        cwd=ROOT,
        env={**environment, **variables},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.fixture
def process(store_url: str) -> Iterator["subprocess.Popen[str]"]:
    with start("--store", store_url, "--models", "darcy", "--http-port", "0") as process:
        yield process
        process.kill()


def refused(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return True
    return False


@pytest.mark.slow
def test_sigterm_finishes_what_was_accepted_and_exits_with_0(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    ready = process.stdout.readline()
    address = re.search(r"http://([\d.]+):(\d+)", ready)
    assert address, ready + process.communicate()[1]
    host, port = address[1], int(address[2])
    body = io.BytesIO()
    np.save(body, np.ones((32, 32), dtype=np.float32))
    head = (
        "POST /v1/problems/darcy/solve HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-npy\r\n"
        f"Accept: application/x-npy\r\nContent-Length: {len(body.getvalue())}\r\n\r\n"
    ).encode()
    with socket.create_connection((host, port), timeout=30) as connection:
        # the server says that it has accepted the request; then half of the body is under way
        connection.sendall(head.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        connection.sendall(body.getvalue()[:2000])
        process.send_signal(signal.SIGTERM)
        while not refused(host, port):
            pass
        connection.sendall(body.getvalue()[2000:])
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200")
    assert len(answer.partition(b"\r\n\r\n")[2]) == 128 + 4 * 32 * 32
    assert process.wait(timeout=30) == 0


def test_check_config_prints_the_settings() -> None:
    with start("--check-config", "--http-port", "1234", MNO_LIMITS__BATCH="7") as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert '"http_port": 1234' in output
    assert '"batch": 7' in output
