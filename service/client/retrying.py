"""When the clients ask again: the same for both of them, and over both protocols.

* Whoever cannot be reached, or breaks off, is asked again for some seconds: a service that begins anew is
  back by then.
* Whoever says that it cannot answer now (429, 503) is asked again as often as the caller wishes, after as
  long as it says; not at all, where that is past the deadline.

Everything that is asked may be asked twice: the service keeps nothing of a request.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

from service.client.connection import ServiceError

__all__ = ["PATIENCE", "RETRIED", "Attempts", "Patience", "Retryable", "seconds_of"]

# for how long a service is asked again that cannot be reached [s]; never longer than the client's timeout.
# a front that died answers again after 2 to 3 s, on a busy machine after 6, later if it dies again and again
PATIENCE: Final = 20.0
# before it is asked again, the first time [s]; then twice as long, and so on
FIRST_PAUSE: Final = 0.1
# the same after a refusal that does not say when to come back [s]
FIRST_PAUSE_REFUSED: Final = 0.5
# whatever a refusal says [s]
LONGEST_PAUSE: Final = 60.0
# who failed together does not come back together: shares of a pause, and of what a refusal says
SPREAD: Final = (0.5, 1.0)
SPREAD_REFUSED: Final = (1.0, 1.25)
# of answers that say: not now
RETRIED: Final = (429, 503)
# what both libraries say of a certificate that nobody trusts: nobody will in a moment
UNTRUSTED: Final = "CERTIFICATE_VERIFY_FAILED"


class Retryable(Exception):
    """Something that may work in a moment.

    Args:
        error: what to raise when it did not; a ``ServiceError`` where the service answered.
        after: when to come back, if the service said so [s].
    """

    def __init__(self, error: Exception, after: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.after = after


def seconds_of(retry_after: str | None) -> float | None:
    """What ``Retry-After`` says [s]; None where it says nothing, or a date."""
    try:
        seconds = float(retry_after or "")
    except ValueError:
        return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


@final
@dataclass(frozen=True)
class Patience:
    """What a caller puts up with.

    Attributes:
        retries: further attempts after the service said that it cannot answer now; 0: none after anything.
        seconds: for how long a service that cannot be reached is asked again [s].
    """

    retries: int
    seconds: float

    def attempts(self, options: Mapping[str, Any]) -> Attempts:
        """For a question with these options, which may have a deadline."""
        deadline = options.get("timeout_ms")
        seconds = math.inf if deadline is None else deadline / 1000
        return Attempts(self.retries, min(self.seconds, seconds), seconds)


@final
class Attempts:
    """Of one question, or of a rollout since its newest frame."""

    def __init__(
        self,
        retries: int,
        seconds: float,
        deadline: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """See ``Patience``; after the deadline, counted from now, nobody has use for an answer [s]."""
        self._retries = retries
        self._seconds = seconds
        self._clock = clock
        self._deadline = deadline
        self._began = clock()
        self._refusals = 0
        self._losses = 0
        self._lost_at = 0.0

    @property
    def left(self) -> float:
        """The time that the next attempt has [s]; infinite: all the time that it takes."""
        return self._left() if self._refusals or self._losses else self._deadline

    def _left(self) -> float:
        return self._deadline - (self._clock() - self._began)

    def pause(self, failure: Retryable) -> float:
        """How long to wait before the next attempt [s].

        Raises:
            Exception: that of the failure, when it is time to give up.
        """
        if isinstance(failure.error, ServiceError):
            return self._after_refusal(failure)
        return self._after_loss(failure)

    def _after_refusal(self, failure: Retryable) -> float:
        if self._refusals >= self._retries:
            raise failure.error
        self._refusals += 1
        # it was reached
        self._losses = 0
        if failure.after is None:
            pause = _doubled(FIRST_PAUSE_REFUSED, self._refusals)
        else:
            pause = min(failure.after, LONGEST_PAUSE) * random.uniform(*SPREAD_REFUSED)
        if pause > self._left():
            raise failure.error
        return pause

    def _after_loss(self, failure: Retryable) -> float:
        now = self._clock()
        if not self._losses:
            self._lost_at = now
        self._losses += 1
        left = self._lost_at + self._seconds - now
        if left <= 0 or not self._retries or UNTRUSTED in str(failure):
            raise failure.error
        # the last attempt is made when the time is over
        return min(_doubled(FIRST_PAUSE, self._losses), left)


def _doubled(first: float, number: int) -> float:
    """The pause of this number, counted from one [s]."""
    return min(first * 2.0 ** (number - 1), LONGEST_PAUSE) * random.uniform(*SPREAD)
