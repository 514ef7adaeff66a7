"""The pointwise network that GNOT lifts, gates and reads off with (Hao et al. 2023, arXiv 2302.14376)."""

from typing import final

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


@final
class ResidualMlp(nn.Module):
    """A linear layer in, some residual ones of equal width, a linear layer out."""

    def __init__(self, inputs: int, channels: int, layers: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, channels)
        self.layers = nn.ModuleList(nn.Linear(channels, channels) for _ in range(layers))
        self.last = nn.Linear(channels, outputs)

    def forward(self, values: Float[Tensor, "batch token input"]) -> Float[Tensor, "batch token output"]:
        """The same function of each token."""
        hidden = functional.gelu(self.first(values))
        for layer in self.layers:
            hidden = hidden + functional.gelu(layer(hidden))
        out: Tensor = self.last(hidden)
        return out
