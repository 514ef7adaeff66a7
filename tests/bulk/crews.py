"""Crews that workers in other processes import: what a test needs to go wrong."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple


class Sum(NamedTuple):
    """Adds up numbers; before that it leaves a mark, and dies or fails as long as there are few of them.

    Attributes:
        marks: folder of the marks.
        numbers: to be added.
        deaths: it dies so many times first.
        failures: then it raises an exception so many times.
    """

    marks: Path
    numbers: tuple[int, ...]
    deaths: int = 0
    failures: int = 0


class Hopeless(Exception):
    """Takes more than a text, as exceptions of this project do."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@contextmanager
def adding() -> Iterator[Callable[[Sum], int]]:
    """Adds, and knows nothing from task to task."""
    yield _add


@contextmanager
def hopeless() -> Iterator[Callable[[object], int]]:
    """Raises what another try would raise again."""

    def refuse(_: object) -> int:
        raise Hopeless("permeability", "expected a number")

    yield refuse


@contextmanager
def sulking() -> Iterator[Callable[[Path], int]]:
    """Where something went wrong all else does, as in a process whose CUDA context is lost; the first is."""
    broken = False

    def sulk(marks: Path) -> int:
        nonlocal broken
        before = len(list(marks.iterdir()))
        (marks / f"{before}").touch()
        broken = broken or before == 0
        if broken:
            raise OSError("the device is away")
        return before

    yield sulk


class Unimportable:
    """Nothing that a worker could import."""

    def __call__(self) -> AbstractContextManager[Callable[[Any], Any]]:
        return adding()

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return int, ("cannot be had",)


def _add(task: Sum) -> int:
    if task.deaths or task.failures:
        before = len(list(task.marks.iterdir()))
        (task.marks / f"{before}").touch()
        if before < task.deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        if before < task.deaths + task.failures:
            raise OSError("the disk is away")
    return sum(task.numbers)


class Reports(NamedTuple):
    """Asks for the process and its environment."""

    variable: str


@contextmanager
def reporting() -> Iterator[Callable[[Reports], tuple[int, str | None]]]:
    """Says which process it is, and what a variable holds there."""
    yield lambda task: (os.getpid(), os.environ.get(task.variable))
