"""What an operator makes of its input, in a few numbers: statistics of its last layer before it is read off.

Inputs of a kind that the operator has learnt from lead to features of a kind; how far they are from those of
the training data tells new inputs from known ones (Lee et al. 2018, arXiv 1807.03888).
"""

from typing import Self, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from operators.evolution import EvolutionSurrogate
from operators.surrogate import Surrogate


@final
class FeatureReader:
    """Keeps the pooled features of the calls of a surrogate, as long as it is entered."""

    def __init__(self, surrogate: Surrogate | EvolutionSurrogate) -> None:
        operator: nn.Module = surrogate.operator
        self._layer = operator.get_submodule(surrogate.operator.feature_layer)
        # a surrogate may compute sample by sample
        self._parts: list[Tensor] = []
        self._handle: RemovableHandle | None = None

    def __enter__(self) -> Self:
        self._handle = self._layer.register_forward_hook(self._keep)
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._parts = []

    def take(self) -> Float[Tensor, "row feature"]:
        """Of every row that was computed since the last time, in order."""
        parts, self._parts = self._parts, []
        return torch.cat(parts)

    def _keep(self, _layer: nn.Module, _inputs: object, tokens: Tensor) -> None:
        self._parts.append(pooled(tokens))


def pooled(tokens: Float[Tensor, "batch *place channel"]) -> Float[Tensor, "batch feature"]:
    """Mean and standard deviation of each channel over the places, in float32."""
    variance, mean = torch.var_mean(tokens.float().flatten(1, -2), dim=1, correction=0)
    return torch.cat([mean, variance.sqrt()], dim=1)
