"""Whatever the shallow water network has learnt: mass is kept, still water is still, depth is positive."""

from itertools import islice
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from operators import EvolutionSurrogate, shallow_water_mno
from operators.shallow_water_mno import LEAST_DEPTH, ShallowWaterMno, ShallowWaterMnoConfig, activity
from operators.shallow_water_scheme import Walls

WALLS: tuple[Walls, ...] = get_args(Walls)
EXTENT, SPACING = (1.0, 1.5), (0.0625, 0.0625)


def _operator(walls: Walls = "outflow", strength: float = 1.0) -> ShallowWaterMno:
    """A small operator whose last layer is ``strength`` times as wild as an untrained one's."""
    torch.manual_seed(0)
    config = ShallowWaterMnoConfig(
        channels=16, inner_channels=8, rank=2, blocks=1, context=4, hidden=6, frames=3, walls=walls
    )
    operator = ShallowWaterMno(config).double().eval()
    with torch.no_grad():
        for parameter in operator.correction.write.parameters():
            parameter.normal_().mul_(0.01 * strength)
    return operator


@pytest.fixture
def state() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(2, 1, 3, 16, 24, generator=generator, dtype=torch.float64)
    depth = 0.5 + noise[:, :, :1]
    return torch.cat([depth, depth * (noise[:, :, 1:] - 0.5)], dim=2)


