"""What a worker is, wherever it runs: it opens what it needs at its first task, and reports what happens."""

from __future__ import annotations

import pickle
from contextlib import ExitStack
from typing import Any, NamedTuple, final

from bulk.engine import Crew

__all__ = ["Done", "Failed", "Hand", "Outcome"]


@final
class Done(NamedTuple):
    """A task's result."""

    result: Any


@final
class Failed(NamedTuple):
    """What a task raised, in parts: pickled, an exception is made anew of its text alone, and not all can be.

    Attributes:
        final: another try would raise it again.
        text: what messages say of it, the cause included.
    """

    kind: type[Exception]
    arguments: tuple[Any, ...]
    state: dict[str, Any]
    final: bool
    text: str

    @property
    def error(self) -> Exception:
        """The exception."""
        error = self.kind.__new__(self.kind, *self.arguments)
        error.__dict__.update(self.state)
        return error


Outcome = Done | Failed


@final
class Hand:
    """Does one task after the other."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._stack = ExitStack()
        self._do: Any = None

    def do(self, given: Any) -> Outcome:
        """Do a task."""
        try:
            if self._do is None:
                self._do = self._stack.enter_context(self._crew.open())
            return Done(self._do(given))
        except Exception as error:  # whatever it is, whoever gave the task decides what follows
            return _failed(error, final=isinstance(error, self._crew.final))

    def close(self) -> None:
        """Leave what was opened."""
        self._stack.close()


def _failed(error: Exception, *, final: bool) -> Failed:
    text = f"it raised {_line(error)}" + (f" because of {_line(error.__cause__)}" if error.__cause__ else "")
    failed = Failed(type(error), error.args, vars(error), final, text)
    try:
        pickle.dumps(failed)
    except Exception:  # whatever an exception holds, its text can be sent
        return Failed(RuntimeError, (_line(error),), {}, final, text)
    return failed


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
