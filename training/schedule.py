"""Learning rates as a function of the step alone."""

import math

from training.config import OptimizerSection


def learning_rate(optimizer: OptimizerSection, step: int) -> float:
    """Linear warm-up to the full rate, then down to zero at the last step."""
    if step < optimizer.warmup_steps:
        return optimizer.learning_rate * (step + 1) / (optimizer.warmup_steps + 1)
    done = (step - optimizer.warmup_steps) / (optimizer.steps - optimizer.warmup_steps)
    remaining = 1.0 - done if optimizer.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return optimizer.learning_rate * remaining


def ema_decay(optimizer: OptimizerSection, step: int) -> float:
    """Decay of the weights' average: shorter memory at first, so that the initial weights are forgotten."""
    return min(optimizer.ema_decay, (1 + step) / (10 + step))