@pytest.mark.parametrize("walls", WALLS)
def test_corrections_move_mass_and_momentum_and_make_none(walls: Walls, state: Tensor) -> None:
    operator = _operator(walls)
    predicted = operator.predict(state[:, 0], SPACING)
    corrected = operator(state, EXTENT)
    assert (corrected - predicted).abs().max() > 1e-3
    torch.testing.assert_close(corrected.sum((-2, -1)), predicted.sum((-2, -1)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("walls", ["reflecting", "periodic"])
def test_mass_is_conserved_over_a_rollout(walls: Walls, state: Tensor) -> None:
    surrogate = EvolutionSurrogate(_operator(walls), 3).double()
    mass = state[:, 0, 0].sum((-2, -1))
    for block in islice(surrogate.blocks(state, EXTENT), 5):
        torch.testing.assert_close(
            block[:, :, 0].sum((-2, -1)), mass[:, None].expand(2, 3), rtol=1e-12, atol=0
        )


@pytest.mark.parametrize("walls", WALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_still_water_stays_exactly_still(walls: Walls, dtype: torch.dtype) -> None:
    still = torch.zeros(1, 1, 3, 16, 16, dtype=dtype)
    still[:, :, 0] = 1.7
    operator = _operator(walls, strength=100.0).to(dtype)
    assert torch.equal(operator(still, EXTENT), still.expand(1, 3, 3, 16, 16))


def test_water_far_from_any_disturbance_stays_exactly_still(state: Tensor) -> None:
    calm = torch.zeros_like(state[:1])
    calm[:, :, 0] = 1.0
    calm[..., :4, :4] = state[:1, ..., :4, :4]
    marched = _operator(strength=100.0)(calm, EXTENT)
    assert not torch.equal(marched[..., :4, :4], calm[..., :4, :4].expand(1, 3, 3, 4, 4))
    assert torch.equal(marched[..., 16:], calm[..., 16:].expand(1, 3, 3, 16, 8))


@pytest.mark.parametrize("walls", WALLS)
def test_depth_stays_positive_where_the_network_would_drain_it(walls: Walls, state: Tensor) -> None:
    operator = _operator(walls, strength=100.0)
    predicted = operator.predict(state[:, 0], SPACING)
    corrected = operator(state, EXTENT)
    assert _drained_by(operator, state, predicted).min() < -1.0
    # no shallower than the bound, but for rounding
    assert corrected[:, :, 0].min() >= LEAST_DEPTH * (1 - 1e-9)
    torch.testing.assert_close(
        corrected[:, :, 0].sum((-2, -1)), predicted[:, :, 0].sum((-2, -1)), rtol=1e-11, atol=0
    )


def _drained_by(operator: ShallowWaterMno, state: Tensor, predicted: Tensor) -> Tensor:
    """The depth that the network's fluxes would leave, were they not limited."""
    found: list[Tensor] = []

    def record(_: nn.Module, __: object, out: Tensor) -> None:
        found.append(out)

    hook = operator.correction.register_forward_hook(record)
    operator(state, EXTENT)
    hook.remove()
    jumps = activity((predicted - torch.tensor([1.0, 0.0, 0.0]).reshape(3, 1, 1)).flatten(0, 1))
    faces = nn.functional.pixel_shuffle(jumps.unflatten(0, predicted.shape[:2]) * found[0], 2)
    mass_y, mass_x = faces[:, :, 0, :-1], faces[:, :, 3, :, :-1]
    depth = predicted[:, :, 0].clone()
    depth[:, :, :-1] -= mass_y
    depth[:, :, 1:] += mass_y
    depth[..., :-1] -= mass_x
    depth[..., 1:] += mass_x
    return depth


def test_limiter_by_hand() -> None:
    """A cell that holds 0.4 m above the least depth is asked for 0.6 and 0.2: it gives half of both."""
    depth = torch.full((1, 1, 1, 3), 1.0)
    depth[..., 1] = LEAST_DEPTH + 0.4
    flux_x = torch.tensor([-0.6, 0.2]).reshape(1, 1, 1, 1, 2).repeat(1, 1, 3, 1, 1)
    flux_y = torch.zeros(1, 1, 3, 0, 3)
    _, limited = shallow_water_mno._limited(depth, flux_y, flux_x)
    torch.testing.assert_close(limited[0, 0, :, 0], torch.tensor([-0.3, 0.1]).expand(3, 2))


def test_limiter_leaves_what_a_cell_can_give() -> None:
    depth = torch.full((1, 1, 4, 4), 1.0)
    generator = torch.Generator().manual_seed(0)
    flux_y, flux_x = (0.2 * torch.rand(1, 1, 3, *shape, generator=generator) for shape in ((3, 4), (4, 3)))
    limited = shallow_water_mno._limited(depth, flux_y, flux_x)
    assert torch.equal(limited[0], flux_y)
    assert torch.equal(limited[1], flux_x)


def test_activity_is_the_largest_jump_nearby() -> None:
    states = torch.zeros(1, 3, 12, 12)
    states[0, 0, 6, 6] = 2.0
    states[0, 2, 6, 6] = -3.0
    found = activity(states)[0, 0]
    assert found.shape == (6, 6)
    # both neighbouring differences of a cell meet in it
    assert found[3, 3] == 10.0
    assert found[0].max() == 0.0
    assert found[:, 0].max() == 0.0


def test_without_a_correction_the_prediction_is_left(state: Tensor) -> None:
    operator = _operator(strength=0.0)
    assert torch.equal(operator(state, EXTENT), operator.predict(state[:, 0], SPACING))


@pytest.mark.parametrize("walls", WALLS)
def test_compiled_prediction_equals_the_differentiable_one(walls: Walls, state: Tensor) -> None:
    operator, single = _operator(walls).float(), state.float()
    compiled = operator.predict(single[:, 0], (0.05, 0.04))
    differentiable = operator.predict(single[:, 0].clone().requires_grad_(), (0.05, 0.04))
    assert differentiable.requires_grad
    assert not compiled.requires_grad
    torch.testing.assert_close(compiled, differentiable.detach(), rtol=0, atol=5e-6)


def test_gradients_of_the_whole_operator(state: Tensor) -> None:
    """With respect to the state, by finite differences; the limiter binds in some cells."""
    operator = _operator(strength=20.0)
    present = state[:1, :, :, :8, :8].clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda q: operator(q, (0.4, 0.4)), present, eps=1e-7, atol=1e-4, rtol=1e-3, fast_mode=True
    )
