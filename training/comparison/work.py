"""What a process of a comparison does: a search of the learning rate, or a row.

It imports nothing that draws or prints: every row starts a process.
"""

import shutil
from typing import NamedTuple, final

from training.comparison.config import OperatorSection, ProblemSection
from training.comparison.rows import Entry, Trial, known_trial, row_path, trial_path, write_record
from training.comparison.scoring import diverged_row, finished_row, metric_of
from training.files import exclusive
from training.journal import read_journal
from training.learner import averaged_surrogate
from training.progress import silent
from training.record import Diverged
from training.run import make_checkpoint
from training.trainer import choose_device


@final
class Search(NamedTuple):
    """All learning rates of one operator on one problem."""

    operator: OperatorSection
    problem: ProblemSection
    entries: tuple[Entry, ...]

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.problem.name}/{self.operator.name}/search"


def try_rates(search: Search) -> None:
    """Train at every rate that was not tried, and keep the errors on the validation split."""
    for entry in search.entries:
        if known_trial(entry) is None:
            write_record(
                trial_path(entry),
                Trial(learning_rate=entry.learning_rate, error=_validation_error(entry), recipe=entry.recipe),
            )
            # its weights are of no use
            shutil.rmtree(entry.run.run.directory)


def make_row(entry: Entry) -> None:
    """Train, and measure on the test split."""
    run = entry.run
    with exclusive(run.run.directory):
        try:
            checkpoint = make_checkpoint(run, entry.text, silent, resume=True)
        except Diverged:
            write_record(row_path(entry), diverged_row(entry, run.optimizer.steps))
            return
        surrogate = averaged_surrogate(run, checkpoint).to(choose_device(run.run.device))
        write_record(row_path(entry), finished_row(entry, surrogate, checkpoint.seconds))


def _validation_error(entry: Entry) -> float:
    """The mean over the families of the error that rows are compared by, at the end of training."""
    run = entry.run
    with exclusive(run.run.directory):
        try:
            make_checkpoint(run, entry.text, silent, resume=True)
        except Diverged:
            return float("inf")
    last = read_journal(run.run.directory / "log.jsonl")[-1]
    metric = f"{metric_of(run.data.problem)}_mean"
    errors = [value for name, value in last.items() if name.partition(".")[2] == metric]
    return sum(errors) / len(errors)
