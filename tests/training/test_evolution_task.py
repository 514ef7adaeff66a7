"""The loss of rollouts, on trajectories whose every error can be written down.

They decay towards the water at rest by the same factor from frame to frame, and so does the surrogate, by
another one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from operators import EvolutionOperator, EvolutionSurrogate, surrogate_from_config
from operators.autoregressive import AutoregressiveConfig
from problems import Grid
from training.config import Run, parse_run
from training.evolution_task import EvolutionTask
from training.trajectories import write_trajectories

FACTOR, FRAMES = 0.9, 12
CPU = torch.device("cpu")


@final
class Decay(EvolutionOperator):
    """Multiplies the perturbation by ``rate`` a frame, and remembers what it was asked."""

    fields = 3

    def __init__(self, rate: float, frames: int = 2, history: int = 1) -> None:
        super().__init__()
        self.history, self.frames = history, frames
        self.rate = nn.Parameter(torch.tensor(rate))
        self.given: list[Tensor] = []
        self.chosen: list[Sequence[int] | None] = []

    def forward(
        self,
        history: Tensor,
        extent: tuple[float, float],
        chosen: Sequence[int] | None = None,
    ) -> Tensor:
        assert extent == (5.0, 5.0)
        assert history.shape[1] == self.history
        self.given.append(history.detach())
        self.chosen.append(chosen)
        rest = torch.tensor([1.0, 0.0, 0.0]).reshape(3, 1, 1)
        # the oldest given frame, so that all of the history matters
        perturbation = history[:, 0] - rest
        numbers = range(self.frames) if chosen is None else chosen
        powers = [self.rate ** (self.history + frame) for frame in numbers]
        return torch.stack([rest + power * perturbation for power in powers], dim=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four trajectories that decay."""
    path, rng = tmp_path_factory.mktemp("decay") / "train_decay.h5", np.random.default_rng(0)
    rest = np.array([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1)
    decay = FACTOR ** np.arange(FRAMES + 1).reshape(-1, 1, 1, 1)
    starts = rng.uniform(-0.4, 0.4, (4, 1, 3, 16, 16))
    grid, times = Grid((16, 16), (5.0, 5.0), (-2.5, -2.5)), 0.01 * np.arange(FRAMES + 1)
    samples = [(rest + decay * start).astype(np.float32) for start in starts]
    write_trajectories(path, samples, "shallow_water", grid, times, {})
    return path


def _run(text: str, *, history: int | None = None, frames: int = 2, **sequence: Any) -> Run:
    """The run with another sequence section: one block of two frames, no noise, unless told otherwise.

    Given a history it is the run of an operator that knows no physics.
    """
    first_frame = 0 if history is None else history - 1
    section = {"curriculum": [{"step": 0, "blocks": 1}], "first_frame": first_frame, **sequence}
    changes: dict[str, Any] = {"sequence": section}
    if history is not None:
        changes["operator"] = AutoregressiveConfig(
            fields=3, walls="outflow", reference_spacing=1.0, history=history, frames=frames
        )
    text = text.replace("\nframes = 2\n", f"\nframes = {frames}\n")
    return Run.model_validate({**parse_run(text).model_dump(exclude_unset=True), **changes})


def _task(text: str, data: Path, **sequence: Any) -> EvolutionTask:
    return EvolutionTask(_run(text, **sequence), [data], {"decay": data}, CPU)


def _surrogate(rate: float, frames: int = 2, history: int = 1) -> tuple[EvolutionSurrogate, Decay]:
    operator = Decay(rate, frames, history)
    return EvolutionSurrogate(operator, 3), operator


def _blocks(count: int) -> dict[str, object]:
    return {"curriculum": [{"step": 0, "blocks": count}]}


@pytest.mark.parametrize("gradient", ["block", "rollout"])
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("history", [1, 2, 3])
@pytest.mark.parametrize("frames_per_block", [None, 1])
def test_a_perfect_surrogate_has_no_loss(
    evolution_text: str, data: Path, gradient: str, blocks: int, history: int, frames_per_block: int | None
) -> None:
    sequence = {"gradient": gradient, "frames_per_block": frames_per_block, **_blocks(blocks)}
    task = _task(evolution_text, data, history=history, **sequence)
    surrogate, operator = _surrogate(FACTOR, history=history)
    for step in range(3):
        assert task.loss(surrogate, step).item() < 1e-5
    assert len(operator.given) == 3 * blocks


@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("gradient", ["block", "rollout"])
@pytest.mark.parametrize("checkpoint_blocks", [False, True])
def test_loss_and_gradient_by_hand(
    evolution_text: str, data: Path, blocks: int, gradient: str, checkpoint_blocks: bool
) -> None:
    sequence = {"gradient": gradient, "checkpoint_blocks": checkpoint_blocks, **_blocks(blocks)}
    task, (surrogate, operator) = _task(evolution_text, data, **sequence), _surrogate(0.95)
    loss = task.loss(surrogate, 0)
    loss.backward()
    # after k frames the surrogate has 0.95^k of the perturbation and should have 0.9^k
    numbers = np.arange(1, 2 * blocks + 1)
    assert loss.item() == pytest.approx(np.mean(0.95**numbers / FACTOR**numbers - 1.0), rel=1e-4)
    # d rate^k / d rate, of all k factors or of those of the last block
    blamed = numbers if gradient == "rollout" else (numbers - 1) % 2 + 1
    slope = np.mean(blamed * 0.95 ** (numbers - 1) / FACTOR**numbers)
    assert operator.rate.grad is not None
    assert float(operator.rate.grad) == pytest.approx(slope, rel=1e-4)


def test_frames_that_are_not_chosen_do_not_count(evolution_text: str, data: Path) -> None:
    task = _task(evolution_text, data, frames=4, frames_per_block=1)
    surrogate, operator = _surrogate(0.95, frames=4)
    assert task.loss(surrogate, 0).item() == pytest.approx((0.95 / FACTOR) ** 4 - 1.0, rel=1e-4)
    assert operator.chosen == [(3,)]


def test_a_longer_history_computes_the_frames_between(evolution_text: str, data: Path) -> None:
    task = _task(evolution_text, data, history=2, frames=3, frames_per_block=1, **_blocks(2))
    surrogate, operator = _surrogate(FACTOR, frames=3, history=2)
    task.loss(surrogate, 0)
    assert operator.chosen == [(0, 1, 2), (0, 1, 2)]


def test_rollouts_grow_with_the_curriculum(evolution_text: str, data: Path) -> None:
    curriculum = [{"step": 0, "blocks": 1}, {"step": 2, "blocks": 3}]
    task, (surrogate, operator) = _task(evolution_text, data, curriculum=curriculum), _surrogate(FACTOR)
    calls = []
    for step in range(4):
        operator.given.clear()
        task.loss(surrogate, step)
        calls.append(len(operator.given))
    assert calls == [1, 1, 3, 3]


def test_noise_is_a_function_of_the_step(evolution_text: str, data: Path) -> None:
    given = {}
    for noise in (0.0, 0.1):
        task, (surrogate, operator) = _task(evolution_text, data, noise=noise), _surrogate(FACTOR)
        for step in (0, 1, 0):
            task.loss(surrogate, step)
        given[noise] = operator.given
    assert torch.equal(given[0.1][0], given[0.1][2])
    rest = torch.tensor([1.0, 0.0, 0.0]).reshape(3, 1, 1)
    drawn = []
    for disturbed, clean in zip(given[0.1], given[0.0], strict=True):
        size = (clean - rest).square().mean((1, 3, 4), keepdim=True).sqrt()
        drawn.append((disturbed - clean) / (0.1 * size))
    assert (drawn[0] - drawn[1]).abs().mean() > 0.5
    for noise in drawn:
        torch.testing.assert_close(
            noise.square().mean((1, 3, 4)), torch.ones_like(noise[:, 0, :, 0, 0]), rtol=0.4, atol=0
        )


def test_stretches_are_transformed_unless_the_run_says_otherwise(evolution_text: str, data: Path) -> None:
    """Means of |hu| and |hv| are exchanged by some symmetries, those of a trajectory are not."""

    def momenta(text: str) -> set[tuple[float, float]]:
        task, (surrogate, operator) = _task(text, data, initial_share=0.9), _surrogate(FACTOR)
        for step in range(8):
            task.loss(surrogate, step)
        size = torch.cat(operator.given)[:, 0].abs().amax((-2, -1))
        return {(round(float(hu), 5), round(float(hv), 5)) for _, hu, hv in size}

    turned = momenta(evolution_text)
    straight = momenta(evolution_text + "\n[augmentation]\nd4 = false\n")
    assert any((hv, hu) in turned for hu, hv in turned)
    assert not any((hv, hu) in straight for hu, hv in straight)


def test_error_of_a_frame_by_hand(evolution_text: str, data: Path) -> None:
    task = _task(evolution_text, data)
    reference, predicted = (torch.zeros(1, 1, 3, 1, 2) for _ in range(2))
    reference[0, 0, 0], predicted[0, 0, 0] = torch.tensor([4.0, 1.0]), torch.tensor([4.0, 3.0])
    reference[0, 0, 1], predicted[0, 0, 1] = torch.tensor([0.0, 8.0]), torch.tensor([3.0, 8.0])
    # depths are measured in 1, momenta in 2: errors (0, 2), (1.5, 0) of perturbations (3, 0), (0, 4)
    found = task._error(predicted, reference, torch.tensor([1.0, 2.0, 2.0]))
    assert float(found) == pytest.approx(2.5 / 5.0)


def test_normalizers_are_the_moments_of_the_data(evolution_text: str, data: Path) -> None:
    surrogate, _ = _surrogate(FACTOR)
    _task(evolution_text, data).prepare(surrogate)
    assert surrogate.scale.tolist() == [1.0, 1.0, 1.0]
    _task(evolution_text, data, history=1, normalize=True).prepare(surrogate)
    # uniform on (-0.4, 0.4), decaying
    size = 0.4 / 3**0.5 * np.sqrt(np.mean(FACTOR ** (2.0 * np.arange(FRAMES + 1))))
    assert surrogate.shift.tolist() == pytest.approx([1.0, 0.0, 0.0], abs=0.02)
    assert surrogate.scale.tolist() == pytest.approx([size] * 3, rel=0.1)


def test_validation_rolls_out_to_the_end(evolution_text: str, data: Path) -> None:
    task, (surrogate, _) = _task(evolution_text, data), _surrogate(0.95)
    numbers = np.arange(1, FRAMES + 1)
    expected = np.mean((0.95 / FACTOR) ** numbers - 1.0)
    assert task.validate(surrogate) == {"decay.perturbation_l2_mean": pytest.approx(expected, rel=1e-4)}


# --- through a network


def _gradients(loss: Tensor, surrogate: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, tuple(surrogate.parameters())))


