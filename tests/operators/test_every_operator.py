"""What holds for every operator, whatever its architecture."""

from typing import get_args

import pytest
import torch
from small_operators import SMALL

from operators import (
    AnySurrogate,
    EvolutionSurrogate,
    OperatorConfig,
    Surrogate,
    UnsupportedGrid,
    evolves,
    surrogate_from_config,
)

# what treats cells one by one takes any grid
CELLWISE = ("steady_neural_operator", "evolution_neural_operator")
STEADY = {name: config for name, config in SMALL.items() if not evolves(config)}
EVOLUTION = {name: config for name, config in SMALL.items() if evolves(config)}

# side lengths per cell [m]
CELL = 0.05


def _of(request: pytest.FixtureRequest) -> AnySurrogate:
    torch.manual_seed(0)
    return surrogate_from_config(request.param).eval()


@pytest.fixture(params=STEADY.values(), ids=STEADY.keys())
def surrogate(request: pytest.FixtureRequest) -> Surrogate:
    found = _of(request)
    assert isinstance(found, Surrogate)
    return found


@pytest.fixture(params=EVOLUTION.values(), ids=EVOLUTION.keys())
def evolution(request: pytest.FixtureRequest) -> EvolutionSurrogate:
    found = _of(request)
    assert isinstance(found, EvolutionSurrogate)
    return found


def test_every_architecture_is_tested() -> None:
    union, _ = get_args(OperatorConfig)
    kinds = {config.model_fields["kind"].default for config in get_args(union)}
    assert {config.kind for config in SMALL.values()} == kinds


# --- steady operators


def _permeability(batch: int = 2, ny: int = 16, nx: int = 16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.exp(torch.randn(batch, 1, ny, nx, generator=generator))


def test_answer_has_the_shape_of_the_input_and_is_finite(surrogate: Surrogate) -> None:
    pressure = surrogate(_permeability(), torch.ones(2))
    assert pressure.shape == (2, 1, 16, 16)
    assert torch.isfinite(pressure).all()


@pytest.mark.parametrize(
    "surrogate", [config for config in STEADY.values() if config.kind not in CELLWISE], indirect=True
)
def test_constant_permeability_gives_the_series_solution_before_any_training(surrogate: Surrogate) -> None:
    # 0.0736713 is the maximum of -laplace p = 1 on the unit square (Timoshenko and Goodier 1970, section 109)
    pressure = surrogate(torch.full((1, 1, 64, 64), 3.0), torch.full((1,), 6.0))
    assert pressure.max().item() == pytest.approx(2 * 0.0736713, rel=0.02)


def test_scales_exactly_with_the_source(surrogate: Surrogate) -> None:
    a = _permeability()
    one, many = surrogate(a, torch.ones(2)), surrogate(a, torch.tensor([4.0, -0.5]))
    torch.testing.assert_close(many, one * torch.tensor([4.0, -0.5]).reshape(2, 1, 1, 1), rtol=0, atol=0)


@pytest.mark.parametrize("factor", [1e-9, 0.37, 1e12])
def test_scales_with_a_constant_factor_on_the_permeability(surrogate: Surrogate, factor: float) -> None:
    a = _permeability()
    torch.testing.assert_close(
        surrogate(factor * a, torch.ones(2)) * factor, surrogate(a, torch.ones(2)), rtol=2e-4, atol=1e-7
    )


def test_eval_is_deterministic_and_samples_do_not_mix(surrogate: Surrogate) -> None:
    a = _permeability(batch=3)
    together = surrogate(a, torch.ones(3))
    assert torch.equal(together, surrogate(a, torch.ones(3)))
    alone = surrogate(a[1:2], torch.ones(1))
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-7)


def test_every_parameter_gets_a_gradient(surrogate: Surrogate) -> None:
    surrogate.train()
    surrogate(_permeability(), torch.ones(2)).square().sum().backward()
    missing = [
        name for name, p in surrogate.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()
    ]
    assert missing == []


def test_overfits_two_samples(surrogate: Surrogate) -> None:
    surrogate.train()
    a, source = _permeability(), torch.ones(2)
    target = surrogate(a, source).detach() * (1 + 0.2 * torch.sin(torch.linspace(0, 6, 16)))
    optimizer = torch.optim.Adam(surrogate.parameters(), lr=5e-3)
    losses = []
    # attention that is normalized by sums learns more slowly than scans
    while len(losses) < 240 and not (losses and losses[-1] < 0.5 * losses[0]):
        loss = (surrogate(a, source) - target).norm() / target.norm()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_other_grids_need_no_retraining(surrogate: Surrogate) -> None:
    assert surrogate(_permeability(ny=24, nx=40), torch.ones(2), extent=(0.6, 1.0)).shape == (2, 1, 24, 40)


def test_a_grid_that_does_not_fit_is_refused(surrogate: Surrogate) -> None:
    if surrogate.operator.config.kind in CELLWISE:
        assert surrogate(_permeability(ny=18), torch.ones(2)).shape == (2, 1, 18, 16)
        return
    with pytest.raises(UnsupportedGrid, match="18 x 16"):
        surrogate(_permeability(ny=18), torch.ones(2))


def test_state_dict_round_trip_is_bit_exact(surrogate: Surrogate) -> None:
    twin = surrogate_from_config(surrogate.operator.config).eval()
    twin.load_state_dict(surrogate.state_dict())
    a = _permeability()
    assert torch.equal(twin(a, torch.ones(2)), surrogate(a, torch.ones(2)))


