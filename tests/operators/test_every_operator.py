"""What holds for every operator, whatever its architecture."""

import pytest
import torch

from operators import OperatorConfig, Surrogate, UnsupportedGrid, surrogate_from_config
from operators.axial_mno import AxialMnoConfig

# one small instance per row of the operators' table; a new architecture adds its own
SMALL: dict[str, OperatorConfig] = {
    plan: AxialMnoConfig(channels=16, inner_channels=16, states=4, rank=2, blocks=2, plan=plan, intervals=4)
    for plan in ("axial", "cross4", "bi_raster")
}


@pytest.fixture(params=SMALL.values(), ids=SMALL.keys())
def surrogate(request: pytest.FixtureRequest) -> Surrogate:
    torch.manual_seed(0)
    return surrogate_from_config(request.param).eval()


def _permeability(batch: int = 2, ny: int = 16, nx: int = 16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.exp(torch.randn(batch, 1, ny, nx, generator=generator))


def test_answer_has_the_shape_of_the_input_and_is_finite(surrogate: Surrogate) -> None:
    pressure = surrogate(_permeability(), torch.ones(2))
    assert pressure.shape == (2, 1, 16, 16)
    assert torch.isfinite(pressure).all()


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
    for _ in range(60):
        loss = (surrogate(a, source) - target).norm() / target.norm()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_other_grids_need_no_retraining(surrogate: Surrogate) -> None:
    assert surrogate(_permeability(ny=24, nx=40), torch.ones(2), extent=(0.6, 1.0)).shape == (2, 1, 24, 40)


def test_a_grid_that_does_not_fit_is_refused(surrogate: Surrogate) -> None:
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
