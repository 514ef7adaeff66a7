"""Headers of an answer: what is known about a batch stays short, and its bounds stay bounds."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from problems import ErrorBound
from service.http.wire import NPY, answer_headers
from service.novelty import FAMILIAR
from service.solver import SolveResponse, Timing

NUMBERS = st.floats(0, 1e300)


def estimate(errors: tuple[ErrorBound, ...]) -> dict[str, object]:
    response = SolveResponse(
        fields={"pressure": np.zeros((len(errors), 1, 1), dtype=np.float32)},
        single=False,
        model="darcy@1",
        method="surrogate",
        operator="tpfa-harmonic-v1",
        errors=errors,
        novelty=(FAMILIAR,) * len(errors),
        iterations=(0,) * len(errors),
        timing=Timing(0, 0, 0, 0),
    )
    header = answer_headers(response, NPY)["Mno-Error-Estimate"]
    assert len(header) <= 6 * 2**10
    document: dict[str, object] = json.loads(header)
    return document


def bound(lower: float, upper: float, l2_estimate: float, steps: int = 0) -> ErrorBound:
    return ErrorBound("guaranteed", "energy", lower, upper, l2_estimate, steps)


@settings(deadline=None)
@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=20))
def test_the_bounds_of_a_batch_are_rounded_outwards(numbers: list[tuple[float, float, float]]) -> None:
    errors = tuple(bound(*entry) for entry in numbers)
    document = estimate(errors)
    for name, sign in (("lower", -1), ("upper", 1)):
        sent = np.array(document[name])
        exact = np.array([getattr(error, name) for error in errors])
        assert (sign * sent >= sign * exact).all()
        np.testing.assert_allclose(sent, exact, rtol=1.001e-3, atol=1e-320)


def test_a_batch_too_long_for_a_header_is_summarised() -> None:
    random = np.random.default_rng(0).random((256, 3)) / 100
    document = estimate(tuple(bound(*row, steps=n) for n, row in enumerate(random.tolist())))
    assert set(document) == {
        *("kind", "norm", "reference", "upper_max", "l2_estimate_median", "steps", "fields"),
    }
    assert document["reference"] == "discrete"
    assert (document["fields"], document["steps"]) == (256, 255)
    assert document["upper_max"] >= random[:, 1].max()  # type: ignore[operator]
    assert document["l2_estimate_median"] == pytest.approx(np.median(random[:, 2]), rel=1e-3)
