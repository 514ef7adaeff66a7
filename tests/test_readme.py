"""The README's commands and code do what they say."""

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
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def _block(language: str, containing: str) -> str:
    """The only fenced block of a language that contains a text."""
    blocks = [block for block in re.findall(rf"```{language}\n(.*?)```", README, re.S) if containing in block]
    assert len(blocks) == 1, f"expected one {language} block with {containing!r}, got {len(blocks)}"
    return str(blocks[0])


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Port of a service on the built-in models, as ``make serve`` starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = int(free.getsockname()[1])
    command = [sys.executable, "-m", "mno", "serve", "--http-port", str(number)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        ready, _, _ = select.select([server.stdout], [], [], 600)
        assert ready, "the service said nothing within ten minutes"
        assert "ready" in server.stdout.readline()
        yield number
        server.send_signal(signal.SIGTERM)
        server.stdout.read()
    assert server.returncode == 0


def _shell(containing: str, port: int, directory: Path) -> str:
    """What a block of commands says."""
    commands = _block("sh", containing).replace("8080", str(port)).replace(".venv/bin/python", sys.executable)
    return _output(["bash", "-euc", commands], directory)


def _python(containing: str, port: int, directory: Path) -> str:
    """What a block of Python says."""
    code = _block("python", containing).replace("8080", str(port))
    return _output([sys.executable, "-c", code], directory)


def _output(command: list[str], directory: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.slow
def test_curl_and_client_get_the_pressure(port: int, tmp_path: Path) -> None:
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
def test_curl_and_client_get_the_frames(port: int, tmp_path: Path) -> None:
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


def test_the_picture_is_there() -> None:
    names = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert names
    assert [name for name in names if not (ROOT / name).is_file()] == []


def test_every_command_that_is_named_exists() -> None:
    make = set(re.findall(r"(?:`|^)make ([a-z]+)", README, re.M))
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert make <= targets
    import mno

    named = set(re.findall(r"(?:`|bin/)mno ([a-z]+)", README))
    assert named
    assert named <= set(mno.COMMANDS)
