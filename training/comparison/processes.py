"""Trainings side by side, each in a process of its own: what one leaves in memory, or dies of, is its own."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from typing import TypeVar, final

from bulk.start import start_worker
from training.trainer import Interrupted

Task = TypeVar("Task")


@final
class Stopped(BaseException):
    """SIGTERM came: no ``Exception``, so that nothing takes it for a failure of a row."""


def carried_out(
    work: Callable[[Task], None], tasks: Sequence[Task], workers: int
) -> Iterator[tuple[Task, bool]]:
    """Do ``work`` for every task, ``workers`` at a time.

    Yields:
        A task that ended, and whether it ended well; what went wrong is on standard error.

    Raises:
        Interrupted: SIGTERM or SIGINT came. The processes were told the same way, and have ended.
    """
    left, running = list(reversed(tasks)), dict[int, tuple[SpawnProcess, Task]]()
    with _sigterm_raises():
        try:
            while left or running:
                while left and len(running) < workers:
                    _start(work, left.pop(), running)
                for sentinel in wait(running):
                    assert isinstance(sentinel, int)
                    process, task = running.pop(sentinel)
                    process.join()
                    yield task, process.exitcode == 0
        except (KeyboardInterrupt, Stopped):
            raise Interrupted("stopped; the same command goes on") from None
        finally:
            _stop([process for process, _ in running.values()])


def _start(work: Callable[[Task], None], task: Task, running: dict[int, tuple[SpawnProcess, Task]]) -> None:
    # spawned, not forked: the parent has threads (torch, numba)
    process = get_context("spawn").Process(target=_do, args=(work, task))
    process.start()
    running[process.sentinel] = (process, task)


def _do(work: Callable[[Task], None], task: Task) -> None:
    """In the process of its own."""
    start_worker()
    try:
        work(task)
    except (Interrupted, KeyboardInterrupt):
        os._exit(1)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def _stop(processes: Sequence[SpawnProcess]) -> None:
    """Let them save what they have."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    def stop(number: int, frame: object) -> None:  # noqa: ARG001
        raise Stopped

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
