"""Are data files what they should be? Each file by itself, then whether files share samples."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from training.check_origin import occurrences
from training.check_steady import check_steady
from training.check_trajectories import check_trajectories
from training.findings import Finding, Report
from training.progress import Progress
from training.trajectories import is_trajectories


def check_files(paths: Sequence[Path], progress: Progress) -> list[Report]:
    """A report for each file.

    Raises:
        InvalidDataset: a file cannot be read at all.
    """
    reports = [_check(path, progress) for path in dict.fromkeys(paths)]
    leaks: dict[Path, list[Finding]] = {report.path: [] for report in reports}
    for earlier, later in combinations(reports, 2):
        if shared := _shared(earlier, later):
            text = f"{shared} inputs are also in {earlier.path}"
            leaks[later.path].append(Finding("leakage", "fault", text))
    return [replace(report, findings=(*report.findings, *leaks[report.path])) for report in reports]


def _check(path: Path, progress: Progress) -> Report:
    return check_trajectories(path, progress) if is_trajectories(path) else check_steady(path, progress)


def _shared(one: Report, other: Report) -> int:
    """Number of inputs of ``other`` that are in ``one`` too, by the channels that both have."""
    common = [name for name in one.inputs if name in other.inputs]
    known = set(occurrences(one.inputs, common))
    return sum(key in known for key in occurrences(other.inputs, common))
