"""What nobody waits for any more is given up before the next solver step."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse.linalg

from problems import STEADY_PROBLEMS, Abandoned, Grid, Mean

DARCY = STEADY_PROBLEMS["darcy"]
GRID = Grid((32, 32))
# the first is solved by multigrid steps, the other past these by a factorization
SMOOTH = np.exp(np.random.default_rng(0).standard_normal(GRID.shape))
BINARY = np.where(np.random.default_rng(0).random(GRID.shape) < 0.5, 1.0, 1e-7)
ZERO = {"pressure": np.zeros(GRID.shape)}

Ask = Callable[..., Any]

ASKED: dict[str, Ask] = {
    "certify": lambda fields, go_on: DARCY.certify(fields, ZERO, GRID, norm="pointwise", go_on=go_on),
    "refine": lambda fields, go_on: DARCY.refine(fields, None, GRID, tolerance=1e-8, go_on=go_on),
    "adjoint": lambda fields, go_on: DARCY.adjoint(
        fields, np.ones((1, *GRID.shape)), GRID, tolerance=1e-7, go_on=go_on
    ),
    "tangent": lambda fields, go_on: DARCY.tangent(
        fields, {"permeability": np.ones((1, *GRID.shape))}, GRID, tolerance=1e-5, go_on=go_on
    ),
    "quantities": lambda fields, go_on: DARCY.quantities(fields, [Mean()], GRID, tolerance=1e-8, go_on=go_on),
}


class Patience:
    """Says yes so many times."""

    def __init__(self, times: float) -> None:
        self.times, self.asked = times, 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.asked <= self.times


def fields(permeability: Any) -> dict[str, Any]:
    return {"permeability": permeability, "source": np.array(1.0)}


@pytest.mark.parametrize("what", ASKED)
def test_every_step_is_asked_for(what: str) -> None:
    ask, forever = ASKED[what], Patience(float("inf"))
    ask(fields(SMOOTH), forever)
    assert forever.asked >= 2
    for times in range(forever.asked):
        with pytest.raises(Abandoned):
            ask(fields(SMOOTH), few := Patience(times))
        # and nothing is done after the no
        assert few.asked == times + 1


def test_no_factorization_is_begun_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    factorized, real = [], scipy.sparse.linalg.splu

    def splu(*arguments: Any, **options: Any) -> Any:
        factorized.append(1)
        return real(*arguments, **options)

    monkeypatch.setattr(scipy.sparse.linalg, "splu", splu)
    forever = Patience(float("inf"))
    ASKED["refine"](fields(BINARY), forever)
    assert factorized == [1]
    factorized.clear()
    # the last question is the one before the factorization
    with pytest.raises(Abandoned):
        ASKED["refine"](fields(BINARY), Patience(forever.asked - 1))
    assert factorized == []
