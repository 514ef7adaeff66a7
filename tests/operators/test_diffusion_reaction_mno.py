"""The learnt correction of diffusion-reaction starts from the split step, and from nothing else."""

import pytest
import torch
from torch import nn

from operators import diffusion_reaction_scheme
from operators.diffusion_reaction_mno import SIZE, DiffusionReactionMno, DiffusionReactionMnoConfig

EXTENT = (0.8, 1.2)


def _operator(**changes: float) -> DiffusionReactionMno:
    torch.manual_seed(0)
    small = {"channels": 16, "inner_channels": 8, "rank": 2, "blocks": 1, "context": 4, "hidden": 6}
    return DiffusionReactionMno(DiffusionReactionMnoConfig(**{**small, "frames": 3, **changes})).eval()


@pytest.fixture
def state() -> torch.Tensor:
    return torch.randn(2, 1, 2, 16, 24, generator=torch.Generator().manual_seed(0))


def test_prediction_is_the_split_step(state: torch.Tensor) -> None:
    expected = diffusion_reaction_scheme.frames(state[:, 0], 3, 0.1, EXTENT)
    assert torch.equal(_operator(frame_interval=0.1).predict(state[:, 0], EXTENT), expected)


def test_without_a_correction_the_prediction_is_left(state: torch.Tensor) -> None:
    operator = _operator()
    for parameter in operator.correction.write.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(operator(state, EXTENT), operator.predict(state[:, 0], EXTENT))


def test_an_untrained_correction_does_little_harm(state: torch.Tensor) -> None:
    operator = _operator()
    correction = operator(state, EXTENT) - operator.predict(state[:, 0], EXTENT)
    assert 0 < correction.abs().max() < SIZE


def test_only_the_present_counts(state: torch.Tensor) -> None:
    operator, older = _operator(), torch.randn_like(state)
    assert torch.equal(operator(torch.cat([older, state], dim=1), EXTENT), operator(state, EXTENT))


def test_walls_are_told_from_the_inside(state: torch.Tensor) -> None:
    """In a level state only the walls distinguish places."""
    operator, level = _operator(), torch.full_like(state, 0.3)
    correction = operator(level, EXTENT) - operator.predict(level[:, 0], EXTENT)
    assert correction.std(dim=(-2, -1)).max() > 1e-6


def test_rows_and_columns_keep_their_places(state: torch.Tensor) -> None:
    """A disturbance is felt first around it, so patches are put back where they came from."""
    operator = _operator().double()
    known = state.double()
    disturbed = known.clone()
    disturbed[..., 5, 18] += 1e-3
    change = (operator(disturbed, EXTENT) - operator(known, EXTENT))[0, 0].abs().sum(0)
    assert divmod(int(change.argmax()), 24) == (5, 18)
