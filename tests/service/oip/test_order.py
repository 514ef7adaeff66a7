"""What a request says beside its numbers, and that what follows from it is not confused."""

from typing import Any

import pytest

from service.errors import InvalidField
from service.oip.order import Order
from service.oip.tensor import described
from service.versions.served import ServedVersion

DARCY = ServedVersion(name="d", version=3, problem="darcy", scheme="s", grids=((64, 32),))
WATER = DARCY.model_copy(update={"problem": "shallow_water", "frames": 5, "history": 1, "walls": "outflow"})


def order(name: str = "permeability", datatype: str = "FP32", **parameters: Any) -> Order:
    return Order("d", "", [described(name, datatype, [64, 32])], (), parameters)


def test_a_number_follows_a_name() -> None:
    assert Order("d", "", []).name == "d"
    assert Order("d", "3", []).name == "d@3"


def test_doubles_are_answered_with_doubles() -> None:
    dtypes = {kind: order(datatype=kind).dtype for kind in ("FP16", "BF16", "FP32", "FP64")}
    assert dtypes == {"FP16": "float32", "BF16": "float32", "FP32": "float32", "FP64": "float64"}


def test_what_is_said_is_understood_once() -> None:
    said = order(source=2, timeout=5000, priority=2, triton_x="y")
    numbers, options = said.to_solve(DARCY)
    assert (numbers, options.timeout_ms, options.priority) == ({"source": 2.0}, 5.0, "bulk")
    assert said.to_solve(DARCY) is said.to_solve(DARCY)


@pytest.mark.parametrize(("output", "error"), [("pressure", "none"), ("error_upper", "bound")])
def test_the_bound_is_for_those_who_want_it(output: str, error: str) -> None:
    inputs = [described("permeability", "FP32", [64, 32])]
    assert Order("d", "", inputs, (output,)).to_solve(DARCY).options.error == error
    assert Order("d", "", inputs).to_solve(DARCY).options.error == "bound"


@pytest.mark.parametrize(
    "parameters", [{"reproducible": 1}, {"source": True}, {"timeout": -1}, {"sequence_id": 1}, {"nobody": 1}]
)
def test_what_nobody_understands_is_refused_each_time(parameters: dict[str, Any]) -> None:
    said = order(**parameters)
    for _ in range(2):
        with pytest.raises(InvalidField):
            said.to_solve(DARCY)


def test_names_are_those_of_the_version_s_problem() -> None:
    said = order()
    said.check_names(DARCY)
    # an alias may come to mean a version of another problem
    with pytest.raises(InvalidField, match="'permeability' is no input of d@3: expected h, hu, hv"):
        said.check_names(WATER)
    with pytest.raises(InvalidField, match="'h' is no input"):
        order("h").check_names(DARCY)
    with pytest.raises(InvalidField, match="each once"):
        Order("d", "", [], ("pressure", "pressure")).check_names(DARCY)


def test_a_part_of_it_can_be_left_out() -> None:
    rest = order("h", steps=3, every=1, start_step=2).without("steps", "every")
    assert rest.parameters == {"start_step": 2}
    assert rest.to_step(WATER).start_step == 2
