"""Which task is next, and how often each was begun."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from typing import final

from bulk.engine import TRIES, EngineUnavailable, Task, TaskFailed
from bulk.hand import Done, Outcome

__all__ = ["Tries"]


@final
class Tries:
    """Tasks in their order; one that has to be done again goes first."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._tasks = iter(tasks)
        self._again: deque[Task] = deque()
        self._lost: Counter[int] = Counter()
        self._stillborn = 0
        self._drained = False

    def next(self) -> Task | None:
        """The task to be begun now; None: all were."""
        if self._again:
            return self._again.popleft()
        task = next(self._tasks, None)
        self._drained = task is None
        return task

    @property
    def all_begun(self) -> bool:
        """Whether it is known that nothing is left to begin."""
        return self._drained and not self._again

    def settle(self, task: Task, outcome: Outcome) -> Done | None:
        """What came of a task; None: it is done again.

        Raises:
            TaskFailed: it was begun often enough.
            Exception: what the task raised, where another try would raise it again.
        """
        self._stillborn = 0
        if isinstance(outcome, Done):
            return outcome
        if outcome.final:
            raise outcome.error
        self.lose(task, outcome.text)
        return None

    def lose(self, task: Task | None, why: str) -> None:
        """A worker was lost; the task that it did is begun once more.

        Raises:
            TaskFailed: it was begun often enough.
            EngineUnavailable: one worker after the other is lost before it does anything.
        """
        if task is None:
            self._stillborn += 1
            if self._stillborn >= TRIES:
                raise EngineUnavailable(f"{TRIES} workers in a row did not start; the last one {why}")
            return
        self._lost[task.key] += 1
        if self._lost[task.key] >= TRIES:
            raise TaskFailed(
                f"{task.name} was begun {TRIES} times; the last time {why}. "
                "What is done is kept: mend the cause and give the same command"
            )
        self._again.append(task)
