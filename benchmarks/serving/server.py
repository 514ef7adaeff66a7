"""A server of the comparison: what it is, and the processes in which it runs."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, final

from benchmarks.serving.process_tree import ProcessTree
from benchmarks.serving.request import Route

MARK = "installed"

__all__ = ["Command", "NotInstalled", "Place", "Running", "Server", "ServerFailed", "running"]

START_SECONDS = 120.0
STOP_SECONDS = 15.0
WAKE_SECONDS = 0.2


class ServerFailed(Exception):
    """A server did not start, or answers wrongly."""


class NotInstalled(Exception):
    """The environment of a peer is missing; the message names the command that makes it."""


@final
@dataclass(frozen=True)
class Place:
    """Where a server runs and what it serves.

    Attributes:
        environment: its virtual environment.
        folder: for its files.
        models: names in ``models.MODELS``.
        frozen: the models as frozen TorchScript.
        cores: the cores it may use; empty: all.
    """

    environment: Path
    folder: Path
    models: tuple[str, ...]
    http_port: int
    grpc_port: int
    frozen: bool = False
    cores: tuple[int, ...] = ()

    @property
    def python(self) -> str:
        """The interpreter of the environment."""
        return str(self.environment / "bin" / "python")

    @property
    def imports(self) -> Path:
        """Where ``benchmarks.serving.models`` and its program are."""
        return self.folder / "imports"


@final
@dataclass(frozen=True)
class Command:
    """What starts a server; it runs in its place's folder where no other is given."""

    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None


class Server(ABC):
    """A server program."""

    name: ClassVar[str]
    title: ClassVar[str]
    # what is installed in its environment beside torch
    requirements: ClassVar[tuple[str, ...]] = ()
    # how batching is set
    batching: ClassVar[str] = ""
    # polls at rest, and would disturb the others
    restless: ClassVar[bool] = False
    # of the probe that says whether it lives
    health: ClassVar[str] = "/health"

    def available(self, environment: Path) -> bool:
        """Whether it is installed."""
        return (environment / MARK).exists()

    @abstractmethod
    def prepare(self, place: Place) -> Command:
        """Write its files, and say how to start it."""

    @abstractmethod
    def routes(self, place: Place, model: str) -> Sequence[Route]:
        """The ways to ask it, the best first."""

    def fronts(self, tree: ProcessTree) -> Sequence[int]:  # noqa: ARG002
        """Those of its processes that speak with clients and nothing else, where that can be told."""
        return ()


@final
class Running:
    """A server that has been started."""

    def __init__(self, server: Server, place: Place) -> None:
        self.server = server
        self.place = place
        stage(place.imports)
        command = server.prepare(place)
        self._log = (place.folder / "log.txt").open("wb")
        self._process = subprocess.Popen(
            command.arguments,
            cwd=command.folder or place.folder,
            env=_environment(place, command),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_pinned(place.cores) if place.cores else None,
        )
        self.tree = ProcessTree(self._process.pid)

    @property
    def pid(self) -> int:
        """Of its main process."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether its main process has ended."""
        return self._process.poll() is not None

    def log(self) -> str:
        """The end of what it has printed."""
        return (self.place.folder / "log.txt").read_text("utf-8", "replace")[-3000:]

    def terminate(self, wait: float) -> int | None:
        """SIGTERM to the main process: its exit status, None where it still runs after ``wait`` seconds."""
        self._process.terminate()
        try:
            return self._process.wait(wait)
        except subprocess.TimeoutExpired:
            return None

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let it run for as long as the block takes."""
        if self.server.restless:
            self._signal(signal.SIGCONT)
            # what it has missed comes first: timers, heartbeats
            time.sleep(WAKE_SECONDS)
        try:
            yield
        finally:
            self.sleep()

    def sleep(self) -> None:
        """Stop all of its processes until it is awake, where it polls when it has no work."""
        if self.server.restless:
            self._signal(signal.SIGSTOP)

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.tree.alive():
            _send(pid, number)

    def close(self) -> None:
        """Stop it and whatever it has left behind."""
        self._signal(signal.SIGCONT)
        if not self.ended:
            self.terminate(STOP_SECONDS)
        for pid in self.tree.alive():
            _send(pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()


@contextmanager
def running(server: Server, place: Place) -> Iterator[Running]:
    """A started server, stopped in the end."""
    process = Running(server, place)
    try:
        yield process
    finally:
        process.close()


def stage(folder: Path) -> None:
    """Put what peers import of this package, and nothing else, where they find it."""
    ours = Path(__file__).parent
    target = folder / "benchmarks" / "serving"
    (target / "peers").mkdir(parents=True, exist_ok=True)
    (folder / "benchmarks" / "__init__.py").touch()
    (target / "__init__.py").touch()
    shutil.copy(ours / "models.py", target)
    shutil.copytree(ours / "peers", target / "peers", dirs_exist_ok=True)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _environment(place: Place, command: Command) -> dict[str, str]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        # a setting of this service's user, or of this interpreter, is none of a peer's
        if not name.startswith(("MNO_", "PYTHON", "VIRTUAL_ENV"))
    }
    return {
        **inherited,
        "PATH": f"{place.environment / 'bin'}:{os.environ.get('PATH', '')}",
        "PYTHONPATH": str(place.imports),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "BENCH_MODELS": ",".join(place.models),
        "BENCH_FROZEN": "1" if place.frozen else "0",
        "BENCH_JOURNAL": str(place.folder / "journal.bin"),
        "BENCH_HTTP_PORT": str(place.http_port),
        "BENCH_GRPC_PORT": str(place.grpc_port),
        **command.environment,
    }


def library_folder(place: Place) -> str:
    """Where the interpreter of a place has its shared library."""
    return _tell(place, "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))")


def python_version(place: Place) -> str:
    """Such as ``3.11``."""
    return _tell(place, "import sysconfig; print(sysconfig.get_python_version())")


def site_packages(place: Place) -> Path:
    """Where the packages of a place are."""
    return Path(_tell(place, "import sysconfig; print(sysconfig.get_path('purelib'))"))


def _tell(place: Place, code: str) -> str:
    command = [place.python, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _pinned(cores: tuple[int, ...]) -> Any:
    def pin() -> None:
        os.sched_setaffinity(0, cores)

    return pin


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def wait_until(done: Any, running: Running, seconds: float = START_SECONDS) -> None:
    """Ask ``done()`` until it is true.

    Raises:
        ServerFailed: the server has ended, or it takes too long.
    """
    until = time.monotonic() + seconds
    while not done():
        if running.ended or time.monotonic() > until:
            why = "ended" if running.ended else f"did not answer rightly within {seconds:.0f} s"
            raise ServerFailed(f"{running.server.name} {why}; its log ends with:\n{running.log()}")
        time.sleep(0.2)
