"""What a tolerance may be, and what is said where it, or the deadline that came with it, cannot be met."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from problems import SteadyProblem
from service.errors import DeadlineExceeded, InvalidField, NotCertifiable, quoted
from service.trust import too_much_contrast
from service.validate import Inputs
from service.workers.certified import TOO_LATE

__all__ = ["check_tolerance", "met_in_time", "refuse_unsolved"]


def check_tolerance(tolerance: float | str | None) -> None:
    """Refuse what no relative error can be compared with.

    Raises:
        InvalidField: it is neither between 0 and 1 nor ``discretization``.
    """
    if tolerance is None or tolerance == "discretization":
        return
    if isinstance(tolerance, str) or not 0 < tolerance < 1:
        message = "tolerance: expected a number between 0 and 1, or 'discretization'"
        raise InvalidField("tolerance", "range", f"{message}, got {quoted(tolerance)}")


@contextmanager
def met_in_time(tolerance: float | str | None) -> Iterator[None]:
    """A block that has a deadline to keep, and a tolerance to meet by then.

    Raises:
        NotCertifiable: there is a tolerance, and the deadline passed.
        DeadlineExceeded: there is none, and the deadline passed.
    """
    try:
        yield
    except DeadlineExceeded as error:
        if tolerance is None:
            raise
        raise NotCertifiable(f"the tolerance {tolerance} was not met in time: {error}") from error


def refuse_unsolved(
    problem: SteadyProblem, inputs: Inputs, unsolved: Mapping[int, str], tolerance: float | None
) -> None:
    """Refuse what has rows that could not be had.

    Args:
        problem: what was solved.
        inputs: of what.
        unsolved: why not, by row.
        tolerance: that was asked for; None: none.

    Raises:
        DeadlineExceeded: nobody waits for the row any more.
        NotCertifiable: float64 does not carry the tolerance.
        InvalidField: float64 does not carry the field.
    """
    for row, why in unsolved.items():
        if why == TOO_LATE:
            raise DeadlineExceeded(why)
        if tolerance is None:
            raise too_much_contrast(problem, inputs, row, why)
        raise NotCertifiable(f"the tolerance {tolerance} cannot be met: {why}")
