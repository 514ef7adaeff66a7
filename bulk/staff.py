"""Workers elsewhere: who is ready gets a task, who dies or fails is replaced. Engines say what they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable
from typing import Any, Final

from bulk.engine import Task
from bulk.hand import Outcome
from bulk.tries import Tries

__all__ = ["READY", "Staff", "Worker", "WorkerDied", "supervise"]

# what a worker reports first
READY: Final = None


class WorkerDied(Exception):
    """A worker is gone; the text says how, as what follows its name."""


class Worker(ABC):
    """A hand in another process.

    Attributes:
        task: what it does; None: nothing so far.
    """

    task: Task | None = None

    @abstractmethod
    def begin(self, task: Task) -> None:
        """Give it a task; whether it still lives shows in its report."""

    @abstractmethod
    def report(self) -> Outcome | None:
        """What came of its task; ``READY`` where it had none.

        Raises:
            WorkerDied: nothing will.
        """

    @abstractmethod
    def dismiss(self) -> None:
        """End it, whatever it does."""


class Staff(ABC):
    """Hires workers."""

    @abstractmethod
    def hire(self) -> list[Worker]:
        """As many as there are places."""

    @abstractmethod
    def replace(self, worker: Worker) -> Worker:
        """Another one in the place of one that died or failed."""

    @abstractmethod
    def wait(self, workers: Iterable[Worker]) -> list[Worker]:
        """Those that have something to report, when there are any."""


def supervise(staff: Staff, tries: Tries) -> Generator[tuple[Task, Any]]:
    """Have all tasks done; see ``Engine.carry_out``."""
    workers: set[Worker] = set()

    def dismiss(worker: Worker) -> None:
        workers.remove(worker)
        worker.dismiss()

    try:
        workers.update(staff.hire())
        while not tries.all_begun or any(worker.task for worker in workers):
            for worker in staff.wait(workers):
                task, worker.task = worker.task, None
                try:
                    outcome = worker.report()
                except WorkerDied as death:
                    dismiss(worker)
                    tries.lose(task, f"its worker {death}" if task else str(death))
                    workers.add(staff.replace(worker))
                    continue
                done = None
                if task is not None and outcome is not READY:
                    done = tries.settle(task, outcome)
                    if done is None:
                        # what failed may be its process, such as a CUDA context that is lost for good
                        dismiss(worker)
                        workers.add(staff.replace(worker))
                        continue
                if (following := tries.next()) is None:
                    dismiss(worker)
                else:
                    # before the result is handed over: it is computed while that is written down
                    worker.task = following
                    worker.begin(following)
                if task is not None and done is not None:
                    yield task, done.result
    finally:
        for worker in workers:
            worker.dismiss()