def test_rollout_gradient_is_autograds_through_the_blocks(evolution_text: str, data: Path) -> None:
    run = _run(evolution_text, gradient="rollout", **_blocks(2))
    task = EvolutionTask(run, [data], {}, CPU)
    torch.manual_seed(0)
    surrogate = surrogate_from_config(run.operator)
    assert isinstance(surrogate, EvolutionSurrogate)
    found = _gradients(task.loss(surrogate, 0), surrogate)
    # the same rollout, written out
    stretch = task._data.batch(task._schedule, 0, 5)
    first = surrogate(stretch[:, :1], (5.0, 5.0))
    second = surrogate(first[:, -1:], (5.0, 5.0))
    error = (torch.cat([first, second], dim=1) - stretch[:, 1:]).flatten(2).norm(dim=2)
    perturbation = (stretch[:, 1:] - torch.tensor([1.0, 0.0, 0.0]).reshape(3, 1, 1)).flatten(2).norm(dim=2)
    expected = _gradients((error / perturbation).mean(), surrogate)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("gradient", ["block", "rollout"])
def test_checkpointed_blocks_have_the_same_gradient(evolution_text: str, data: Path, gradient: str) -> None:
    torch.manual_seed(0)
    surrogate = surrogate_from_config(parse_run(evolution_text).operator)
    found = []
    for checkpointed in (False, True):
        sequence = {"gradient": gradient, "checkpoint_blocks": checkpointed, "frames_per_block": 1}
        task = _task(evolution_text, data, **sequence, **_blocks(2))
        found.append(_gradients(task.loss(surrogate, 0), surrogate))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)
