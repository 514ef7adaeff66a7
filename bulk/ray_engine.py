"""Work on a Ray cluster: an actor per device or share of the cores, replaced when it or its node dies.

Nothing but tasks and results passes between the driver and the actors, so the nodes need no common disk. They
need the same release of this project.
"""

from __future__ import annotations

import importlib
import logging
import socket
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, final

from bulk.engine import Crew, Engine, EngineUnavailable, Task
from bulk.hand import Hand, Outcome
from bulk.interrupt import sigterm_interrupts
from bulk.staff import READY, Staff, Worker, WorkerDied, supervise
from bulk.start import ONE_THREAD
from bulk.tries import Tries

__all__ = ["RayActors", "Share"]

log = logging.getLogger("mno.bulk")

# how often is said that nobody has come yet [s]
PATIENCE: Final = 60.0
# to reach a cluster [s]
CONNECT_SECONDS: Final = 10.0


@final
@dataclass(frozen=True)
class Share:
    """What of a cluster one actor takes.

    Attributes:
        cores: of its node.
        device: cuda: a GPU; auto: one where the cluster has any.
    """

    cores: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"


@final
class RayActors(Engine):
    """Does the tasks on the cluster at an address, or on one of this machine that is started for them."""

    def __init__(self, address: str | None, workers: int | None, share: Share) -> None:
        """Nothing is connected yet.

        Args:
            address: of a cluster, as ``ray.init`` takes it; None: one is started.
            workers: actors; None: as many as the cluster has shares.
            share: what each takes.
        """
        self._address = address
        self._workers = workers
        self._share = share

    def carry_out(self, crew: Crew, tasks: Iterable[Task]) -> Generator[tuple[Task, Any]]:
        """See ``Engine``."""
        ray = _import_ray()
        # after Ray has taken SIGTERM for itself
        with self._connected(ray), sigterm_interrupts():
            yield from supervise(_Actors(ray, crew, self._places(ray), self._share.cores), Tries(tasks))

    @contextmanager
    def _connected(self, ray: Any) -> Iterator[None]:
        if ray.is_initialized():
            yield
            return
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
        own = {} if self._address else self._own_cluster()
        if self._address:
            _require_listener(self._address)
        try:
            ray.init(address=self._address or "local", **own, **quiet)
        except Exception as error:  # Ray raises plain ones too
            where = self._address or "this machine"
            raise EngineUnavailable(f"no Ray cluster can be had at {where}: {_line(error)}") from error
        try:
            yield
        finally:
            ray.shutdown()

    def _own_cluster(self) -> dict[str, Any]:
        cores = {} if self._workers is None else {"num_cpus": self._workers * self._share.cores}
        return {"include_dashboard": False, **cores}

    def _places(self, ray: Any) -> _Places:
        resources = ray.cluster_resources()
        gpus = 0 if self._share.device == "cpu" else int(resources.get("GPU", 0))
        if self._share.device == "cuda" and not gpus:
            raise EngineUnavailable("the Ray cluster has no GPU; use --device cpu, or another cluster")
        count = self._workers or gpus or int(resources.get("CPU", 0)) // self._share.cores
        if not count:
            raise EngineUnavailable(
                f"a worker takes {self._share.cores} cores, the Ray cluster has {resources.get('CPU', 0):g}"
            )
        return _Places(count, 1 if gpus else 0)


@final
class _Places(NamedTuple):
    number: int
    gpus: int


@final
class _Actor(Worker):
    """An actor, and what it was last asked."""

    def __init__(self, ray: Any, handle: Any) -> None:
        self._ray = ray
        self._handle = handle
        self.asked = handle.ready.remote()

    def begin(self, task: Task) -> None:
        self.asked = self._handle.do.remote(task.given)

    def report(self) -> Outcome | None:
        try:
            outcome: Outcome | None = self._ray.get(self.asked)
        except self._ray.exceptions.RayError as error:
            raise WorkerDied(f"was lost by Ray: {_line(error)[:300]}") from error
        finally:
            # what it refers to can be forgotten
            self.asked = None
        return outcome

    def dismiss(self) -> None:
        self._ray.kill(self._handle)


@final
class _Actors(Staff):
    def __init__(self, ray: Any, crew: Crew, places: _Places, cores: int) -> None:
        self._ray = ray
        self._crew = ray.put(crew)
        self._count = places.number
        options = {"num_cpus": cores, "num_gpus": places.gpus, "max_restarts": 0, "max_task_retries": 0}
        threads = dict.fromkeys(ONE_THREAD, str(cores))
        self._kind = ray.remote(_Remote).options(**options, runtime_env={"env_vars": threads})

    def hire(self) -> list[Worker]:
        return [self._hire() for _ in range(self._count)]

    def replace(self, worker: Worker) -> Worker:  # noqa: ARG002
        return self._hire()

    def _hire(self) -> Worker:
        return _Actor(self._ray, self._kind.remote(self._crew))

    def wait(self, workers: Iterable[Worker]) -> list[Worker]:
        asked = {worker.asked: worker for worker in workers if isinstance(worker, _Actor)}
        while True:
            told, _ = self._ray.wait([*asked], num_returns=1, timeout=PATIENCE)
            if told:
                return [asked[reference] for reference in told]
            if not any(worker.task for worker in asked.values()):
                log.warning("the Ray cluster has had no room for any of %d workers so far", len(asked))


@final
class _Remote:
    """A hand as an actor; Ray makes the process."""

    def __init__(self, crew: Crew) -> None:
        self._hand = Hand(crew)

    def ready(self) -> None:
        """There is a process now."""
        return READY

    def do(self, given: Any) -> Outcome:
        """Do a task."""
        return self._hand.do(given)


def _import_ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise EngineUnavailable(
            '--engine ray needs the package ray: `pip install "mno[ray]"`, or use --engine local'
        ) from error


def _require_listener(address: str) -> None:
    """Refuse an address that nobody listens at: Ray itself would try for minutes.

    Raises:
        EngineUnavailable: so it is.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        # a word of Ray's, such as "auto"
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise EngineUnavailable(f"no Ray cluster can be had at {address}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
