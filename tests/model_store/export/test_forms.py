"""Parts in a form that a graph can hold compute what the parts themselves compute."""

import pytest
import torch
from torch import nn

from model_store.export.forms import KeptModes, with_forms
from operators import AnySurrogate, OperatorConfig, shallow_water_scheme, surrogate_from_config
from operators.axial_mno import AxialMnoConfig
from operators.shallow_water_mno import ShallowWaterMno, ShallowWaterMnoConfig
from operators.spectral_convolution import SpectralConvolution

SMALL = {"channels": 8, "inner_channels": 8, "states": 2, "rank": 1, "blocks": 1}


def shaken(module: nn.Module) -> nn.Module:
    """With weights that no fresh network has: its heads are near zero, its norms the identity."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module.eval().requires_grad_(False)


def built(config: OperatorConfig) -> AnySurrogate:
    torch.manual_seed(0)
    surrogate = surrogate_from_config(config)
    shaken(surrogate)
    return surrogate


# the last three lack frequencies, and of 4 cells 2 and -2 are the same wave
@pytest.mark.parametrize("grid", [(24, 20), (9, 33), (8, 8), (7, 4), (3, 5)])
def test_convolution_keeps_its_modes(grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    convolution = SpectralConvolution(3, 2, modes=4).requires_grad_(False)
    fields = torch.randn(2, 3, *grid)
    torch.testing.assert_close(KeptModes(convolution)(fields), convolution(fields), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("extent", [(1.0, 1.0), (3.0, 2.0)])
def test_darcy_operator(extent: tuple[float, float]) -> None:
    surrogate = built(AxialMnoConfig(**SMALL, intervals=4))
    permeability, source = torch.randn(3, 1, 24, 16).exp(), torch.tensor([1.0, 2.0, 0.5])
    expected = surrogate(permeability, source, extent)
    torch.testing.assert_close(
        with_forms(surrogate)(permeability, source, extent), expected, rtol=1e-4, atol=1e-5
    )


# in the wider interval the water takes several steps, as many as each sample needs
@pytest.mark.slow
@pytest.mark.parametrize("interval", [0.01, 0.2])
def test_shallow_water_prediction_counts_its_steps(interval: float) -> None:
    surrogate = built(ShallowWaterMnoConfig(**SMALL, frames=2, frame_interval=interval))
    form = with_forms(surrogate).get_submodule("operator")
    assert isinstance(form, ShallowWaterMno)
    y, x = torch.meshgrid(torch.arange(8) / 8, torch.arange(12) / 12, indexing="ij")
    wave = torch.sin(6.28 * (x + y))
    state = torch.stack([1 + 0.2 * wave, 0.1 * wave, 0.3 * y], dim=0)[None].repeat(2, 1, 1, 1)
    state[1, 1:] *= 4.0
    expected = shallow_water_scheme.frames(state, 2, (interval / 0.2, interval / 0.2), "outflow")
    found = form.predict(state, (0.2, 0.2))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_forms_leave_the_surrogate_as_it_was() -> None:
    surrogate = built(AxialMnoConfig(**SMALL, intervals=4))
    before = {name: type(part) for name, part in surrogate.named_modules()}
    formed = with_forms(surrogate)
    assert {name: type(part) for name, part in surrogate.named_modules()} == before
    assert {id(parameter) for parameter in formed.parameters()} == {id(p) for p in surrogate.parameters()}
