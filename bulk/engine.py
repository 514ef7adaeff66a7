"""The seam between what is to be done and who does it.

A job is a crew, which says what every worker does, and tasks, which differ in what they are given. An engine
brings them together: each task is done until it is done once, by whichever worker is free, and its result is
handed over in any order. Whoever takes the results writes each down whole before asking for the next one, so
that a job that was killed goes on with what is missing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, final

__all__ = ["TRIES", "Crew", "Engine", "EngineKind", "EngineUnavailable", "Task", "TaskFailed"]

EngineKind = Literal["local", "ray"]

# how often a task is begun, whatever ends its workers or goes wrong in them
TRIES: Final = 3


class EngineUnavailable(RuntimeError):
    """What is to do the work cannot be had here."""


class TaskFailed(RuntimeError):
    """A task was begun as often as is sensible."""


@final
@dataclass(frozen=True)
class Crew:
    """What every worker does; pickled, and sent to each.

    Attributes:
        open: enters what a worker keeps from task to task; gives what does a task.
        final: what a task may raise that another try would raise again.
    """

    open: Callable[[], AbstractContextManager[Callable[[Any], Any]]]
    final: tuple[type[Exception], ...] = ()


@final
class Task(NamedTuple):
    """One part of a job.

    Attributes:
        key: what the result is written down under.
        name: what messages call it, such as ``chunk 17 (samples 1700 to 1799)``.
        given: what the worker gets; pickled.
    """

    key: int
    name: str
    given: Any


class Engine(ABC):
    """Does the tasks of a job."""

    @abstractmethod
    def carry_out(self, crew: Crew, tasks: Iterable[Task]) -> Generator[tuple[Task, Any]]:
        """Do every task once; give it back with its result, in any order.

        A task is taken from ``tasks`` when there is a worker for it. SIGTERM ends the work as SIGINT does.

        Raises:
            EngineUnavailable: there is nobody to do it.
            TaskFailed: a task was lost with its workers, or failed, ``TRIES`` times.
            KeyboardInterrupt: SIGINT or SIGTERM came.
        """
