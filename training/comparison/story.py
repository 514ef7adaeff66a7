"""The story of a comparison: data, a search of the learning rate, the rows, what they cost, the report.

Everything that is done is a file, whole or absent, so that the same command goes on after an interruption.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar, final

import click

from bulk.interrupt import sigterm_interrupts
from training.comparison.config import Comparison, InvalidComparison, ProblemSection
from training.comparison.costs import Cost, measure_costs
from training.comparison.processes import carried_out
from training.comparison.report import write_report
from training.comparison.rows import (
    Entry,
    Record,
    Row,
    best_rate,
    known_row,
    known_trial,
    read_record,
    trials,
    write_record,
)
from training.comparison.scoring import (
    baseline_rows,
    baselines_of,
    files_elsewhere,
)
from training.comparison.work import Search, make_row, try_rates
from training.config import Run
from training.files import exclusive
from training.generate import DatasetFile, estimate, generate
from training.progress import Progress
from training.splits import all_files, worker_count
from training.trainer import Interrupted

# rounds of the timing
ROUNDS = 15

Work = TypeVar("Work", Search, Entry)


class RowsFailed(RuntimeError):
    """Some rows were not made."""


@final
class CostTable(Record):
    """What all operators cost on one problem, measured in one run."""

    costs: tuple[Cost, ...]


def compare(comparison: Comparison, report: Path, command: str, progress: Progress, only: str) -> None:
    """Carry out what is missing of a comparison, and write its report.

    Args:
        comparison: the comparison.
        report: directory of the report.
        command: what makes it, for the report.
        progress: makes the progress bars.
        only: pattern of the rows to make, such as ``darcy/*/seed_0``; their learning rates are searched.

    Raises:
        InvalidComparison: an operator does not fit a problem, or what is there is of another comparison.
        Interrupted: SIGTERM or SIGINT came; the same command goes on.
        RowsFailed: some rows were not made; the others were.
    """
    wanted = _wanted(comparison, only)
    with _interruptible(), exclusive(comparison.comparison.directory):
        asked = [problem for problem in comparison.problems if any(row.problem == problem for row in wanted)]
        make_data(comparison, asked, progress)
        make_baselines(comparison, asked)
        failed = search(comparison, wanted, progress)
        failed += make_rows(comparison, wanted, progress)
        make_costs(comparison, asked, progress)
        click.echo(f"report: {render(comparison, report, command)}")
    if failed:
        raise RowsFailed(f"{len(failed)} of {len(wanted)} rows were not made, see above: {', '.join(failed)}")


@contextmanager
def _interruptible() -> Iterator[None]:
    """What SIGTERM or SIGINT ends goes on with the same command, whatever was being done."""
    try:
        with sigterm_interrupts():
            yield
    except KeyboardInterrupt:
        raise Interrupted("stopped; the same command goes on") from None


def render(comparison: Comparison, report: Path, command: str) -> Path:
    """Write the report of the rows that are there."""
    found = [_row_of(entry) for entry in _wanted(comparison, "*")]
    rows = [row for row in found if row is not None]
    costs: list[Cost] = []
    for problem in comparison.problems:
        rows += _baselines(comparison, problem)
        costs += _costs(comparison, problem)
    return write_report(report, comparison, rows, costs, command)


def make_data(comparison: Comparison, problems: Sequence[ProblemSection], progress: Progress) -> None:
    """Generate the files that are missing, those of the other grids too."""
    for problem in problems:
        files, workers = _files(comparison, problem)
        expected = estimate(files, workers)
        if expected.samples:
            click.echo(f"{problem.name}: {expected} on {workers} processes")
        # another comparison, or a run, may have the same data
        with exclusive(problem.data.directory):
            generate(files, workers, progress)


def search(comparison: Comparison, wanted: Sequence[Entry], progress: Progress) -> list[str]:
    """Train every operator at every rate for a while; returns the names of the searches that failed."""
    asked = {(entry.operator.name, entry.problem.name) for entry in wanted}
    left = [
        each
        for each in _searches(comparison)
        if _key(each) in asked and not all(map(known_trial, each.entries))
    ]
    return _carry_out(try_rates, left, comparison, "search", progress)


def make_rows(comparison: Comparison, wanted: Sequence[Entry], progress: Progress) -> list[str]:
    """Train the rows that are missing, at the rates that were found; returns those that failed."""
    entries = [_at_best_rate(entry) for entry in wanted]
    left = [entry for entry in entries if entry is not None and known_row(entry) is None]
    failed = [entry.name for entry, found in zip(wanted, entries, strict=True) if found is None]
    return failed + _carry_out(make_row, left, comparison, "rows", progress)


def make_baselines(comparison: Comparison, problems: Sequence[ProblemSection]) -> None:
    """What needs no training."""
    for problem in problems:
        if len(_baselines(comparison, problem)) < len(baselines_of(problem)):
            run = _any_entry(comparison, problem).run
            for row in baseline_rows(run, problem, _data_hash(run)):
                write_record(_baseline_path(comparison, problem, row.operator), row)


def make_costs(comparison: Comparison, problems: Sequence[ProblemSection], progress: Progress) -> None:
    """Measure what the operators cost, those of a problem in turn."""
    for problem in problems:
        if _costs(comparison, problem):
            continue
        entries = _untrained(comparison, problem)
        costs = measure_costs(entries, problem.grids, ROUNDS, progress)
        table = CostTable(recipe=_cost_hash(comparison, problem), costs=tuple(costs))
        write_record(_cost_path(comparison, problem), table)


def _carry_out(
    work: Callable[[Work], None],
    tasks: Sequence[Work],
    comparison: Comparison,
    label: str,
    progress: Progress,
) -> list[str]:
    failed = []
    with progress(None, len(tasks), label) as bar:
        for task, well in carried_out(work, tasks, comparison.comparison.workers):
            bar.update(1)
            bar.set_postfix(last=task.name)
            if not well:
                failed.append(task.name)
    return failed


def _wanted(comparison: Comparison, only: str) -> list[Entry]:
    """The rows, all operators and problems from one seed before the next seed: rates are filled in later."""
    entries = [
        Entry(comparison, operator, problem, seed, comparison.search.learning_rates[0])
        for seed in comparison.comparison.seeds
        for problem in comparison.problems
        for operator in comparison.operators
    ]
    # an operator that does not fit is found before anything is computed
    for entry in entries:
        entry.run  # noqa: B018
    found = [entry for entry in entries if fnmatchcase(entry.name, only)]
    if not found:
        raise InvalidComparison(f"no row is called {only!r}; they are called like {entries[0].name!r}")
    return found


def _searches(comparison: Comparison) -> Iterator[Search]:
    for problem in comparison.problems:
        for operator in comparison.operators:
            own = trials(comparison, operator, problem)
            if own:
                yield Search(operator, problem, own)


def _key(search: Search) -> tuple[str, str]:
    return search.operator.name, search.problem.name


def _at_best_rate(entry: Entry) -> Entry | None:
    """The row at the rate that the search found; None: the search is not done."""
    comparison = entry.comparison
    own = trials(comparison, entry.operator, entry.problem)
    if not own:
        return entry
    found = [known_trial(trial) for trial in own]
    if not all(found):
        return None
    rate = best_rate([trial for trial in found if trial is not None])
    return Entry(comparison, entry.operator, entry.problem, entry.seed, rate)


def _files(comparison: Comparison, problem: ProblemSection) -> tuple[list[DatasetFile], int]:
    run = _any_entry(comparison, problem).run
    elsewhere = [file for files in files_elsewhere(run, problem).values() for file in files.values()]
    return all_files(run) + elsewhere, worker_count(run)


def _any_entry(comparison: Comparison, problem: ProblemSection) -> Entry:
    """For what all operators share."""
    rate = comparison.search.learning_rates[0]
    return Entry(comparison, comparison.operators[0], problem, comparison.comparison.seeds[0], rate)


def _row_of(entry: Entry) -> Row | None:
    """The finished row, at whatever rate the search found."""
    found = _at_best_rate(entry)
    return None if found is None else known_row(found)


def _baselines(comparison: Comparison, problem: ProblemSection) -> list[Row]:
    """Those that are there."""
    recipe = _data_hash(_any_entry(comparison, problem).run)
    paths = [_baseline_path(comparison, problem, name) for name in baselines_of(problem)]
    found = [read_record(path, Row, recipe) for path in paths]
    return [row for row in found if row is not None]


def _baseline_path(comparison: Comparison, problem: ProblemSection, name: str) -> Path:
    return comparison.rows_directory / problem.name / f"{name}.json"


def _costs(comparison: Comparison, problem: ProblemSection) -> tuple[Cost, ...]:
    """Those that were measured of these operators on this device; of others they are measured anew."""
    path = _cost_path(comparison, problem)
    if not path.is_file():
        return ()
    table = CostTable.model_validate_json(path.read_text())
    return table.costs if table.recipe == _cost_hash(comparison, problem) else ()


def _untrained(comparison: Comparison, problem: ProblemSection) -> list[Entry]:
    """The operators of a problem, at a rate that does not matter."""
    rate = comparison.search.learning_rates[0]
    return [Entry(comparison, operator, problem, 0, rate) for operator in comparison.operators]


def _cost_path(comparison: Comparison, problem: ProblemSection) -> Path:
    return comparison.comparison.directory / "costs" / f"{problem.name}.json"


def _cost_hash(comparison: Comparison, problem: ProblemSection) -> str:
    recipes, given = [entry.recipe for entry in _untrained(comparison, problem)], comparison.comparison
    return _hash(json.dumps([recipes, problem.grids, given.device, given.threads]))


def _data_hash(run: Run) -> str:
    # what a later version adds to the section, and the file leaves out, changes no data
    return _hash(run.data.model_dump_json(exclude={"directory", "workers"}, exclude_defaults=True))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
