"""Pooled features: by hand, of every operator, and no part of what it answers."""

import pytest
import torch
from torch import Tensor

from operators import AnySurrogate, Surrogate, UnsupportedGrid, surrogate_from_config
from operators.autoregressive import AutoregressiveConfig
from operators.axial_mno import AxialMnoConfig
from operators.diffusion_reaction_mno import DiffusionReactionMnoConfig
from operators.features import FeatureReader, pooled
from operators.heads.pointwise import PointwiseConfig
from operators.latent_march import LatentMarchConfig
from operators.neural_operator import EvolutionNeuralOperatorConfig, SteadyNeuralOperatorConfig
from operators.one_shot import OneShotConfig
from operators.shallow_water_mno import ShallowWaterMnoConfig
from operators.trunks.fno import FnoConfig

TRUNK = {"channels": 8, "inner_channels": 8, "rank": 2, "blocks": 1}
FRAMES = {**TRUNK, "fields": 2, "walls": "periodic", "reference_spacing": 0.25, "frames": 2}
FNO, POINTWISE = FnoConfig(channels=8, modes=2, layers=1), PointwiseConfig(layers=1)
CONFIGS = {
    config.kind: config
    for config in (
        AxialMnoConfig(**TRUNK, intervals=4),
        SteadyNeuralOperatorConfig(trunk=FNO, head=POINTWISE),
        ShallowWaterMnoConfig(**TRUNK, context=4, hidden=4, frames=2),
        DiffusionReactionMnoConfig(**TRUNK, context=4, hidden=4, frames=2),
        OneShotConfig(**FRAMES),
        LatentMarchConfig(**FRAMES),
        AutoregressiveConfig(**FRAMES),
        EvolutionNeuralOperatorConfig(fields=2, walls="periodic", frames=2, trunk=FNO, head=POINTWISE),
    )
}


@pytest.fixture(params=CONFIGS)
def surrogate(request: pytest.FixtureRequest) -> AnySurrogate:
    torch.manual_seed(1)
    return surrogate_from_config(CONFIGS[request.param]).eval()


def answer(surrogate: AnySurrogate, fields: Tensor) -> Tensor:
    """Of fields [batch y x]."""
    with torch.inference_mode():
        if isinstance(surrogate, Surrogate):
            found: Tensor = surrogate(fields[:, None], torch.ones(len(fields)))
        else:
            history = fields[:, None, None].expand(-1, 1, len(surrogate.shift), -1, -1)
            found = surrogate(history, (1.0, 1.0))
    return found


def fields(count: int) -> Tensor:
    return torch.rand(count, 16, 16, generator=torch.Generator().manual_seed(2)) + 0.5


def test_pooling_by_hand() -> None:
    # two places, two channels
    tokens = torch.tensor([[[1.0, 4.0], [3.0, 4.0]], [[0.0, -2.0], [0.0, 6.0]]])
    expected = torch.tensor([[2.0, 4.0, 1.0, 0.0], [0.0, 2.0, 0.0, 4.0]])
    torch.testing.assert_close(pooled(tokens), expected)
    torch.testing.assert_close(pooled(tokens[:, :, None].bfloat16()), expected)


def test_every_operator_has_them_row_by_row(surrogate: AnySurrogate) -> None:
    with FeatureReader(surrogate) as reader:
        answer(surrogate, fields(3))
        together = reader.take()
        for row in fields(3):
            answer(surrogate, row[None])
        alone = reader.take()
    assert together.shape[0] == 3
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    # other inputs have others
    assert (together[0] - together[1]).abs().max() > 1e-4


def test_reading_does_not_change_an_answer(surrogate: AnySurrogate) -> None:
    expected = answer(surrogate, fields(2))
    with FeatureReader(surrogate):
        found = answer(surrogate, fields(2))
    assert torch.equal(found, expected)


def test_nothing_is_kept_outside_of_the_block(surrogate: AnySurrogate) -> None:
    reader = FeatureReader(surrogate)
    for _ in range(2):
        with reader:
            answer(surrogate, fields(1))
        # of the next block
        answer(surrogate, fields(3))
        with reader:
            answer(surrogate, fields(2))
            assert len(reader.take()) == 2
    layer = surrogate.operator.get_submodule(surrogate.operator.feature_layer)
    assert not layer._forward_hooks


def test_a_forward_pass_that_breaks_leaves_nothing_behind() -> None:
    surrogate = surrogate_from_config(CONFIGS["axial_mno"]).eval()
    reader = FeatureReader(surrogate)
    with reader:
        answer(surrogate, fields(3))
        with pytest.raises(UnsupportedGrid):
            answer(surrogate, fields(3)[:, :7])
    with reader:
        answer(surrogate, fields(1))
        assert len(reader.take()) == 1


def test_a_scaled_permeability_has_the_same_features() -> None:
    surrogate = surrogate_from_config(CONFIGS["axial_mno"]).eval()
    with FeatureReader(surrogate) as reader:
        answer(surrogate, fields(2))
        answer(surrogate, 1024.0 * fields(2))
        plain, scaled = reader.take().chunk(2)
    torch.testing.assert_close(scaled, plain, rtol=1e-4, atol=1e-5)
