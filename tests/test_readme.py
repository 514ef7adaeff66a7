"""The README's commands and code do what they say."""

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


@pytest.mark.slow
def test_curl_and_client_get_the_pressure(port: int, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    shell = _block("sh", "curl").replace("8080", str(port)).replace(".venv/bin/python", sys.executable)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    asked = subprocess.run(
        ["bash", "-euc", shell], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert "200 OK" in asked.stdout
    assert "mno-error-estimate" in asked.stdout.lower()
    assert (tmp_path / "pressure.npy").stat().st_size > 128 * 128 * 4

    code = _block("python", "Client(").replace("8080", str(port))
    said = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "(128, 128)" in said
    error = float(said.split("pressure error")[-1])
    assert 0 < error < 0.015


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
