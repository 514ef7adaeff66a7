"""Arrays compared with what a problem says its fields are; everything is refused here, before the queue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from problems import FieldSpec, Problem
from problems import InvalidField as BrokenRule
from service.errors import LONGEST_QUOTE, InvalidField, TooLarge
from service.settings import Limits

__all__ = ["AT_REST", "Inputs", "complete_state", "validate_inputs", "within_float32"]

# a uniform parameter that is left out; the answer scales with it
DEFAULT_PARAMETER = 1.0
# fields of a state that may be left out, where nothing moves
AT_REST = {"hu": 0.0, "hv": 0.0}
FLOAT32 = np.finfo(np.float32)


@dataclass(frozen=True)
class Inputs:
    """Checked inputs: fields [batch y x] and parameters [batch] by name, float64.

    Attributes:
        single: the caller sent one field, not a batch, and gets one back.
    """

    fields: Mapping[str, NDArray[np.float64]]
    single: bool

    @property
    def grid(self) -> tuple[int, int]:
        """Cells (ny, nx)."""
        ny, nx = next(field.shape for field in self.fields.values() if field.ndim == 3)[1:]
        return ny, nx

    @property
    def rows(self) -> int:
        """Number of samples."""
        return len(next(iter(self.fields.values())))


def validate_inputs(problem: Problem, given: Mapping[str, Any], limits: Limits) -> Inputs:
    """Check fields (ny, nx) or (batch, ny, nx) and parameters against the problem's specs and the limits."""
    shapes = {spec.name: _field_shape(spec, given, limits) for spec in problem.inputs}
    if len(set(shapes.values())) > 1:
        raise InvalidField(problem.inputs[0].name, "shape", f"expected fields of one shape, got {shapes}")
    shape = next(iter(shapes.values()))
    single = len(shape) == 2
    rows = 1 if single else shape[0]
    fields = {spec.name: _field(spec, given[spec.name]) for spec in problem.inputs}
    for spec in problem.parameters:
        fields[spec.name] = np.full(rows, _parameter(spec, given.get(spec.name, DEFAULT_PARAMETER)))
    return Inputs(fields, single)


def complete_state(problem: Problem, given: Mapping[str, NDArray[Any]], step: int) -> dict[str, NDArray[Any]]:
    """The fields of the state of a step; at step 0, those that are zero at rest are added.

    Raises:
        InvalidField: a field that the problem lacks, or one that is left out after step 0.
    """
    names = [spec.name for spec in problem.inputs]
    for name in (given_name[:LONGEST_QUOTE] for given_name in given if given_name not in names):
        message = f"{name!r} is no field of {problem.name}: expected {', '.join(names)}"
        raise InvalidField(name, "unknown", message)
    missing = [name for name in names if name in AT_REST and name not in given]
    if missing and step:
        message = f"the state of step {step} needs {' and '.join(missing)}: rest is assumed at step 0 only"
        raise InvalidField(missing[0], "missing", f"{message}; send them, or start from step 0")
    shape = next((values.shape for values in given.values()), ())
    return {**given, **{name: np.full(shape, AT_REST[name]) for name in missing}}


def within_float32(problem: Problem, inputs: Inputs) -> None:
    """Refuse numbers that a float32 surrogate would read as infinity, or as a zero that means another thing.

    A parameter scales the answer, and a positive field has no zero; in any other field, such as a momentum,
    what is too small for float32 is as good as zero.
    """
    may_vanish = {spec.name for spec in problem.inputs if spec.exclusive_minimum != 0}
    for name, values in inputs.fields.items():
        size = np.abs(values)
        bad = size > FLOAT32.max
        if name not in may_vanish:
            bad |= (size < FLOAT32.tiny) & (values != 0)
        if bad.any():
            index = _callers_index(np.unravel_index(int(np.argmax(bad)), bad.shape), values, inputs.single)
            message = (
                f"{name}: {values[bad][0]:g} does not fit float32; scale the input, or ask for method=solver"
            )
            raise InvalidField(name, "float32", message, index)


def _callers_index(
    index: tuple[np.intp, ...], values: NDArray[np.float64], single: bool
) -> tuple[int, ...] | None:
    if values.ndim == 1:
        return None
    return tuple(int(position) for position in index[1 if single else 0 :])


def _field_shape(spec: FieldSpec, given: Mapping[str, Any], limits: Limits) -> tuple[int, ...]:
    if spec.name not in given:
        raise InvalidField(
            spec.name, "missing", f"{spec.name} is missing: expected (ny, nx) or (batch, ny, nx)"
        )
    shape = tuple(given[spec.name].shape)
    if len(shape) not in (2, 3):
        message = f"{spec.name}: expected (ny, nx) or (batch, ny, nx), got {len(shape)} axes, shape {shape}"
        raise InvalidField(spec.name, "rank", message)
    # whatever the type on the wire: bytes and digits grow in memory
    size_as_float32 = 4 * given[spec.name].size
    if max(shape[-2:]) > limits.grid_side:
        raise TooLarge(f"{spec.name}: a grid has at most {limits.grid_side} cells a side, got {shape[-2:]}")
    if len(shape) == 3 and shape[0] > limits.batch:
        raise TooLarge(
            f"{spec.name}: a request has at most {limits.batch} fields, got {shape[0]}; send several"
        )
    if size_as_float32 > limits.body_bytes:
        raise TooLarge(f"{spec.name}: fields have at most {limits.body_bytes} bytes as float32; send fewer")
    return shape


def _field(spec: FieldSpec, array: NDArray[Any]) -> NDArray[np.float64]:
    values = np.asarray(array, dtype=np.float64)
    try:
        (spec.validate if values.ndim == 2 else spec.validate_batch)(values)
    except BrokenRule as error:
        raise _translated(error) from error
    return values.reshape(-1, *values.shape[-2:])


def _parameter(spec: FieldSpec, value: object) -> float:
    try:
        spec.validate(value)
    except BrokenRule as error:
        raise _translated(error) from error
    return float(np.asarray(value))


def _translated(error: BrokenRule) -> InvalidField:
    return InvalidField(error.field, error.rule, error.message, error.index or None)
