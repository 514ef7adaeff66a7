"""How long a batch takes, learned from the batches before it: a fixed part, and a part for each row."""

from __future__ import annotations

from typing import Final, final

__all__ = ["CostCurve"]

# share of the newest batch in what is known: some thirty batches are remembered
_NEWEST: Final = 1 / 16
# a batch that a busy machine held up counts as no more than this many times what was expected
_OUTLIER: Final = 4.0
# while all batches had one size, half of their time counts as the fixed part; this is how firmly
_DOUBT: Final = 0.02


@final
class CostCurve:
    """``t(rows) = overhead + rows * slope`` [s], fitted by least squares that forget.

    Attributes:
        overhead: what a batch costs beside its rows, and what is saved where two become one [s].
        slope: what a row adds [s].
    """

    __slots__ = ("_covariance", "_rows", "_seconds", "_variance", "overhead", "slope")

    def __init__(self) -> None:
        self.overhead = 0.0
        self.slope = 0.0
        self._rows = 0.0
        self._seconds = 0.0
        self._variance = 0.0
        self._covariance = 0.0

    def learn(self, rows: int, seconds: float) -> None:
        """A batch of so many rows took so long."""
        if self._rows:
            seconds = min(seconds, _OUTLIER * self.seconds(rows))
            self._update(rows, seconds)
        else:
            self._rows, self._seconds = float(rows), seconds
        doubt = _DOUBT * self._rows**2
        prior = self._seconds / (2 * self._rows)
        slope = (self._covariance + doubt * prior) / (self._variance + doubt)
        # neither part is negative, whatever the noise says
        self.slope = min(max(slope, 0.0), self._seconds / self._rows)
        self.overhead = self._seconds - self.slope * self._rows

    def _update(self, rows: int, seconds: float) -> None:
        more_rows, more_seconds = rows - self._rows, seconds - self._seconds
        self._rows += _NEWEST * more_rows
        self._seconds += _NEWEST * more_seconds
        self._variance = (1 - _NEWEST) * (self._variance + _NEWEST * more_rows**2)
        self._covariance = (1 - _NEWEST) * (self._covariance + _NEWEST * more_rows * more_seconds)

    def seconds(self, rows: int) -> float:
        """What a batch of so many rows will take; 0 while nothing is known [s]."""
        return self.overhead + rows * self.slope

    def work(self, rows: int, most: int) -> float:
        """What so many rows will take in batches of at most ``most`` [s]."""
        return -(-rows // most) * self.overhead + rows * self.slope
