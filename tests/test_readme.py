"""The commands and code of the README and of the page on serving do what they say."""

import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from problems import PROBLEMS, Grid

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SERVING = (ROOT / "docs/serving.md").read_text()


@dataclass(frozen=True)
class Ports:
    """Where a service answers, in place of its defaults."""

    http: int
    grpc: int

    def instead(self, text: str) -> str:
        return text.replace("8080", str(self.http)).replace("8081", str(self.grpc))


def _block(language: str, containing: str, page: str = README) -> str:
    """The only fenced block of a language that contains a text."""
    blocks = [block for block in re.findall(rf"```{language}\n(.*?)```", page, re.S) if containing in block]
    assert len(blocks) == 1, f"expected one {language} block with {containing!r}, got {len(blocks)}"
    return str(blocks[0])


@pytest.fixture(scope="module")
def port() -> Iterator[Ports]:
    """Ports of a service on the built-in models, as ``make serve`` starts it."""
    ports = Ports(*_free_ports())
    options = ["--http-port", str(ports.http), "--grpc-port", str(ports.grpc)]
    command = [sys.executable, "-m", "mno", "serve", *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        ready, _, _ = select.select([server.stdout], [], [], 600)
        assert ready, "the service said nothing within ten minutes"
        assert "ready" in server.stdout.readline()
        yield ports
        server.send_signal(signal.SIGTERM)
        server.stdout.read()
    assert server.returncode == 0


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1]), int(other.getsockname()[1])


def _shell(containing: str, port: Ports, directory: Path, page: str = README) -> str:
    """What a block of commands says."""
    commands = port.instead(_block("sh", containing, page)).replace(".venv/bin/python", sys.executable)
    return _output(["bash", "-euc", commands], directory)


def _python(containing: str, port: Ports, directory: Path, page: str = README) -> str:
    """What a block of Python says."""
    return _output([sys.executable, "-c", port.instead(_block("python", containing, page))], directory)


def _output(command: list[str], directory: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.slow
def test_curl_and_client_get_the_pressure(port: Ports, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    asked = _shell("darcy/solve", port, tmp_path)
    assert "200 OK" in asked
    assert "mno-error-estimate" in asked.lower()
    assert (tmp_path / "pressure.npy").stat().st_size > 128 * 128 * 4

    said = _python("client.solve", port, tmp_path)
    assert "(128, 128)" in said
    error = float(said.split("pressure error")[-1])
    assert 0 < error < 0.015


@pytest.mark.slow
def test_curl_and_client_get_the_frames(port: Ports, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    asked = _shell("shallow_water/rollout", port, tmp_path)
    assert "200 OK" in asked
    frames = [json.loads(line) for line in (tmp_path / "frames.ndjson").read_text().splitlines()]
    assert [frame["step"] for frame in frames] == [10, 20]
    assert len(frames[0]["fields"]["h"]) == 128

    said = _python("client.rollout", port, tmp_path).splitlines()
    assert len(said) == 5
    assert said[-1].startswith("t = 1.00 s")


@pytest.mark.slow
def test_every_way_to_ask_gives_the_pressure(port: Ports, tmp_path: Path) -> None:
    fields = PROBLEMS["darcy"].sample("pdebench", {}, seed=1, index=0, grid=Grid((128, 128)))
    np.save(tmp_path / "permeability.npy", fields["permeability"])
    if shutil.which("curl") is not None:
        assert "200 OK" in _shell("darcy/solve", port, tmp_path, SERVING)
    assert "(128, 128)" in _python("client.vjp", port, tmp_path, SERVING)
    assert "(1, 128, 128)" in _python("tritonclient", port, tmp_path, SERVING)


def test_the_picture_is_there() -> None:
    names = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert names
    assert [name for name in names if not (ROOT / name).is_file()] == []


def test_every_command_that_is_named_exists() -> None:
    make = set(re.findall(r"(?:`|^)make ([a-z-]+)", README, re.M))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert make <= targets
    import mno

    named = set(re.findall(r"(?:`|bin/)mno ([a-z]+)", README))
    assert named
    assert named <= set(mno.COMMANDS)
