"""The service as processes: they start, say so, and drain at SIGTERM."""

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from server_process import Server, running

ROOT = Path(__file__).parents[2]
NPY = "application/x-npy"


def run(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """``mno serve`` that ends by itself."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MNO_")}
    command = [sys.executable, "-m", "mno", "serve", *arguments]
    environment |= variables
    return subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=120)


def place(address: str) -> tuple[str, int]:
    host, _, port = address.removeprefix("http://").partition(":")
    return host, int(port)


def refused(address: str) -> bool:
    try:
        socket.create_connection(place(address), timeout=1).close()
    except OSError:
        return True
    return False


def body() -> bytes:
    file = io.BytesIO()
    np.save(file, np.ones((32, 32), dtype=np.float32))
    return file.getvalue()


def answer_after(server: Server, stop: Callable[[], object]) -> bytes:
    """The answer to a request: half of its body comes before ``stop``, half when nobody is let in."""
    content = body()
    head = (
        f"POST /v1/problems/darcy/solve HTTP/1.1\r\nHost: x\r\nContent-Type: {NPY}\r\nAccept: {NPY}\r\n"
        f"Content-Length: {len(content)}\r\nExpect: 100-continue\r\n\r\n"
    ).encode()
    with socket.create_connection(place(server.address), timeout=60) as connection:
        connection.sendall(head)
        # the server says that it has accepted the request; then half of the body is under way
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        connection.sendall(content[:2000])
        stop()
        while not refused(server.address):
            pass
        connection.sendall(content[2000:])
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["workers", "none"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_what_was_accepted_and_the_service_exits_with_0(
    store_url: str, processes: str, number: signal.Signals
) -> None:
    with running("--store", store_url, "--models", "darcy", "--processes", processes) as server:
        answer = answer_after(server, lambda: server.process.send_signal(number))
        assert answer.startswith(b"HTTP/1.1 200")
        assert len(answer.partition(b"\r\n\r\n")[2]) == 128 + 4 * 32 * 32
        assert server.process.wait(timeout=60) == 0


@pytest.mark.slow
def test_a_signal_to_all_processes_at_once_is_one_to_the_supervisor(store_url: str) -> None:
    with running("--store", store_url, "--models", "darcy") as server:

        def stop_everybody() -> None:
            for pid in server.tree():
                os.kill(pid, signal.SIGTERM)

        assert answer_after(server, stop_everybody).startswith(b"HTTP/1.1 200")
        assert server.process.wait(timeout=60) == 0


@pytest.mark.slow
def test_the_second_signal_ends_everything_at_once(store_url: str) -> None:
    with (
        running("--store", store_url, "--models", "darcy", MNO_DRAIN_DELAY_SECONDS="3600") as server,
        httpx.Client(base_url=server.address, timeout=60) as client,
    ):
        assert client.get("/healthz/ready").status_code == 200
        server.process.send_signal(signal.SIGTERM)
        # balancers are given time to notice: not ready, and still answering
        while client.get("/healthz/ready").status_code == 200:
            pass
        headers = {"Content-Type": NPY, "Accept": NPY}
        assert client.post("/v1/problems/darcy/solve", content=body(), headers=headers).status_code == 200
        # one that follows at once may be the same one, passed on by a parent
        server.process.send_signal(signal.SIGTERM)
        assert client.get("/healthz/live").status_code == 200
        with contextlib.suppress(httpx.HTTPError):
            while client.get("/healthz/live").status_code == 200:
                server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=60) == 1


@pytest.mark.slow
def test_a_signal_before_it_is_ready_ends_it(store_url: str) -> None:
    command = [sys.executable, "-m", "service", "--store", store_url, "--http-port", "0", "--grpc-port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        while not Server(process, "", "").forked():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
        assert process.stdout is not None
        assert process.stdout.read() == ""


@pytest.mark.slow
def test_a_zygote_that_hangs_holds_no_end_up(store_url: str) -> None:
    with running("--store", store_url, "--models", "darcy", MNO_GRACE_SECONDS="600") as server:
        os.kill(server.named()["zygote"][0], signal.SIGSTOP)
        assert server.stop(seconds=120) == 0


@pytest.mark.slow
def test_a_front_that_cannot_listen_stops_the_start(store_url: str, tmp_path: Path) -> None:
    # Python's library knows this curve, gRPC's does not
    cert, key = certificate(ec.generate_private_key(ec.SECP256K1()), tmp_path)
    ports = ("--http-port", "0", "--grpc-port", "0")
    result = run(
        "--store", store_url, "--models", "darcy", *ports, MNO_TLS__CERT=str(cert), MNO_TLS__KEY=str(key)
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1].startswith("mno: front 0: ")


def certificate(key: ec.EllipticCurvePrivateKey, folder: Path) -> tuple[Path, Path]:
    """Files of a certificate that signs itself, and of its key."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    files = folder / "cert.pem", folder / "key.pem"
    files[0].write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files


@pytest.mark.slow
@pytest.mark.parametrize("fronts", [1, 3])
def test_nothing_outlives_a_supervisor_that_is_killed(store_url: str, fronts: int) -> None:
    # leaving the block kills it, and waits for every process that was there
    with running("--store", store_url, "--models", "darcy", "--fronts", str(fronts)) as server:
        assert {name: len(pids) for name, pids in server.named().items()} == {
            "zygote": 1, "steward": 1, "darcy@1": 1, "numerics": 1, "front": fronts
        }  # fmt: skip


@pytest.mark.slow
def test_fronts_import_nothing_that_computes() -> None:
    heavy = {"torch", "numba", "scipy.sparse", "scipy.linalg", "h5py", "operators"}
    script = f"import service.processes.front, sys; print([name for name in {heavy} if name in sys.modules])"
    command = [sys.executable, "-c", script]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("flag", ["--http-port", "--grpc-port"])
def test_a_port_that_is_taken_is_said_in_one_line(flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        others = {"--http-port": "0", "--grpc-port": "0"} | {flag: str(port)}
        result = run(*(word for pair in others.items() for word in pair))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert f"127.0.0.1:{port}" in result.stderr
    assert f"choose another port with {flag}" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("models", ["navier", "darcy@9", "darcy@staging", "../x"])
def test_a_model_that_cannot_be_served_stops_the_start(store_url: str, models: str) -> None:
    arguments = ("--store", store_url, "--models", models, "--http-port", "0", "--grpc-port", "0")
    result = run(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1].startswith("mno: ")
    assert models.partition("@")[0] in result.stderr


def test_check_config_prints_the_settings() -> None:
    result = run("--check-config", "--http-port", "1234", MNO_LIMITS__BATCH="7")
    assert result.returncode == 0
    settings = json.loads(result.stdout)
    assert settings["http_port"] == 1234
    assert settings["limits"]["batch"] == 7


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ({"MNO_STORE": "ftp://bucket"}, "store"),
        ({"MNO_MODELS": "navier"}, "navier"),
        ({"MNO_SECURITY__TOKENS": "nowhere/tokens.json"}, "nowhere/tokens.json"),
        ({"MNO_TLS__CERT": "nowhere.pem", "MNO_TLS__KEY": "nowhere.key"}, "nowhere.pem"),
        ({"MNO_HOST": "0.0.0.0"}, "token"),
        ({"MNO_PROCESSES": "none", "MNO_IMPORTED": '{"null": {"function": "nowhere:null"}}'}, "imported"),
    ],
)
def test_check_config_looks_at_what_the_settings_name(setting: dict[str, str], complaint: str) -> None:
    result = run("--check-config", **setting)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert complaint in result.stderr
