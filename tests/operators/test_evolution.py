"""The surrogate around an evolution operator: normalizers and rollouts, worked out by hand."""

from collections.abc import Sequence
from itertools import islice
from typing import final

import pytest
import torch
from torch import Tensor

from operators import EvolutionOperator, EvolutionSurrogate, surrogate_from_config
from operators.autoregressive import Autoregressive, AutoregressiveConfig
from operators.patch_frames import frame_numbers

SQUARE = (1.0, 1.0)


@final
class Sums(EvolutionOperator):
    """Each frame is the sum of the last ``history`` ones."""

    fields = 1

    def __init__(self, history: int, frames: int) -> None:
        super().__init__()
        self.history, self.frames = history, frames

    def forward(
        self,
        history: Tensor,
        extent: tuple[float, float],  # noqa: ARG002 (the contract's)
        chosen: Sequence[int] | None = None,
    ) -> Tensor:
        assert history.shape[1] == self.history
        known = history
        for _ in range(self.frames):
            known = torch.cat([known, known[:, -self.history :].sum(1, keepdim=True)], dim=1)
        return known[:, self.history :][:, list(frame_numbers(self.frames, chosen))]


def _frames(*values: float) -> Tensor:
    return torch.tensor(values).reshape(1, -1, 1, 1, 1)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_a_rollout_goes_on_from_its_own_frames(frames: int) -> None:
    surrogate = EvolutionSurrogate(Sums(3, frames), 1)
    blocks = islice(surrogate.blocks(_frames(0.0, 0.0, 1.0), SQUARE), 6)
    found = torch.cat(list(blocks), dim=1).flatten().tolist()
    # the tribonacci numbers, whatever the size of a block
    assert found[:6] == [1.0, 2.0, 4.0, 7.0, 13.0, 24.0]


def _config(fields: int, history: int, frames: int) -> AutoregressiveConfig:
    return AutoregressiveConfig(
        fields=fields,
        walls="outflow",
        reference_spacing=0.1,
        history=history,
        frames=frames,
        channels=8,
        inner_channels=8,
        blocks=1,
    )


def test_a_rollout_is_repeated_calls() -> None:
    torch.manual_seed(0)
    surrogate = surrogate_from_config(_config(fields=2, history=3, frames=2)).eval()
    assert isinstance(surrogate, EvolutionSurrogate)
    known = torch.randn(1, 3, 2, 8, 8)
    for block in islice(surrogate.blocks(known, SQUARE), 3):
        assert torch.equal(block, surrogate(known[:, -3:], SQUARE))
        known = torch.cat([known, block], dim=1)


def test_normalizers_stand_around_the_operator() -> None:
    surrogate = EvolutionSurrogate(Sums(2, 1), 2)
    surrogate.normalize([1.0, 10.0], [2.0, 4.0])
    history = torch.tensor([[3.0, 18.0], [5.0, 6.0]]).reshape(1, 2, 2, 1, 1)
    # inside 1 + 2 = 3 and 2 - 1 = 1
    assert surrogate(history, SQUARE).flatten().tolist() == [7.0, 14.0]


def test_normalizers_are_stored_with_the_weights() -> None:
    surrogate, other = EvolutionSurrogate(Sums(1, 1), 2), EvolutionSurrogate(Sums(1, 1), 2)
    surrogate.normalize([1.0, 10.0], [2.0, 4.0])
    other.load_state_dict(surrogate.state_dict())
    assert (other.shift.tolist(), other.scale.tolist()) == ([1.0, 10.0], [2.0, 4.0])


def test_without_normalizers_nothing_is_changed() -> None:
    history = torch.randn(2, 1, 3, 4, 4)
    assert torch.equal(EvolutionSurrogate(Sums(1, 1), 3)(history, SQUARE), history)


def _autoregressive() -> Autoregressive:
    torch.manual_seed(0)
    return Autoregressive(_config(fields=1, history=2, frames=3)).eval()


def test_an_operator_without_increments_stands_still() -> None:
    operator = _autoregressive()
    for parameter in operator.head.project.parameters():
        torch.nn.init.zeros_(parameter)
    history = torch.randn(2, 2, 1, 8, 8)
    assert torch.equal(operator(history, SQUARE), history[:, -1:].expand(2, 3, 1, 8, 8))


def test_older_frames_count_and_those_before_the_history_do_not() -> None:
    operator, history = _autoregressive(), torch.randn(1, 4, 1, 8, 8)
    found = operator(history[:, -2:], SQUARE)
    assert torch.equal(operator(history, SQUARE), found)
    assert not torch.equal(operator(history[:, [1, 3]], SQUARE), found)


def test_too_few_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="needs 2 frames, got 1"):
        _autoregressive()(torch.zeros(1, 1, 1, 8, 8), SQUARE)


@pytest.mark.parametrize("chosen", [[3], [-1], [], [0, 7]])
def test_frames_that_are_none_of_the_block_are_refused(chosen: list[int]) -> None:
    with pytest.raises(ValueError, match=r"0, \.\.\., 2"):
        _autoregressive()(torch.zeros(1, 2, 1, 8, 8), SQUARE, chosen)
