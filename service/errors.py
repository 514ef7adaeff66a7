"""What can go wrong with a request, in the domain's words; ``faults.py`` holds the one mapping to HTTP.

::

    ServiceFault
    ├── InvalidField          a field or option breaks a rule
    │   └── UnsupportedGrid   the version was not tested on this grid
    ├── UnknownProblem
    ├── UnknownModel
    ├── TooLarge              body, batch or grid beyond the limits
    ├── UnsupportedMedia      a body that is in no known encoding
    ├── NotAcceptable         an answer in a form that nothing writes
    ├── NotAvailableYet       in the contract, not in this release
    ├── Overloaded            the queue is full
    ├── DeadlineExceeded      the client's own deadline passed
    └── WorkFailed            the computation itself broke
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "DeadlineExceeded",
    "InvalidField",
    "NotAcceptable",
    "NotAvailableYet",
    "Overloaded",
    "ServiceFault",
    "TooLarge",
    "UnknownModel",
    "UnknownProblem",
    "UnsupportedGrid",
    "UnsupportedMedia",
    "WorkFailed",
]

# characters of what was sent that an answer quotes
LONGEST_QUOTE: Final = 80


class ServiceFault(Exception):
    """A request that gets no solution; its text says what was expected, what was found, and the way out."""


class InvalidField(ServiceFault):
    """A field or option breaks a rule.

    Args:
        field: name of the field or option, or ``body``.
        rule: the broken rule, short and stable (``finite``, ``> 0``, ``rank``).
        message: expected, got, way out.
        index: first offending element, in the caller's own axes.
    """

    def __init__(self, field: str, rule: str, message: str, index: tuple[int, ...] | None = None) -> None:
        super().__init__(message)
        self.field = field
        self.rule = rule
        self.index = index


class UnsupportedGrid(InvalidField):
    """The surrogate declares other grids than the one asked for."""


class UnknownProblem(ServiceFault):
    """No such problem in the table."""


class UnknownModel(ServiceFault):
    """No such model, alias or version is loaded."""


class TooLarge(ServiceFault):
    """A body, batch or grid beyond the service's limits."""


class UnsupportedMedia(ServiceFault):
    """A body in no encoding that the service reads."""


class NotAcceptable(ServiceFault):
    """The client accepts no form that the service writes."""


class NotAvailableYet(ServiceFault):
    """An option of the contract that a later release brings."""


class Overloaded(ServiceFault):
    """The queue is full; ``retry_after`` is when to come back [s]."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineExceeded(ServiceFault):
    """The deadline that the client set has passed."""


class WorkFailed(ServiceFault):
    """The computation broke; the cause is chained and stays in the log."""
