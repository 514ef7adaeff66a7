"""What the clients give: arrays by name, and what is known about them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from service.client.labels import plain

__all__ = [
    "Answer",
    "CalibratedEstimate",
    "ErrorEstimate",
    "ErrorSummary",
    "Frame",
    "Gradient",
    "Quantity",
    "Tangent",
]


@final
@dataclass(frozen=True)
class ErrorEstimate:
    """How far an answer is from the exact solution: ``lower <= error <= upper``, relative.

    Attributes:
        reference: ``discrete``: from that of its operator; ``pde``: from that of the equation itself.
        l2_lower: guaranteed, like ``l2_upper``, of the relative L2 error; infinite ``l2_upper``: unknown.
        max_lower: guaranteed, like ``max_upper``, of the largest error of a cell over the largest value.
    """

    kind: str
    norm: str
    lower: float
    upper: float
    l2_estimate: float
    steps: int
    reference: str = "discrete"
    l2_lower: float = 0.0
    l2_upper: float = math.inf
    max_lower: float = 0.0
    max_upper: float = math.inf


@final
@dataclass(frozen=True)
class ErrorSummary:
    """Of a batch whose estimates are too many for a header: the largest upper bound, and what is typical.

    Attributes:
        steps: the most that any field took.
        fields: how many the batch has.
    """

    kind: str
    norm: str
    upper_max: float
    l2_estimate_median: float
    steps: int
    fields: int


@final
@dataclass(frozen=True)
class Answer:
    """Solutions by name, each also an attribute (``answer.pressure``), and what is known about them.

    For a batch, ``error`` and ``in_distribution`` have an entry for each field. Over HTTP the numbers of a
    batch's ``error`` have four digits, and those of some hundred fields are an :class:`ErrorSummary`.

    Attributes:
        model: the version that answered, or whose answer was refined; None for the reference solver.
        operator: id of the discrete operator that ``error`` speaks of.
        ood_score: the share of the model's calibration data that resembles its training data more than this
            input, [0, 1); None: nobody can tell.
        certified: a tolerance was asked for, and these numbers are guaranteed to meet it.
        iterations: of the reference solver; of a batch the most.
        timing_ms: where the service's time went: queue, compute, certify, total [ms].
    """

    fields: Mapping[str, NDArray[Any]]
    model: str | None
    method: str
    operator: str
    error: Any
    in_distribution: Any
    certified: bool
    iterations: int
    timing_ms: Mapping[str, float]
    ood_score: Any = None

    def __getattr__(self, name: str) -> NDArray[Any]:
        # looked up without attribute access, which would come back here while an answer is unpickled
        known: Mapping[str, NDArray[Any]] = self.__dict__.get("fields", {})
        if name not in known:
            raise AttributeError(f"the answer has no {name!r}")
        return known[name]


@final
@dataclass(frozen=True)
class Gradient:
    """Of the sum of cotangent times solution, or times a frame; NumPy takes it as the array that it has.

    Attributes:
        gradient: in the shape of the input field, with the leading axis of several cotangents.
        wrt: what it is taken with respect to.
        model: the version whose answer was differentiated, or started from; None: no version took part.
        error: guaranteed, of each field that ``gradient`` has: the largest error of a derivative in any
            direction along which the logarithm of the input changes by no more than 1. None: unknown.
        certified: ``error`` is known.
        in_distribution: whether each field resembles the training data; of a single one not a tuple.
        timing_ms: where the service's time went: queue, compute, certify, total [ms].
    """

    gradient: NDArray[Any]
    wrt: str
    model: str | None
    method: str
    operator: str
    in_distribution: Any
    timing_ms: Mapping[str, float]
    error: Any = None
    certified: bool = False

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        # of a labelled gradient, its numbers
        return np.array(plain(self.gradient), dtype, copy=copy)


@final
@dataclass(frozen=True)
class Tangent:
    """What a change of the input changes in the solution; NumPy takes it as the array that it has.

    Attributes:
        tangent: in the shape of the solution, with the leading axis of several tangents of the input.
        of: the output field; through a rollout the fields of a frame, with commas, which are on the axis
            before (y, x).
        error: guaranteed relative error in the energy norm, of each field that ``tangent`` has; None: nothing
            is known.
        steps: through a rollout, those of the frames; where ``every`` was asked for, they are on the axis
            before the fields.
    """

    tangent: NDArray[Any]
    of: str
    model: str | None
    method: str
    operator: str
    in_distribution: Any
    timing_ms: Mapping[str, float]
    error: Any = None
    certified: bool = False
    steps: tuple[int, ...] = ()

    @property
    def fields(self) -> Mapping[str, NDArray[Any]]:
        """The tangents by field."""
        if not self.steps:
            return {self.of: self.tangent}
        channels = np.moveaxis(self.tangent, -3, 0)
        return dict(zip(self.of.split(","), channels, strict=True))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        # of a labelled tangent, its numbers
        return np.array(plain(self.tangent), dtype, copy=copy)


@final
@dataclass(frozen=True)
class Quantity:
    """A number that is read off the solution; of a batch, an array of them.

    Attributes:
        quantity: as it was asked for, such as ``outflow.left``.
        half_width: the exact value is no further from ``value`` than this, guaranteed.
    """

    quantity: str
    unit: str
    value: Any
    half_width: Any


@final
@dataclass(frozen=True)
class CalibratedEstimate:
    """``upper`` bounds the relative error of a share ``coverage`` of all states like those in training."""

    kind: str
    norm: str
    upper: float
    coverage: float


@final
@dataclass(frozen=True)
class Frame:
    """The state after a step.

    Attributes:
        step: counted from the initial state, which is step 0.
        time: of the step [s].
        fields: (y, x) by name.
        invariants: numbers by name, such as ``mass_defect``.
        error: what is known about the error at this step, None where nothing is.
        in_distribution: whether the initial state resembles the training data.
        model: the version that stepped, None for the reference solver.
        ood_score: the share of the model's calibration data that resembles its training data more than the
            state before the frame's block, [0, 1); None: nobody can tell.
        defect: root mean square difference from one step of the reference solver from the frame before, over
            all fields and cells, in their units: an estimate of what goes wrong in a step. None: they were
            not compared.
        exponential_bound: the root mean square error that the defects up to here allow, against the discrete
            solution, but for the time error of the solver's own steps; None: unknown.
    """

    step: int
    time: float
    fields: Mapping[str, NDArray[Any]]
    invariants: Mapping[str, float]
    error: CalibratedEstimate | None
    in_distribution: bool
    model: str | None
    ood_score: float | None = None
    defect: float | None = None
    exponential_bound: float | None = None
