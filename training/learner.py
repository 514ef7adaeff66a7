"""The mutable state of a training: weights, their average, the optimizer; and one step."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from operators import AnySurrogate, surrogate_from_config
from training.checkpoint import Checkpoint
from training.config import Run
from training.ranks import ALONE, Ranks
from training.schedule import ema_decay, learning_rate
from training.task import Task


class Learner:
    """A surrogate with its optimizer and the exponential moving average of its weights."""

    def __init__(self, run: Run, device: torch.device, ranks: Ranks = ALONE) -> None:
        self._run, self._device, self._ranks = run, device, ranks
        torch.manual_seed(run.run.seed)
        self.surrogate = surrogate_from_config(run.operator).to(device)
        self._parameters = dict(self.surrogate.named_parameters())
        self._average = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._optimizer = torch.optim.AdamW(_decay_groups(self._parameters, run), fused=True)
        self.loss_sum = torch.zeros((), device=device)
        self._loss: nn.Module | None = None

    def step(self, step: int, task: Task) -> None:
        """One optimizer step; adds the batch's loss to ``loss_sum`` without waiting for the device."""
        optimizer = self._run.optimizer
        # whatever an operator draws is a function of the step
        torch.manual_seed(self._run.run.seed + step)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(optimizer, step)
        if self._loss is None:
            self._loss = self._ranks.joined(_Loss(self.surrogate, task), self._device)
        value = self._loss(step)
        self._optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(self._parameters.values(), optimizer.clip_norm)
        self._optimizer.step()
        self._follow(1.0 - ema_decay(optimizer, step))
        self.loss_sum += self._ranks.mean(value.detach())

    @torch.no_grad()
    def _follow(self, weight: float) -> None:
        torch._foreach_lerp_(list(self._average.values()), list(self._parameters.values()), weight)

    def averaged(self) -> AnySurrogate:
        """A surrogate with the averaged weights, for evaluation."""
        return _with_state(self._run, self.surrogate.state_dict() | self._average).to(self._device)

    def capture(self, step: int, seconds: float, text: str) -> Checkpoint:
        """The state as a checkpoint."""
        states = {
            name: self._optimizer.state[p]
            for name, p in self._parameters.items()
            if p in self._optimizer.state
        }
        return Checkpoint(
            step=step,
            seconds=seconds,
            run=text,
            weights=self.surrogate.state_dict(),
            average=self._average,
            moment1={name: state["exp_avg"] for name, state in states.items()},
            moment2={name: state["exp_avg_sq"] for name, state in states.items()},
            loss_sum=self.loss_sum,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint."""
        self.surrogate.load_state_dict(dict(checkpoint.weights))
        for name, average in self._average.items():
            average.copy_(checkpoint.average[name])
        for name, moment1 in checkpoint.moment1.items():
            self._optimizer.state[self._parameters[name]] = {
                # a parameter with a gradient has one at every step
                "step": torch.tensor(float(checkpoint.step), device=self._device),
                "exp_avg": moment1.to(self._device),
                "exp_avg_sq": checkpoint.moment2[name].to(self._device),
            }
        self.loss_sum.copy_(checkpoint.loss_sum)


@final
class _Loss(nn.Module):
    """The loss of a step, as a module around the surrogate: gradients are averaged where it is left."""

    def __init__(self, surrogate: AnySurrogate, task: Task) -> None:
        super().__init__()
        self.surrogate = surrogate
        self._task = task

    def forward(self, step: int) -> Float[Tensor, ""]:
        """The loss on this process's part of the batch."""
        return self._task.loss(self.surrogate, step)


def averaged_state(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The weights to evaluate and publish: the averages, and the buffers as they are."""
    return {**checkpoint.weights, **checkpoint.average}


def averaged_surrogate(run: Run, checkpoint: Checkpoint) -> AnySurrogate:
    """The surrogate that a checkpoint would be published as."""
    return _with_state(run, averaged_state(checkpoint))


def _with_state(run: Run, state: dict[str, Tensor]) -> AnySurrogate:
    surrogate = surrogate_from_config(run.operator).eval()
    surrogate.load_state_dict(state)
    return surrogate


def _decay_groups(parameters: dict[str, nn.Parameter], run: Run) -> list[dict[str, object]]:
    """Weight decay for matrices and kernels, none for biases, norms and the scan's A and D."""
    optimizer = run.optimizer
    decayed = [p for name, p in parameters.items() if p.ndim >= 2 and name.endswith("weight")]
    chosen = {id(p) for p in decayed}
    others = [p for p in parameters.values() if id(p) not in chosen]
    common: dict[str, object] = {"lr": optimizer.learning_rate, "betas": optimizer.betas}
    return [
        {"params": decayed, "weight_decay": optimizer.weight_decay, **common},
        {"params": others, "weight_decay": 0.0, **common},
    ]
