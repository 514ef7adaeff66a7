"""Makes the environments of the peers, each of its own, at pinned versions from PyPI."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from benchmarks.serving.server import MARK, Server

__all__ = ["MARK", "TORCH", "InstallFailed", "install"]

TORCH: Final = "torch==2.13.0"


class InstallFailed(Exception):
    """An environment could not be made; the message has the end of what the installer said."""


def install(server: Server, environment: Path) -> None:
    """Make the environment of a peer, in place of one that is there.

    Wheels that cannot be had from PyPI are looked for where ``PIP_FIND_LINKS`` says, as pip does.

    Raises:
        InstallFailed: the environment is not usable.
    """
    shutil.rmtree(environment, ignore_errors=True)
    environment.parent.mkdir(parents=True, exist_ok=True)
    requirements = [TORCH, *server.requirements]
    uv = _uv()
    if uv is None:
        _run([sys.executable, "-m", "venv", str(environment)])
        _run([str(environment / "bin" / "pip"), "install", *requirements])
        listing = _run([str(environment / "bin" / "pip"), "freeze"])
    else:
        python = ["--python", str(environment / "bin" / "python")]
        _run([uv, "venv", "--python", sys.executable, str(environment)])
        _run([uv, "pip", "install", "--compile-bytecode", *python, *requirements])
        listing = _run([uv, "pip", "freeze", *python])
    (environment / MARK).write_text(listing)


def _uv() -> str | None:
    beside = Path(sys.executable).parent / "uv"
    return str(beside) if beside.exists() else shutil.which("uv")


def _run(command: list[str]) -> str:
    environment = {**os.environ, "UV_FIND_LINKS": os.environ.get("PIP_FIND_LINKS", "")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise InstallFailed(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return done.stdout
