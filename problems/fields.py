"""What a field is: its name, unit and bounds, written once and checked everywhere."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Fields = Mapping[str, NDArray[np.float64]]


class InvalidField(ValueError):
    """A field broke one of its rules.

    Attributes:
        field: name of the field. rule: ``dtype``, ``rank``, ``shape``, ``finite``, ``minimum``,
            ``exclusive_minimum``, ``maximum``, ``missing`` or ``unknown``. index: first offending index, or
            None when no single value is to blame.
    """

    def __init__(self, field: str, rule: str, index: tuple[int, ...] | None, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.rule = rule
        self.index = index
        self.message = message


@dataclass(frozen=True)
class FieldSpec:
    """Name, unit and bounds of a field or, with ``rank=0``, of a number.

    Attributes:
        name: the name used in files, requests and labels.
        symbol: the letter the literature uses.
        unit: physical unit, ``1`` when dimensionless.
        description: one sentence.
        minimum: smallest allowed value.
        exclusive_minimum: a value that must be exceeded.
        maximum: largest allowed value.
        rank: number of axes, 2 for (y, x), 0 for a number.
    """

    name: str
    symbol: str
    unit: str
    description: str
    minimum: float | None = None
    exclusive_minimum: float | None = None
    maximum: float | None = None
    rank: int = 2

    def validate(self, array: object) -> None:
        """Raises ``InvalidField`` unless ``array`` is a finite real array of this rank within the bounds."""
        self._validate(np.asarray(array), self.rank)

    def validate_batch(self, array: object) -> None:
        """The same for an array with one leading batch axis, which must not be empty."""
        self._validate(np.asarray(array), self.rank + 1)

    def _validate(self, array: NDArray[Any], rank: int) -> None:
        if array.dtype.kind not in "fiu":
            raise self._error("dtype", f"must hold real numbers, got dtype {array.dtype}")
        if array.ndim != rank:
            raise self._error("rank", f"must have {rank} axes, got shape {array.shape}")
        if array.size == 0:
            raise self._error("shape", f"must not be empty, got shape {array.shape}")
        self._require(np.isfinite(array), array, "finite", "must be finite")
        self._validate_bounds(array)

    def _validate_bounds(self, array: NDArray[Any]) -> None:
        if self.minimum is not None:
            self._require(array >= self.minimum, array, "minimum", self._phrase("be at least", self.minimum))
        if self.exclusive_minimum is not None:
            phrase = self._phrase("exceed", self.exclusive_minimum)
            self._require(array > self.exclusive_minimum, array, "exclusive_minimum", phrase)
        if self.maximum is not None:
            self._require(array <= self.maximum, array, "maximum", self._phrase("be at most", self.maximum))

    def _phrase(self, relation: str, bound: float) -> str:
        unit = "" if self.unit == "1" else f" {self.unit}"
        return f"must {relation} {bound:g}{unit}"

    def _require(
        self, good: NDArray[np.bool_] | np.bool_, array: NDArray[Any], rule: str, phrase: str
    ) -> None:
        if good.all():
            return
        index = tuple(int(i) for i in np.unravel_index(int(np.argmin(good)), array.shape))
        place = f" at {index}" if index else ""
        raise self._error(rule, f"{phrase}, got {array[index]:g}{place}", index)

    def _error(self, rule: str, complaint: str, index: tuple[int, ...] | None = None) -> InvalidField:
        return InvalidField(self.name, rule, index, f"{self.name} {complaint}")


def validate_fields(specs: tuple[FieldSpec, ...], fields: Mapping[str, object]) -> None:
    """Raises ``InvalidField`` unless ``fields`` holds exactly what ``specs`` name, each within its bounds."""
    known = {spec.name: spec for spec in specs}
    for name in fields:
        if name not in known:
            raise InvalidField(name, "unknown", None, f"unknown field {name}, expected {', '.join(known)}")
    for name, spec in known.items():
        if name not in fields:
            raise InvalidField(name, "missing", None, f"{name} is missing ({spec.description})")
        spec.validate(fields[name])
