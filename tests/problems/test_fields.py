"""Each rule of a field specification, with a value that obeys it and one that breaks it."""

import numpy as np
import pytest

from problems import FieldSpec, InvalidField

PERMEABILITY = FieldSpec("permeability", "a", "m^2", "permeability", exclusive_minimum=0.0)
FRACTION = FieldSpec("fraction", "s", "1", "a fraction", minimum=0.0, maximum=1.0, rank=0)


def field_with(value: float, dtype=np.float64):
    field = np.ones((5, 8), dtype)
    field[3, 7] = value
    return field


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int64])
def test_good_fields_pass(dtype):
    PERMEABILITY.validate(field_with(2, dtype))
    PERMEABILITY.validate_batch(field_with(2, dtype)[None])


@pytest.mark.parametrize("value", [0.0, 1.0, 0.5])
def test_inclusive_bounds_are_allowed(value):
    FRACTION.validate(value)


@pytest.mark.parametrize(
    ("field", "rule", "index", "message"),
    [
        (field_with(-0.3), "exclusive_minimum", (3, 7), "permeability must exceed 0 m^2, got -0.3 at (3, 7)"),
        (field_with(0.0), "exclusive_minimum", (3, 7), "permeability must exceed 0 m^2, got 0 at (3, 7)"),
        (field_with(np.nan), "finite", (3, 7), "permeability must be finite, got nan at (3, 7)"),
        (field_with(np.inf), "finite", (3, 7), "permeability must be finite, got inf at (3, 7)"),
        (np.ones(8), "rank", None, "permeability must have 2 axes, got shape (8,)"),
        (np.ones((0, 8)), "shape", None, "permeability must not be empty, got shape (0, 8)"),
        (
            np.ones((5, 8), complex),
            "dtype",
            None,
            "permeability must hold real numbers, got dtype complex128",
        ),
        (np.ones((5, 8), bool), "dtype", None, "permeability must hold real numbers, got dtype bool"),
        (np.full((5, 8), None), "dtype", None, "permeability must hold real numbers, got dtype object"),
    ],
)
def test_bad_fields_are_refused(field, rule, index, message):
    with pytest.raises(InvalidField) as caught:
        PERMEABILITY.validate(field)
    assert (caught.value.field, caught.value.rule, caught.value.index) == ("permeability", rule, index)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("value", "rule", "message"),
    [
        (-0.1, "minimum", "fraction must be at least 0, got -0.1"),
        (1.5, "maximum", "fraction must be at most 1, got 1.5"),
        (np.ones(2), "rank", "fraction must have 0 axes, got shape (2,)"),
    ],
)
def test_bad_numbers_are_refused(value, rule, message):
    with pytest.raises(InvalidField) as caught:
        FRACTION.validate(value)
    assert (caught.value.rule, str(caught.value)) == (rule, message)


def test_the_index_in_a_batch_names_the_sample():
    batch = np.stack([field_with(1.0), field_with(-1.0)])
    with pytest.raises(InvalidField, match=r"got -1 at \(1, 3, 7\)"):
        PERMEABILITY.validate_batch(batch)
    with pytest.raises(InvalidField, match="must have 3 axes"):
        PERMEABILITY.validate_batch(batch[0])
