"""What a training leaves behind while it runs: lines of the log, validations, checkpoints."""

import math
import time
from typing import final

from training.checkpoint import Checkpoint, save_checkpoint
from training.config import Run
from training.journal import Journal
from training.learner import Learner
from training.progress import Bar
from training.schedule import learning_rate
from training.task import Task


class Diverged(RuntimeError):
    """The loss is not finite."""


class Record:
    """Writes to the run's directory and shows the same numbers on the bar."""

    def __init__(
        self,
        run: Run,
        text: str,
        learner: Learner,
        task: Task,
        start: Checkpoint | None,
        bar: Bar,
    ) -> None:
        self._run, self._text, self._learner, self._task, self._bar = run, text, learner, task, bar
        self._journal = Journal(run.run.directory / "log.jsonl", 0 if start is None else start.step)
        self._start = time.monotonic() - (0.0 if start is None else start.seconds)
        self._saved = time.monotonic()
        self._shown: dict[str, str] = {}

    def loss(self, step: int) -> None:
        """Log the mean loss since the last line, and start a new mean."""
        steps = step % self._run.log.every or self._run.log.every
        loss = self._loss_sum(step) / steps
        self._learner.loss_sum.zero_()
        rate = learning_rate(self._run.optimizer, step - 1)
        self._journal.write({"step": step, "loss": loss, "learning_rate": rate, "seconds": self._seconds()})
        self._show(loss=loss)

    def validate(self, step: int) -> None:
        """Log the errors of the averaged weights on the validation splits."""
        errors = self._task.validate(self._learner.averaged())
        if not errors:
            return
        shown: dict[str, float] = {}
        for name, error in errors.items():
            shown.setdefault(name.partition(".")[0], error)
        self._show(**shown)
        self._journal.write({"step": step, **errors})

    def checkpoint_due(self, step: int) -> bool:
        """Whether the run file asks for a checkpoint now."""
        chosen = self._run.checkpoint
        every = chosen.steps is not None and step % chosen.steps == 0
        return (
            every or step == self._run.optimizer.steps or time.monotonic() - self._saved > 60 * chosen.minutes
        )

    def save(self, step: int) -> Checkpoint:
        """Write the checkpoint, unless training has failed; the log is on the disk before it."""
        self._loss_sum(step)
        self._journal.sync()
        checkpoint = self._learner.capture(step, self._seconds(), self._text)
        save_checkpoint(self._run.checkpoint_path, checkpoint)
        self._saved = time.monotonic()
        return checkpoint

    def close(self) -> None:
        """Close the log."""
        self._journal.close()

    def _loss_sum(self, step: int) -> float:
        """Sum of the losses since the last line; waits for the device."""
        loss_sum = self._learner.loss_sum.item()
        if not math.isfinite(loss_sum):
            raise Diverged(f"the loss is {loss_sum} after {step} steps: lower optimizer.learning_rate")
        return loss_sum

    def _seconds(self) -> float:
        """Time spent training, earlier sessions included."""
        return round(time.monotonic() - self._start, 1)

    def _show(self, **values: float) -> None:
        self._shown |= {name: f"{value:.4g}" for name, value in values.items()}
        self._bar.set_postfix(**self._shown)


@final
class Unrecorded:
    """Of a process that another one leads: the leader writes for all."""

    def loss(self, step: int) -> None:
        """The leader logs it."""

    def validate(self, step: int) -> None:
        """The leader does."""

    def checkpoint_due(self, step: int) -> bool:  # noqa: ARG002
        """Never here."""
        return False

    def save(self, step: int) -> None:
        """The leader does."""

    def close(self) -> None:
        """Nothing is open."""
