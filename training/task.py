"""What a training learns: it draws the batch of a step and says how wrong a surrogate is on it."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from operators import AnySurrogate


class Task(ABC):
    """The data of a run, and the error that is minimised on them."""

    @abstractmethod
    def prepare(self, surrogate: AnySurrogate) -> None:
        """Set what the data determine and no optimizer learns, such as normalizers."""

    @abstractmethod
    def loss(self, surrogate: AnySurrogate, step: int) -> Float[Tensor, ""]:
        """The loss on the batch of a step; the batch is a function of the run's seed and the step alone."""

    @abstractmethod
    def validate(self, surrogate: AnySurrogate) -> dict[str, float]:
        """``family.metric`` -> error on the validation splits, the most telling metric of a family first."""


def mixed_precision(device: torch.device) -> torch.autocast:
    """bfloat16 matrix products on a GPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
