"""Which guarantee holds, and what is said where none can be given or nobody waits for it any more."""

import itertools
import json
import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from problems import STEADY_PROBLEMS, Grid
from service.errors import DeadlineExceeded, InvalidField, NotCertifiable, ServiceFault
from service.gradient import Derivative
from service.grpc.derivative_wire import write_quantities, write_vjp
from service.http.derivative_wire import derivative_headers, json_derivative
from service.http.quantities_wire import json_quantities
from service.pb import solver_pb2 as pb
from service.quantities import QuantitiesResponse
from service.settings import Limits
from service.telemetry.timing import Timing
from service.tolerance import met_in_time, refuse_unsolved
from service.validate import validate_inputs
from service.workers.certified import TOO_LATE, certify_answers, refine_answers
from service.workers.worker import ANSWER, DEADLINE, TOLERANCE, Batch, Bucket

TIMING = Timing(0.0, 0.0, 0.0, 0.0)
DARCY = STEADY_PROBLEMS["darcy"]


@pytest.mark.parametrize(
    ("why", "tolerance", "kind"),
    [
        (TOO_LATE, 1e-6, DeadlineExceeded),
        (TOO_LATE, None, DeadlineExceeded),
        ("float64 does not carry it", 1e-6, NotCertifiable),
        ("float64 does not carry it", None, InvalidField),
    ],
)
def test_what_is_late_is_not_called_too_hard(
    why: str, tolerance: float | None, kind: type[ServiceFault]
) -> None:
    inputs = validate_inputs(DARCY, {"permeability": np.ones((2, 4, 4))}, Limits())
    refuse_unsolved(DARCY, inputs, {}, tolerance)
    with pytest.raises(ServiceFault) as refused:
        refuse_unsolved(DARCY, inputs, {1: why}, tolerance)
    assert type(refused.value) is kind
    assert why in str(refused.value)


def test_a_tolerance_that_is_not_met_in_time_is_not_certifiable() -> None:
    with pytest.raises(NotCertifiable, match=r"1e-06 was not met in time: too late"), met_in_time(1e-6):
        raise DeadlineExceeded("too late")
    with pytest.raises(DeadlineExceeded), met_in_time(None):
        raise DeadlineExceeded("too late")


def test_nobody_is_certified_who_waits_no_longer() -> None:
    fields = {
        "permeability": np.ones((2, 8, 8)),
        "source": np.ones(2),
        f"{ANSWER}pressure": np.ones((2, 8, 8)),
    }
    deadlines = {DEADLINE: np.array([time.perf_counter() - 1, np.inf])}
    bucket = Bucket("darcy", None, "tpfa-harmonic-v1", Grid((8, 8)), "float64", task="certify")
    found = certify_answers(Batch(bucket, fields | deadlines))
    assert found.unsolved == {0: TOO_LATE}
    assert np.isnan(found.fields["upper"][0])
    assert np.isfinite(found.fields["upper"][1])


def test_a_row_whose_deadline_passes_while_it_is_computed_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a clock that moves on by 1 s whenever it is read."""
    clock = itertools.count()
    monkeypatch.setattr("service.workers.certified.time.perf_counter", lambda: float(next(clock)))
    fields = {"permeability": np.exp(np.random.default_rng(0).standard_normal((3, 16, 16)))}
    rows = {"source": np.ones(3), TOLERANCE: np.full(3, 1e-9), DEADLINE: np.array([2.0, 4.0, np.inf])}
    bucket = Bucket("darcy", None, "tpfa-harmonic-v1", Grid((16, 16)), "float64", task="refine")
    found = refine_answers(Batch(bucket, fields | rows))
    # the first is begun, the second not even that
    assert found.unsolved == {0: TOO_LATE, 1: TOO_LATE}
    assert found.iterations[2] > 3
    assert found.fields["upper"][2] <= 1e-9


def derivative(errors: NDArray[np.float64] | None, rows: int, *, several: bool) -> Derivative:
    shape = ((2,) if several else ()) + ((rows,) if rows > 1 else ()) + (4, 4)
    return Derivative(
        values=np.ones(shape),
        name="permeability",
        single=rows == 1,
        model=None,
        method="adjoint",
        operator="tpfa-harmonic-v1",
        in_distribution=(True,) * rows,
        norm="directional",
        errors=errors,
        batch_size=rows,
        timing=TIMING,
    )


@pytest.mark.parametrize(
    ("errors", "several", "certified"),
    [
        (np.float64(0.5), False, [True]),
        (np.float64(np.inf), False, [False]),
        (np.array([0.5, np.inf]), True, [False]),
        (np.array([0.5, np.inf, 0.5]), False, [True, False, True]),
        (np.array([[0.5, 0.5, np.nan], [np.inf, 0.5, 0.5]]), True, [False, True, False]),
        (None, True, [False]),
    ],
)
def test_an_infinite_bound_certifies_no_derivative(errors: Any, several: bool, certified: list[bool]) -> None:
    found = derivative(errors, len(certified), several=several)
    assert found.certified is all(certified)
    assert json.loads(json_derivative(found, "gradient"))["certified"] is all(certified)
    headers = derivative_headers(found, "application/x-npy")
    assert headers["Mno-Certified"] == str(all(certified)).lower()
    message = pb.VjpResponse.FromString(b"".join(write_vjp(found)))
    assert list(message.solution.certified) == certified


@pytest.mark.parametrize(
    ("half_widths", "certified"),
    [
        ([0.1, 0.2], [True]),
        ([0.1, np.inf], [False]),
        ([[0.1, 0.2], [np.inf, 0.1], [0.1, 0.2]], [True, False, True]),
    ],
)
def test_an_infinite_half_width_certifies_no_quantity(half_widths: Any, certified: list[bool]) -> None:
    widths = np.array(half_widths)
    found = QuantitiesResponse(
        names=("mean", "outflow"),
        units=("Pa", "m^2/s"),
        values=np.ones(widths.shape),
        half_widths=widths,
        single=widths.ndim == 1,
        model=None,
        operator="tpfa-harmonic-v1",
        timing=TIMING,
        batch_size=len(certified),
    )
    assert json.loads(json_quantities(found))["certified"] is all(certified)
    message = pb.QuantitiesResponse.FromString(b"".join(write_quantities(found)))
    assert list(message.solution.certified) == certified
