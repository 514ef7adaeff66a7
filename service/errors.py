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
    ├── NotCertifiable        the tolerance cannot be met, or not in time
    ├── Unauthenticated       no token, or one that nobody issued
    ├── Forbidden             the token does not allow this
    ├── Overloaded            the queue is full
    │   └── RateLimited       over the limits of the caller's token
    ├── LoadFailed            a version that somebody wants served does not load
    ├── DeadlineExceeded      the client's own deadline passed
    ├── WorkerLost            whoever computed it is gone; the same request may be sent again
    └── WorkFailed            the computation itself broke

    InvalidSettings           the configuration does not make sense
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "DeadlineExceeded",
    "Forbidden",
    "InvalidField",
    "InvalidSettings",
    "LoadFailed",
    "NotAcceptable",
    "NotAvailableYet",
    "NotCertifiable",
    "Overloaded",
    "RateLimited",
    "ServiceFault",
    "TooLarge",
    "Unauthenticated",
    "UnknownModel",
    "UnknownProblem",
    "UnsupportedGrid",
    "UnsupportedMedia",
    "WorkFailed",
    "WorkerLost",
    "quoted",
]

# characters of what was sent that an answer quotes
LONGEST_QUOTE: Final = 80


def quoted(value: object) -> str:
    """A value as an answer quotes it: whatever was sent, in no more than a line, and in no time."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return repr(value[:LONGEST_QUOTE] if isinstance(value, str) else value)[:LONGEST_QUOTE]


class InvalidSettings(ValueError):
    """The configuration does not make sense; the message is one line."""


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


class NotCertifiable(ServiceFault):
    """No answer within the tolerance can be had: not in float64, not by this method, or not in time."""


class Unauthenticated(ServiceFault):
    """Nobody knows who asks: no token, or one that was not issued, was revoked or has expired."""


class Forbidden(ServiceFault):
    """It is known who asks, and they may not.

    Args:
        message: what they may, and what this needs.
        principal: the name of their token; empty: they have none.
    """

    def __init__(self, message: str, principal: str = "") -> None:
        super().__init__(message)
        self.principal = principal


class Overloaded(ServiceFault):
    """The queue is full; ``retry_after`` is when to come back [s]."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RateLimited(Overloaded):
    """The caller's own requests are too many or too frequent; others are still answered."""


class LoadFailed(ServiceFault):
    """A version does not load; what was served before goes on."""


class DeadlineExceeded(ServiceFault):
    """The deadline that the client set has passed."""


class WorkFailed(ServiceFault):
    """The computation broke; the cause is chained and stays in the log."""


class WorkerLost(ServiceFault):
    """Whoever was to compute it is gone, and another is there or comes: the same request may be sent again.

    Args:
        message: what was lost, and the way out.
        retry_after: when to come back [s].
        step: of a rollout, the last step whose frame left; it goes on with ``start_step``. None: no rollout.
    """

    def __init__(self, message: str, retry_after: int = 1, step: int | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.step = step
