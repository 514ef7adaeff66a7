"""Arrays compared with what a problem says its fields are; everything is refused here, before the queue."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from problems import FieldSpec, Problem
from problems import InvalidField as BrokenRule
from service.errors import LONGEST_QUOTE, InvalidField, TooLarge
from service.settings import Limits

__all__ = ["AT_REST", "Inputs", "check_like", "complete_state", "validate_inputs", "within_float32"]

# a uniform parameter that is left out; the answer scales with it
DEFAULT_PARAMETER = 1.0
# fields of a state that may be left out, where nothing moves
AT_REST = {"hu": 0.0, "hv": 0.0}
FLOAT32_MAX: Final = float(np.finfo(np.float32).max)
FLOAT32_TINY: Final = float(np.finfo(np.float32).tiny)


@final
class Inputs(NamedTuple):
    """Checked inputs: fields [batch y x] as they came and parameters [batch] in float64, by name.

    Attributes:
        single: the caller sent one field, not a batch, and gets one back.
        grid: cells (ny, nx).
        rows: number of samples.
        fits_float32: a surrogate in float32 reads no number as infinity, or as a zero that means another.
    """

    fields: Mapping[str, NDArray[Any]]
    single: bool
    grid: tuple[int, int]
    rows: int
    fits_float32: bool

    @property
    def nbytes(self) -> int:
        """What they take in memory [B]."""
        return sum([values.nbytes for values in self.fields.values()])


def validate_inputs(problem: Problem, given: Mapping[str, Any], limits: Limits) -> Inputs:
    """Check fields (ny, nx) or (batch, ny, nx) and parameters against the problem's specs and the limits."""
    shapes = {spec.name: _field_shape(spec, given, limits) for spec in problem.inputs}
    shape = shapes[problem.inputs[0].name]
    if any(other != shape for other in shapes.values()):
        raise InvalidField(problem.inputs[0].name, "shape", f"expected fields of one shape, got {shapes}")
    single = len(shape) == 2
    rows = 1 if single else shape[0]
    ny, nx = shape[-2:]
    fields: dict[str, NDArray[Any]] = {}
    fits = True
    for spec in problem.inputs:
        values = np.asarray(given[spec.name])
        # most fields are good, which their extremes tell; what is wrong with the others takes a second look
        plain = _is_plain(spec, values)
        if not plain:
            _refuse_broken(spec, values)
        fits = fits and plain
        fields[spec.name] = values[None] if single else values
    for spec in problem.parameters:
        value = _parameter(spec, given.get(spec.name, DEFAULT_PARAMETER))
        fits = fits and (value == 0 or FLOAT32_TINY <= abs(value) <= FLOAT32_MAX)
        fields[spec.name] = _uniform(value, rows)
    return Inputs(fields, single, (ny, nx), rows, fits)


@lru_cache(256)
def _uniform(value: float, rows: int) -> NDArray[np.float64]:
    """A parameter of each row. Few are ever asked for, and whoever gets one may only read it."""
    values = np.full(rows, value)
    values.flags.writeable = False
    return values


def check_like(inputs: Inputs, name: str, given: Any) -> NDArray[Any]:
    """A field that belongs to checked inputs, such as a cotangent [batch y x]: finite also in float32."""
    values = np.asarray(given)
    shape = inputs.grid if inputs.single else (inputs.rows, *inputs.grid)
    if values.shape != shape:
        raise InvalidField(name, "shape", f"{name}: expected shape {shape} as the inputs, got {values.shape}")
    spec = FieldSpec(name, name, "1", "of any sign", rank=values.ndim)
    if not _is_plain(spec, values):
        _refuse_broken(spec, values)
        raise InvalidField(
            name, "float32", f"{name}: does not fit float32; scale it, the gradient scales too"
        )
    return values[None] if inputs.single else values


def _is_plain(spec: FieldSpec, values: NDArray[Any]) -> bool:
    """Whether all values are real, within the bounds and in float32: True is a promise, False is a doubt."""
    if values.dtype.kind not in "fiu" or not values.size:
        return False
    # a NaN among the values is one of the extremes, and no comparison with it holds
    low, high = float(np.minimum.reduce(values, axis=None)), float(np.maximum.reduce(values, axis=None))
    if not (low >= -FLOAT32_MAX and high <= FLOAT32_MAX):
        return False
    return (
        (spec.minimum is None or low >= spec.minimum)
        and (spec.maximum is None or high <= spec.maximum)
        and (spec.exclusive_minimum is None or low > spec.exclusive_minimum)
        # in a positive field a number that is too small for float32 would become a zero
        and (spec.exclusive_minimum != 0 or low >= FLOAT32_TINY)
    )


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


def within_float32(problem: Problem, inputs: Inputs, *, solver: bool = True) -> None:
    """Refuse numbers that a float32 surrogate would read as infinity, or as a zero that means another thing.

    A parameter scales the answer, and a positive field has no zero; in any other field, such as a momentum,
    what is too small for float32 is as good as zero.

    Args:
        problem: whose fields they are.
        inputs: checked otherwise.
        solver: the reference solver is a way out.
    """
    if inputs.fits_float32:
        return
    may_vanish = {spec.name for spec in problem.inputs if spec.exclusive_minimum != 0}
    for name, given in inputs.fields.items():
        values = np.asarray(given, np.float64)
        size = np.abs(values)
        bad = size > FLOAT32_MAX
        if name not in may_vanish:
            bad |= (size < FLOAT32_TINY) & (values != 0)
        if bad.any():
            index = _callers_index(np.unravel_index(int(np.argmax(bad)), bad.shape), values, inputs.single)
            way_out = "scale the input, or ask for method=solver" if solver else "scale the input"
            message = f"{name}: {values[bad][0]:g} does not fit float32; {way_out}"
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


def _refuse_broken(spec: FieldSpec, values: NDArray[Any]) -> None:
    """Say which rule a field breaks, if it breaks one."""
    # numbers that are no floats have no infinities; whatever else they are, the rules say
    numbers = values.astype(np.float64) if values.dtype.kind in "fiu" else values
    try:
        (spec.validate if values.ndim == spec.rank else spec.validate_batch)(numbers)
    except BrokenRule as error:
        raise _translated(error) from error


def _parameter(spec: FieldSpec, value: object) -> float:
    if value is DEFAULT_PARAMETER:
        return DEFAULT_PARAMETER
    try:
        spec.validate(value)
    except BrokenRule as error:
        raise _translated(error) from error
    return float(np.asarray(value))


def _translated(error: BrokenRule) -> InvalidField:
    return InvalidField(error.field, error.rule, error.message, error.index or None)
