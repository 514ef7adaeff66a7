"""Directions and fields of any size: what is derived from them in float32 is right, or refused."""

import asyncio
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from model_store import open_store
from service.batching.batcher import Batcher, BatchRules
from service.errors import InvalidField
from service.gradient import Derivative, JvpRequest, VjpRequest
from service.scaling import FAR, near_one, over, require_carried, times
from service.settings import Limits
from service.solver import Queues, Solver
from service.versions.loading import served_version
from service.versions.models import Models
from service.versions.routing import Route
from service.workers.compute import Surrogates
from service.workers.reference import advance_reference, bound_errors, solve_reference
from service.workers.worker import ThreadWorker

RULES = BatchRules(max_batch=8, queue_seconds=100.0)


@pytest.fixture(scope="module")
def differentiate(store_url: str) -> Any:
    """Derivatives of the small surrogate of Darcy flow, float64."""
    loaded = open_store(store_url).load("darcy", 1)

    async def ask(request: VjpRequest | JvpRequest) -> Derivative:
        models = Models()
        worker = ThreadWorker(Surrogates([loaded], torch.device("cpu")), lambda: torch.set_num_threads(1))
        models.add(served_version(loaded), Batcher(worker, RULES))
        models.route({"darcy": Route(name="darcy", main=1)})
        others = (ThreadWorker(each) for each in (solve_reference, advance_reference, bound_errors))
        queues = Queues(*(Batcher(each, RULES) for each in others))
        async with Solver(models, queues, Limits(), None) as solver, asyncio.timeout(60):
            return await solver.differentiate(request)

    def differentiate(
        permeability: NDArray[Any], direction: NDArray[Any], backward: bool, **options: Any
    ) -> NDArray[Any]:
        options = {"method": "surrogate", "dtype": "float64"} | options
        fields = {"permeability": permeability, "source": options.pop("source", 1.0)}
        if backward:
            return asyncio.run(ask(VjpRequest("darcy", fields, {"pressure": direction}, **options))).values
        return asyncio.run(ask(JvpRequest("darcy", fields, direction, **options))).values

    return differentiate


@pytest.mark.parametrize("backward", [True, False])
@pytest.mark.parametrize("size", [1e-300, 1e-42, 1e-12, 1e15, 1e37])
def test_a_derivative_is_linear_in_directions_of_any_size(
    differentiate: Any, permeability: NDArray[np.float32], backward: bool, size: float
) -> None:
    direction = np.random.default_rng(0).standard_normal((32, 32))
    usual = differentiate(permeability[0], direction, backward)
    found = differentiate(permeability[0], size * direction, backward)
    assert np.linalg.norm(found / size - usual) < 1e-4 * np.linalg.norm(usual)


@pytest.mark.parametrize("wrt", ["permeability", "log_permeability"])
@pytest.mark.parametrize(("factor", "source"), [(1e-18, 1.0), (1e30, 1.0), (1e-12, 1e20), (1e-9, 1e-30)])
def test_a_derivative_follows_the_units_of_the_field(
    differentiate: Any, permeability: NDArray[np.float32], wrt: str, factor: float, source: float
) -> None:
    direction = np.random.default_rng(0).standard_normal((32, 32))
    # d/da of f u(1) / a, in the logarithm times a
    expected = source / factor if wrt == "log_permeability" else source / factor**2
    for backward in (True, False):
        options = {"wrt": wrt}
        usual = differentiate(permeability[0], direction, backward, **options)
        field = factor * permeability[0].astype(np.float64)
        found = differentiate(field, direction, backward, source=source, **options)
        assert np.linalg.norm(found / expected - usual) < 1e-3 * np.linalg.norm(usual)


def test_what_float32_does_not_carry_is_refused(
    differentiate: Any, permeability: NDArray[np.float32]
) -> None:
    for backward in (True, False):
        with pytest.raises(InvalidField, match="too small for float32; ask for dtype=float64") as refused:
            differentiate(permeability[0], np.full((32, 32), 1e-60), backward, dtype="float32")
        assert refused.value.rule == "float32"
        with pytest.raises(InvalidField, match=r"not finite in float32.*use float64"):
            differentiate(permeability[0], np.full((32, 32), 1e38), backward, dtype="float32", source=1e9)


def test_nothing_has_no_size() -> None:
    nothing = np.zeros((2, 3, 4, 5))
    assert not near_one(nothing).any()
    require_carried("gradient", nothing, "float32")
    # one part of it, such as a channel, may be as small as it is
    part = np.ones((1, 1, 2, 4, 5))
    part[:, :, 1] = 1e-60
    require_carried("tangent", part, "float32")


@given(st.integers(-1000, 1000), st.floats(1, 2, exclude_max=True))
def test_powers_of_two_bring_near_one_and_round_nothing(power: int, digits: float) -> None:
    values = np.ldexp(np.array([[[digits, -0.5 * digits]]]), power)
    found = near_one(values)
    near = over(values, found)
    assert 2.0 ** -(FAR + 1) <= np.abs(near).max() <= 2.0 ** (FAR + 1)
    np.testing.assert_array_equal(times(near, found), values)
    # what is near 1 stays what it is
    if abs(power) < FAR - 1:
        assert near is values
