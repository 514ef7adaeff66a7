"""What the image is built from; where it was built, the image itself."""

import contextlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from rendered import ROOT

DEPLOY = ROOT / "deploy"
IMAGE = DEPLOY / "image"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSION = PROJECT["version"]
DOCKERFILE = (DEPLOY / "Dockerfile").read_text("utf-8")


def loaded(name: str) -> ModuleType:
    """A script of the image as a module."""
    spec = importlib.util.spec_from_file_location(f"image_{name}", IMAGE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pins(path: Path) -> dict[str, str]:
    """Name -> version."""
    lines = [line for line in path.read_text("utf-8").splitlines() if not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def extras() -> list[str]:
    """Those that the image has."""
    match = re.search(r'^ARG EXTRAS="([^"]+)"$', DOCKERFILE, re.MULTILINE)
    assert match
    return match[1].split(",")


def needed(name: str, wanted: tuple[str, ...], seen: set[tuple[str, str]]) -> Iterator[str]:
    """What a distribution needs, and what that needs, as it is installed here."""
    for line in importlib.metadata.requires(name) or ():
        requirement = Requirement(line)
        for extra in ("", *wanted):
            marker = requirement.marker
            key = (requirement.name.lower(), extra)
            if (marker is None or marker.evaluate({"extra": extra})) and key not in seen:
                seen.add(key)
                yield re.sub(r"[-_.]+", "-", requirement.name).lower()
                yield from needed(requirement.name, tuple(requirement.extras), seen)


# --- the Dockerfile


def test_hadolint_has_nothing_to_say() -> None:
    command = [Path(sys.executable).with_name("hadolint"), DEPLOY / "Dockerfile"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_the_last_stage_runs_nothing_and_is_nobody() -> None:
    last = DOCKERFILE.rpartition("\nFROM ")[2].splitlines()
    words = [line.split()[0] for line in last[1:] if line and not line.startswith((" ", "#"))]
    # whatever is installed is installed in the stage before: no compiler comes along
    assert "RUN" not in words
    assert words.index("USER") < words.index("ENTRYPOINT")
    assert 'ENTRYPOINT ["/usr/bin/tini", "--", "mno-start"]' in last


def test_both_variants_are_told_apart() -> None:
    assert re.search(r"cpu\) .*torch\.version\.cuda is None", DOCKERFILE)
    assert re.search(r"cuda\) .*assert torch\.version\.cuda,", DOCKERFILE)


def test_the_release_is_the_projects() -> None:
    assert f"ARG VERSION={VERSION}\n" in DOCKERFILE
    assert f"localhost/mno:{VERSION}-cpu" in DOCKERFILE


def test_what_is_copied_is_let_through() -> None:
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert ignored[0] == "*"
    through = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    packages = {"problems", "operators", "model_store", "training", "service", "benchmarks"}
    assert through >= {"constraints.txt", "pyproject.toml", "setup.py", "mno.py", "deploy/image", *packages}
    assert all((ROOT / name).exists() for name in through)
    for name in re.findall(r"deploy/image/[\w.]+", DOCKERFILE):
        assert (ROOT / name).is_file()


def test_caches_are_read_where_they_were_copied_to() -> None:
    build, _, last = DOCKERFILE.rpartition("\nFROM ")
    for name, folder in (
        ("NUMBA_CACHE_DIR", "numba"),
        ("MPLCONFIGDIR", "matplotlib"),
        ("TRITON_CACHE_DIR", "triton"),
    ):
        assert f"{name}=/opt/mno/cache/{folder}" in build
        assert f"{name}=/tmp/.cache/{folder}" in last
    # code for another processor would be compiled anew
    assert all("NUMBA_CPU_NAME=$SOLVER_CPU" in part for part in (build, last))


# --- what is installed


def test_everything_that_is_installed_is_pinned() -> None:
    pinned = {**pins(ROOT / "constraints.txt"), **pins(IMAGE / "pins.txt")}
    closure = set(needed("mno", tuple(extras()), set())) - {"mno"}
    assert len(closure) > 50
    # what only CUDA's torch has is not installed here; the rest is
    assert closure - set(pinned) == set()


def test_a_pin_is_in_one_place_only() -> None:
    assert set(pins(ROOT / "constraints.txt")) & set(pins(IMAGE / "pins.txt")) == set()
    assert "nvidia-cublas" in pins(IMAGE / "pins.txt")


def test_the_extras_are_those_that_serving_and_training_need() -> None:
    assert set(extras()) <= set(PROJECT["optional-dependencies"])
    assert f'EXTRAS="{",".join(extras())}"' in (DEPLOY / "build.sh").read_text("utf-8")


# --- what is in it


def test_the_bill_of_materials_has_everything_once() -> None:
    sbom = loaded("sbom")
    debian = ["libc6:amd64\t2.36-9+deb12u10", "tini\t0.19.0-1"]
    document = sbom.document(importlib.metadata.distributions(), debian, "cpu")
    purls = [each["purl"] for each in document["components"]]
    assert len(set(purls)) == len(purls)
    assert {"pkg:deb/debian/libc6@2.36-9%2Bdeb12u10?arch=amd64", "pkg:deb/debian/tini@0.19.0-1"} <= set(purls)
    assert f"pkg:pypi/numpy@{importlib.metadata.version('numpy')}" in purls
    assert document["metadata"]["component"]["name"] == "mno"
    # the same parts, in whatever order, make the same bill, and others another one
    again = sbom.document(reversed(list(importlib.metadata.distributions())), debian[::-1], "cpu")
    assert again == document
    assert sbom.document(importlib.metadata.distributions(), debian[:1], "cpu") != document


class Answer(BaseHTTPRequestHandler):
    """Says that it lives, and nothing else."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz/live" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Not to the tests' output."""


@contextlib.contextmanager
def answering() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def health(**variables: str) -> int:
    command = [sys.executable, str(IMAGE / "health.py")]
    return subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, check=False
    ).returncode


def test_health_is_whether_the_service_answers() -> None:
    with answering() as port:
        assert health(MNO_HTTP_PORT=str(port)) == 0
        # whoever speaks no TLS is no service that does
        assert health(MNO_HTTP_PORT=str(port), MNO_TLS__CERT="cert.pem") == 1
    assert health(MNO_HTTP_PORT=str(port)) == 1


def started(home: Path, folder: Path) -> "subprocess.CompletedProcess[str]":
    """The image's start, with its folder elsewhere and a `mno` that says what it is called with."""
    script = (IMAGE / "start.sh").read_text("utf-8").replace("/opt/mno/cache", str(folder / "cache"))
    (folder / "start.sh").write_text(script, "utf-8")
    (folder / "mno").write_text('#!/bin/sh\necho "$$ $*"\n', "utf-8")
    (folder / "mno").chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(home)}
    command = ["sh", str(folder / "start.sh"), "serve", "a b"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        out, error = process.communicate()
    # signals go to the process that was started: it has become the service
    assert out == f"{process.pid} serve a b\n"
    return subprocess.CompletedProcess(command, process.returncode, out, error)


def test_the_start_brings_the_caches_along(tmp_path: Path) -> None:
    (tmp_path / "cache" / "numba").mkdir(parents=True)
    (tmp_path / "cache" / "numba" / "solver.nbi").write_bytes(b"code")
    home = tmp_path / "home"
    home.mkdir()
    assert started(home, tmp_path).returncode == 0
    kept = home / ".cache" / "numba" / "solver.nbi"
    assert kept.read_bytes() == b"code"
    # a container that starts again has what it compiled meanwhile
    kept.write_bytes(b"newer")
    assert started(home, tmp_path).returncode == 0
    assert kept.read_bytes() == b"newer"


def test_without_a_home_it_starts_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    result = started(tmp_path / "nowhere", tmp_path)
    assert result.returncode == 0
    assert "expected a HOME that can be written" in result.stderr


# --- the image itself


def runner() -> str | None:
    """A tool that has the image."""
    for tool in ("docker", "podman"):
        if shutil.which(tool):
            command = [tool, "image", "inspect", f"localhost/mno:{VERSION}-cpu"]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                return tool
    return None


@pytest.mark.slow
@pytest.mark.skipif("CHECK_IMAGE" not in os.environ, reason="takes minutes: CHECK_IMAGE=1 runs it")
def test_the_image_does_what_is_promised_of_it() -> None:
    if runner() is None:
        pytest.skip("no image: `bash deploy/build.sh cpu` builds it")
    command = ["bash", str(DEPLOY / "build.sh"), "check", "cpu"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    # each of these only if what it says was seen
    assert "torch.version.cuda is None" in result.stdout
    assert "solves: largest pressure" in result.stdout
    assert "exit status 0" in result.stdout


def test_scripts_are_bash_that_parses() -> None:
    for script in sorted(DEPLOY.glob("*.sh")):
        subprocess.run(["bash", "-n", script], check=True)
