"""The task of an evolution problem: rollouts on the surrogate's own output, growing longer as it learns.

The gradient passes one block of frames (push-forward, Brandstetter et al. 2022, arXiv 2202.03376: later
blocks start from what the surrogate made, but do not blame earlier ones) or the whole rollout, with the
activations of a block computed anew on the way back if memory is to be bounded. Noise on the first state is
the other known cure for errors that feed themselves (Sanchez-Gonzalez et al. 2020, arXiv 2002.09405).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from operators import AnySurrogate, EvolutionSurrogate
from problems import EVOLUTION_PROBLEMS
from training.config import Run
from training.prefetch import Prefetched
from training.ranks import ALONE, Ranks
from training.sequences import HeldTrajectories, SequenceSchedule, SequenceSet
from training.task import Task, mixed_precision
from training.trajectories import Trajectories, open_trajectories
from training.trajectory_evaluation import evaluate_trajectories
from training.trajectory_metrics import headline


@final
class EvolutionTask(Task):
    """Relative L2 errors of the perturbation, frame by frame, over rollouts from random frames."""

    def __init__(
        self,
        run: Run,
        training: Sequence[Path],
        validation: Mapping[str, Path],
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        assert run.sequence is not None
        problem = EVOLUTION_PROBLEMS[run.data.problem]
        names = [spec.name for spec in problem.inputs]
        self._run, self._sequence, self._validation, self._device = run, run.sequence, validation, device
        vectors = [(names.index(along_x), names.index(along_y)) for along_x, along_y in problem.vectors]
        self._ranks, self._part = ranks, ranks.part(run.optimizer.batch_size)
        # frames that an operator is given, and that it answers with
        self._given, self._each = (getattr(run.operator, name, 1) for name in ("history", "frames"))
        parts, extent = _parts(training, ranks)
        self._data = SequenceSet(parts, extent, vectors)
        self._stretch: Callable[[int], Tensor] = self._drawn if ranks.count == 1 else Prefetched(self._drawn)
        self._rest = torch.tensor([problem.rest[name] for name in names], device=device)[:, None, None]
        self._schedule = SequenceSchedule(
            samples=len(self._data),
            frames=self._data.frames,
            first_frame=run.sequence.first_frame,
            history=self._given,
            batch_size=run.optimizer.batch_size,
            seed=run.run.seed,
            symmetries=self._data.symmetries if run.augmentation.d4 else 1,
            initial_share=run.sequence.initial_share,
        )

    def prepare(self, surrogate: AnySurrogate) -> None:
        """Set the normalizers to the moments of the training data, if the run asks for them."""
        assert isinstance(surrogate, EvolutionSurrogate)
        if self._sequence.normalize:
            surrogate.normalize(*self._data.moments(self._ranks))

    def loss(self, surrogate: AnySurrogate, step: int) -> Float[Tensor, ""]:
        """The mean over the blocks of a rollout, of the frames chosen for this step."""
        assert isinstance(surrogate, EvolutionSurrogate)
        blocks, given, each = self._sequence.blocks_at(step), self._given, self._each
        stretch = self._stretch(step).to(self._device)
        chosen = self._schedule.chosen_at(step, each, min(self._sequence.frames_per_block or each, each))
        history = self._disturbed(stretch[:, :given], step)
        losses = []
        # a longer history needs the frames between the chosen ones too
        computed = chosen if given == 1 else tuple(range(each))
        for block in range(blocks):
            following = self._advance(surrogate, history, computed)
            reference = stretch[:, given + block * each : given + (block + 1) * each]
            places = [computed.index(frame) for frame in chosen]
            losses.append(self._error(following[:, places], reference[:, list(chosen)], surrogate.scale))
            history = torch.cat([history, following], dim=1)[:, -given:]
            if self._sequence.gradient == "block":
                history = history.detach()
        return torch.stack(losses).mean()

    def validate(self, surrogate: AnySurrogate) -> dict[str, float]:
        """See ``Task.validate``."""
        assert isinstance(surrogate, EvolutionSurrogate)
        metric = f"{headline(self._run.data.problem)}_mean"
        errors: dict[str, float] = {}
        for family, path in self._validation.items():
            with open_trajectories(path) as data:
                found = evaluate_trajectories(
                    surrogate, data, self._sequence.first_frame, batch_size=self._run.evaluation.batch_size
                )
            errors[f"{family}.{metric}"] = found.summary[metric]
        return errors

    def _drawn(self, step: int) -> Float[Tensor, "batch time channel y x"]:
        length = self._given + self._sequence.blocks_at(step) * self._each
        return self._data.batch(self._schedule, step, length, self._part)

    def _advance(
        self, surrogate: EvolutionSurrogate, history: Tensor, frames: tuple[int, ...]
    ) -> Float[Tensor, "batch frame channel y x"]:
        """These frames of the next block."""
        with mixed_precision(self._device):
            if self._sequence.checkpoint_blocks:
                out: Tensor = checkpoint(surrogate, history, self._data.extent, frames, use_reentrant=False)
            else:
                out = surrogate(history, self._data.extent, frames)
        return out.float()

    def _error(self, predicted: Tensor, reference: Tensor, scale: Tensor) -> Tensor:
        """``||q - q_ref|| / ||q_ref - rest||`` of each frame, channels in units of their normalizers."""
        weight = 1.0 / scale[:, None, None]
        error = (weight * (predicted - reference)).flatten(2)
        perturbation = (weight * (reference - self._rest)).flatten(2)
        ratio: Tensor = torch.linalg.vector_norm(error, dim=2) / torch.linalg.vector_norm(
            perturbation, dim=2
        ).clamp_min(1e-6)
        return ratio.mean()

    def _disturbed(self, history: Tensor, step: int) -> Tensor:
        """With white noise, relative to the perturbation's root mean square."""
        if self._sequence.noise == 0.0:
            return history
        size = (history - self._rest).square().mean(dim=(1, 3, 4), keepdim=True).sqrt()
        # of the whole batch, so that the parts of several processes differ
        whole = (self._run.optimizer.batch_size, *history.shape[1:])
        drawn = torch.randn(whole, generator=self._schedule.noise_at(step))[self._part].to(self._device)
        return history + self._sequence.noise * size * drawn


def _parts(
    paths: Sequence[Path], ranks: Ranks
) -> tuple[list[HeldTrajectories | Trajectories], tuple[float, float]]:
    """The files' trajectories, and their extent."""
    files = [open_trajectories(path) for path in paths]
    extent = files[-1].extent
    if ranks.count > 1:
        return list(files), extent
    held: list[HeldTrajectories | Trajectories] = []
    for file in files:
        with file:
            held.append(HeldTrajectories(file.load()))
    return held, extent