def test_exports_with_the_scan_as_an_opaque_operator(surrogate: Surrogate) -> None:
    a, source = _permeability(batch=2), torch.ones(2)
    with torch.no_grad():
        program = torch.export.export(surrogate, (a, source), strict=False)
    assert any("selective_scan" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(a, source), surrogate(a, source), rtol=1e-5, atol=1e-7)


# --- evolution operators


def _history(
    surrogate: EvolutionSurrogate, batch: int = 2, ny: int = 16, nx: int = 16, seed: int = 0
) -> torch.Tensor:
    """Frames that any of them takes: the first channel around 1, the others around 0."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, surrogate.history, surrogate.operator.fields, ny, nx)
    frames = 0.2 * torch.randn(shape, generator=generator).clamp(-3, 3)
    frames[:, :, 0] += 1.0
    return frames


def _next(
    surrogate: EvolutionSurrogate, history: torch.Tensor, chosen: list[int] | None = None
) -> torch.Tensor:
    extent = CELL * history.shape[-2], CELL * history.shape[-1]
    following: torch.Tensor = surrogate(history, extent, chosen)
    return following


def test_frames_have_the_shape_of_a_known_one_and_are_finite(evolution: EvolutionSurrogate) -> None:
    history = _history(evolution)
    following = _next(evolution, history)
    assert following.shape == (2, evolution.frames, *history.shape[2:])
    assert torch.isfinite(following).all()


def test_other_grids_need_no_other_operator(evolution: EvolutionSurrogate) -> None:
    history = _history(evolution, ny=12, nx=28)
    assert _next(evolution, history).shape[-2:] == (12, 28)


@pytest.mark.parametrize("shape", [(18, 16), (16, 30)])
def test_grids_that_do_not_divide_into_patches_are_refused(
    evolution: EvolutionSurrogate, shape: tuple[int, int]
) -> None:
    if evolution.operator.config.kind in CELLWISE:
        assert _next(evolution, _history(evolution, ny=shape[0], nx=shape[1])).shape[-2:] == shape
        return
    with pytest.raises(UnsupportedGrid, match=f"{shape[0]} x {shape[1]}"):
        _next(evolution, _history(evolution, ny=shape[0], nx=shape[1]))


@pytest.mark.parametrize("chosen", [[3], [0], [1, 3], [2, 0, 3], [0, 1, 2, 3]])
def test_chosen_frames_are_those_of_the_whole_answer(
    evolution: EvolutionSurrogate, chosen: list[int]
) -> None:
    history = _history(evolution)
    assert torch.equal(_next(evolution, history, chosen), _next(evolution, history)[:, chosen])


def test_choosing_frames_chooses_their_gradients(evolution: EvolutionSurrogate) -> None:
    history, names = _history(evolution), [name for name, _ in evolution.named_parameters()]
    some = torch.autograd.grad(_next(evolution, history, [1, 3]).square().sum(), evolution.parameters())
    all_ = torch.autograd.grad(_next(evolution, history)[:, [1, 3]].square().sum(), evolution.parameters())
    for name, found, expected in zip(names, some, all_, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_every_parameter_of_an_evolution_gets_a_gradient(evolution: EvolutionSurrogate) -> None:
    _next(evolution.train(), _history(evolution)).square().sum().backward()
    missing = [
        name
        for name, p in evolution.named_parameters()
        if p.grad is None or not torch.isfinite(p.grad).all() or not p.grad.any()
    ]
    assert missing == []


def test_the_present_state_gets_a_gradient(evolution: EvolutionSurrogate) -> None:
    history = _history(evolution).requires_grad_()
    (slope,) = torch.autograd.grad(_next(evolution, history).square().sum(), history)
    assert torch.isfinite(slope).all()
    assert slope.any()


def test_evolution_in_eval_is_deterministic(evolution: EvolutionSurrogate) -> None:
    history = _history(evolution)
    assert torch.equal(_next(evolution, history), _next(evolution, history))


def test_a_trajectory_does_not_depend_on_its_batch(evolution: EvolutionSurrogate) -> None:
    history = _history(evolution, batch=3)
    alone = _next(evolution, history[1:2])
    torch.testing.assert_close(_next(evolution, history)[1:2], alone, rtol=1e-5, atol=1e-6)
    spoilt = history.clone()
    spoilt[0], spoilt[2] = float("nan"), 100.0 * spoilt[2]
    torch.testing.assert_close(_next(evolution, spoilt)[1:2], alone, rtol=1e-5, atol=1e-6)


def test_evolution_state_dict_round_trip_is_bit_exact(evolution: EvolutionSurrogate) -> None:
    evolution.normalize([0.3] * len(evolution.shift), [1.7] * len(evolution.scale))
    twin = surrogate_from_config(evolution.operator.config).eval()
    twin.load_state_dict(evolution.state_dict())
    history = _history(evolution)
    assert torch.equal(_next(twin, history), _next(evolution, history))


def test_evolution_overfits_two_trajectories(evolution: EvolutionSurrogate) -> None:
    history = _history(evolution)
    with torch.no_grad():
        target = _next(evolution, history) + 0.05 * torch.sin(torch.linspace(0, 6, 16))
    optimizer = torch.optim.Adam(evolution.train().parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = (_next(evolution, history) - target).norm()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
