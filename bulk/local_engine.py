"""Work on this machine: in this process, or in processes that are replaced when they die."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, final

from bulk.engine import Crew, Engine, Task
from bulk.hand import Hand, Outcome
from bulk.interrupt import sigterm_interrupts
from bulk.staff import READY, Staff, Worker, WorkerDied, supervise
from bulk.start import start_worker
from bulk.tries import Tries

__all__ = ["InProcess", "Processes", "local_engine"]


def local_engine(environments: Sequence[Mapping[str, str]]) -> Engine:
    """What does the work with so many workers, each with these variables beside those of this process."""
    return Processes(environments) if len(environments) > 1 else InProcess()


@final
class InProcess(Engine):
    """Does the tasks here, one after the other: a second process would cost more than it brings."""

    def carry_out(self, crew: Crew, tasks: Iterable[Task]) -> Generator[tuple[Task, Any]]:
        """See ``Engine``."""
        tries, hand = Tries(tasks), Hand(crew)
        with sigterm_interrupts():
            try:
                while (task := tries.next()) is not None:
                    done = tries.settle(task, hand.do(task.given))
                    if done is not None:
                        yield task, done.result
            finally:
                hand.close()


@final
class Processes(Engine):
    """Does the tasks in spawned processes."""

    def __init__(self, environments: Sequence[Mapping[str, str]]) -> None:
        """One process each, with these variables beside those of this process."""
        self._environments = environments

    def carry_out(self, crew: Crew, tasks: Iterable[Task]) -> Generator[tuple[Task, Any]]:
        """See ``Engine``."""
        with sigterm_interrupts():
            yield from supervise(_Processes(pickle.dumps(crew), self._environments), Tries(tasks))


@final
class _Process(Worker):
    """A spawned process at the other end of a pipe."""

    def __init__(self, packed: bytes, environment: Mapping[str, str]) -> None:
        self.environment = environment
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        # spawned, not forked: the parent has threads (torch, numba)
        self._process: SpawnProcess = context.Process(target=_work, args=(theirs, packed, dict(environment)))
        self._process.start()
        # else its death would not close the pipe
        theirs.close()

    def begin(self, task: Task) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            self.pipe.send(task.given)

    def report(self) -> Outcome | None:
        try:
            outcome: Outcome | None = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            code = self._process.exitcode or 0
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise WorkerDied(how) from None
        return outcome

    def dismiss(self) -> None:
        # what it has not sent is not wanted
        self._process.kill()
        self._process.join()
        self._process.close()
        self.pipe.close()


@final
class _Processes(Staff):
    def __init__(self, packed: bytes, environments: Sequence[Mapping[str, str]]) -> None:
        self._packed = packed
        self._environments = environments

    def hire(self) -> list[Worker]:
        return [_Process(self._packed, environment) for environment in self._environments]

    def replace(self, worker: Worker) -> Worker:
        assert isinstance(worker, _Process)
        return _Process(self._packed, worker.environment)

    def wait(self, workers: Iterable[Worker]) -> list[Worker]:
        by_pipe: dict[object, Worker] = {
            worker.pipe: worker for worker in workers if isinstance(worker, _Process)
        }
        return [by_pipe[pipe] for pipe in wait([*by_pipe])]  # type: ignore[list-item]


def _work(pipe: Connection, packed: bytes, environment: Mapping[str, str]) -> None:
    """In the process of its own."""
    # Ctrl-C reaches all processes of a terminal; the parent says what follows from it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(environment)
    start_worker()
    # what it needs is imported now
    crew: Crew = pickle.loads(packed)
    hand = Hand(crew)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        pipe.send(READY)
        while True:
            pipe.send(hand.do(pipe.recv()))
